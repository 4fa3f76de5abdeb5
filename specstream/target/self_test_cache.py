"""Cached results of passed self-tests: the same files, code and machine give the same result, so none is repeated.

A result is a small file in the cache folder, named by a hash of everything that it depends on. Failures are not stored.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from specstream import native
from specstream.hub import download

PACKAGE = Path(__file__).resolve().parent.parent
# Packages and modules whose code affects the result.
CODE = ("model", "native", "target", "streams", "adapters", "tree.py", "events.py")


class SelfTestCache:
    """The self-tests that a model has passed. ``folders`` contain it and its adapter, ``words`` describe how it is
    loaded."""

    def __init__(self, folders: Iterable[Path | None], *words: str) -> None:
        files = [file for folder in folders if folder for file in sorted(folder.iterdir()) if file.is_file()]
        known = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        code = [f.read_text(encoding="utf-8") for f in sources()]
        self._key = digest(known, words, code, native.loaded() is not None)

    def recall(self, name: str) -> dict[str, Any] | None:
        """The result of the test ``name``; None if it has not been passed yet."""
        with suppress(OSError, ValueError):
            result = json.loads(self._file(name).read_text(encoding="utf-8"))
            return result if isinstance(result, dict) else None
        return None

    def note(self, name: str, **result: Any) -> None:
        """Store the result of a test; nothing happens if the cache folder can't be written."""
        with suppress(OSError):
            self._file(name).parent.mkdir(parents=True, exist_ok=True)
            self._file(name).write_text(json.dumps(result), encoding="utf-8")

    def _file(self, name: str) -> Path:
        return download.home() / "passed" / f"{self._key}-{name}.json"


def sources() -> list[Path]:
    """The files of ``CODE``."""
    parts = [PACKAGE / part for part in CODE]
    files = [f for part in parts for f in ([part] if part.is_file() else sorted(part.iterdir()))]
    return [f for f in files if f.suffix in (".py", ".cpp")]


def digest(*parts: Any) -> str:
    """A hash of these parts, this machine and the libraries, used as a file name."""
    capabilities = sorted(k for k, v in torch.cpu.get_capabilities().items() if v is True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability(), capabilities, torch.get_num_threads(), gpu]
    told = [*parts, machine, version("torch"), version("transformers")]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:20]
