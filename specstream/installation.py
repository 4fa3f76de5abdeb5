"""Where this program is, in a checkout or installed from a wheel: its data files, and how to start it as a process.

A wheel holds ``ui``, ``assets`` and ``docs/metrics.md`` inside ``specstream`` (see pyproject.toml).
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path

PACKAGE = Path(str(files("specstream")))  # a folder: Python unpacks wheels when it installs them


def data_file(name: str) -> Path:
    """A bundled file or folder, by its path in the checkout, such as ``assets/style.css``."""
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name


def checkout() -> Path | None:
    """The folder of the checkout; None if the program was installed from a wheel."""
    return None if (PACKAGE / "assets").is_dir() else PACKAGE.parent


def python(module: str, *words: str) -> list[str]:
    """The command that runs a module of this program, in ``environment()``: the working directory is not searched."""
    return [sys.executable, "-P", "-m", module, *words]


def environment(**more: str) -> dict[str, str]:
    """An environment in which a process finds the same packages as this one, whatever its working directory."""
    path = dict.fromkeys([*filter(None, sys.path), str(PACKAGE.parent)])
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)} | more
