"""Starts a script in two cooperating processes on a CPU, as users of the commands do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.ports import free_port

ROOT = Path(__file__).resolve().parent.parent


def in_two_processes(script: Path, *args: str) -> None:
    """Run a script with torchrun. ``accelerate launch --cpu`` would start a single process if there is no MPI."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(script), *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, timeout=400, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
