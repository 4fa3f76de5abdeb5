"""Starts a script in two processes on the processor that know of each other, as the commands' users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.ports import free_port

ROOT = Path(__file__).resolve().parent.parent


def in_two_processes(script: Path, *args: str) -> None:
    """Run a script by torchrun. ``accelerate launch --cpu`` would start a single process where there is no MPI."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(script), *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, timeout=400, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
