"""Files for visitors to download: where they are written, and how they are kept from filling the disk."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

ROOM = 256 << 20  # most bytes of all files together
YOUNG = 60.0  # seconds within which a file is surely downloaded: younger files are not deleted
_one_at_a_time = threading.Lock()


@cache
def downloads() -> Path:
    """The folder of this process, deleted when it ends. Gradio serves files from there directly, without a copy."""
    from gradio.utils import get_upload_folder  # inside: modules without gradio write files too

    parent = Path(get_upload_folder())
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="specstream-", dir=parent)).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def place(folder: Path, name: str) -> Path:
    """The path for a new file, after deleting the oldest ones to make room."""
    left, now = ROOM, time.time()
    with _one_at_a_time:
        for file in sorted(folder.iterdir(), key=_changed, reverse=True):
            left -= file.stat().st_size
            if left < 0 and now - _changed(file) > YOUNG:
                file.unlink()
    return folder / name


def _changed(file: Path) -> float:
    return file.stat().st_mtime
