"""What a timing depends on besides the model, and peak memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from specstream.engine import Engine, versions
from specstream.info import processor

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def machine() -> dict[str, Any]:
    """What a timing depends on besides the model."""
    accelerator = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": processor(),
        **accelerator,
        "system": f"{platform.system()} {platform.machine()}",
        **versions(),
    }


def commit() -> str:
    """The commit of the program's own checkout, marked if files differ from it; empty outside a checkout.

    An installed package may be inside another repository, whose commit says nothing about this program.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--full-name", here.name) != "/".join(here.parts[-3:]):
        return ""
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12")


def _git(folder: Path, *words: str) -> str:
    """git's output in a folder; empty if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def heading(*words: str) -> str:
    """The line above a table: the processor, ``words`` and the commit."""
    return ", ".join((machine()["processor"], *words, f"commit {commit()}"))


def described(engine: Engine) -> dict[str, Any]:
    """What was measured, where and when: the header of every result."""
    info = engine.info
    return {
        "machine": machine(),
        "model": info.model,
        "source": info.source,
        "adapter": info.adapter,
        "compiled": info.compiled,
        "exact": info.exact,
        "dtype": info.dtype,
        "device": info.device,
        "gamma": info.gamma,
        "parameters": info.parameters,
        "commit": commit(),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class PeakMemory:
    """Peak memory since ``start``, in bytes: allocated by PyTorch on a GPU, of the whole process on a CPU.

    On Linux the kernel's high-water mark is reset at every start; elsewhere it covers the process's whole life.
    """

    def __init__(self, device: str) -> None:
        self._device = device

    def start(self) -> None:
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif self._device == "cpu":
            with suppress(OSError):  # not Linux, or not permitted: the mark is not reset
                RESET.write_text("5", encoding="ascii")

    def read(self) -> int:
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated()
        if self._device == "mps":
            return torch.mps.driver_allocated_memory()
        with suppress(OSError, StopIteration):
            line = next(x for x in STATUS.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
