"""Runs on a Hugging Face Space with ZeroGPU, which lends a GPU for the time of one call; elsewhere nothing changes.

The call runs in a separate process: inputs and outputs are plain values, and the model is loaded there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import Any

from specstream.data.chat import Chat
from specstream.events import Finished, Reason


def lent(function: Callable[..., Any]) -> Callable[..., Any]:
    """``spaces.GPU`` if that package is installed, as on Spaces; else the function itself."""
    try:
        spaces = importlib.import_module("spaces")
    except ImportError:
        return function
    decorated: Callable[..., Any] = spaces.GPU(function)
    return decorated


@lru_cache(maxsize=1)
def _engine(**choice: Any) -> Any:
    import specstream

    return specstream.load(**choice)


def _there(choice: dict[str, str], ask: Any) -> Iterator[Any]:
    """Runs in the process with the GPU: yields the model's facts, then the run."""
    from specstream.session import run_session

    engine = _engine(**choice)
    prompt = engine.prompt(ask.task, ask.prompt, ask.chat or Chat()) + ask.prefix
    yield engine.info
    yield from run_session(engine, prompt, ask.method, ask.sampling, ask.baseline)


on_gpu = lent(_there)
ACTIVE = on_gpu is not _there  # the package returns the function unchanged if no GPU is lent


def session(choice: dict[str, str], ask: Any, should_stop: Callable[[], bool]) -> Iterator[Any]:
    """The model's facts, then the items of ``run_session``. That process sees no stop flag, so Stop closes the call."""
    with closing(on_gpu(choice | {"device": "auto"}, ask)) as items:
        for item in items:
            yield item
            if should_stop() and isinstance(item, tuple):
                if not isinstance(item[1], Finished):
                    yield item[0], Finished(Reason.STOPPED)
                return
