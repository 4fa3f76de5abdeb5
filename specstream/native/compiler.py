"""The C++ compiler of this machine, which makes passes on a CPU faster and is optional."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

NO_COMPILER = "SPECSTREAM_NO_COMPILER"
NOTHING, NO_LAYERS = "1", "layers"  # its values: no compiler runs and nothing compiled is used, or only no layers


def allowed() -> bool:
    """Whether a compiler may run, and what it built may be used."""
    return os.environ.get(NO_COMPILER) != NOTHING


def allowed_for_layers() -> bool:
    """The same for decoder layers."""
    return os.environ.get(NO_COMPILER) not in (NOTHING, NO_LAYERS)


def command() -> str:
    """The compiler's command: CXX, else g++."""
    return os.environ.get("CXX") or "g++"


def works(command: str) -> bool:
    """Whether a compiler with this command is installed and runs."""
    with suppress(OSError):
        return subprocess.run([*command.split(), "--version"], capture_output=True, check=False).returncode == 0
    return False


def run(words: Sequence[str], limit: float) -> None:
    """Run a compiler for at most ``limit`` seconds. Raises OSError or SubprocessError if it fails."""
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, errors = process.communicate(timeout=limit)
        except BaseException:
            end(process)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(words), out, errors)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process that has a session of its own, with all that it started: a compiler starts others for its work."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
