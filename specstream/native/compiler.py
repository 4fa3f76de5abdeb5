"""The C++ compiler of this machine, which makes passes on a CPU faster and is optional."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress


def command() -> str:
    """The compiler's command: CXX, else g++."""
    return os.environ.get("CXX") or "g++"


def works(command: str) -> bool:
    """Whether a compiler with this command is installed and runs."""
    with suppress(OSError):
        return subprocess.run([*command.split(), "--version"], capture_output=True, check=False).returncode == 0
    return False
