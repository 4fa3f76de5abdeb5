"""Speculative Streaming: one language model drafts for itself and verifies its own drafts.

Names are loaded on first use, so ``import specstream`` is cheap and events can be read without torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specstream.engine import Engine as Engine
    from specstream.engine import load as load
    from specstream.params import Sampling as Sampling
    from specstream.params import Standard as Standard
    from specstream.params import Streaming as Streaming
    from specstream.session import run_session as run_session
    from specstream.stats import RunStats as RunStats
    from specstream.stats import summarize as summarize

# OpenMP's threads wait for more work for some milliseconds, on cores that other threads need; now for microseconds.
# Must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
_HOME = {
    "Engine": "engine",
    "load": "engine",
    "Sampling": "params",
    "Standard": "params",
    "Streaming": "params",
    "run_session": "session",
    "RunStats": "stats",
    "summarize": "stats",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'specstream' has no attribute {name!r}")
    return getattr(importlib.import_module(f"specstream.{_HOME[name]}"), name)
