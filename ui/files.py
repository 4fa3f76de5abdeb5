"""Where files for the visitor to download are written."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path


def downloads() -> Path:
    """A folder of this process that is gone when it ends; gradio serves files from there."""
    folder = Path(tempfile.mkdtemp(prefix="specstream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
