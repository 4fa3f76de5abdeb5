"""A Space with ZeroGPU, whose package is replaced by a stand-in that also passes values between processes."""

from __future__ import annotations

import contextvars
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import specstream
from specstream.events import Agreement, Finished, Lane, Reason, Step, Verdict
from specstream.params import Sampling, Streaming
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from ui.jobs import runs, zerogpu
from ui.jobs.engine_host import Engines
from ui.jobs.runs import RunJob, RunRequest
from ui.state.messages import Notice

pytestmark = pytest.mark.timeout(120)
CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


class Space:
    """What the package ``spaces`` does where a GPU is lent: calls are pickled, and made for the request under way."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def GPU(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:  # noqa: N802
        def call(*values: Any) -> Iterator[Any]:
            self.calls.append((request.get(), values))
            for item in function(*pickle.loads(pickle.dumps(values))):
                yield pickle.loads(pickle.dumps(item))

        return call


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[Space]:
    space = Space()
    package = ModuleType("spaces")
    package.GPU = space.GPU  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", package)
    monkeypatch.setattr(specstream, "load", lambda **choice: load_toy(0.01))
    importlib.reload(zerogpu)
    yield space
    monkeypatch.undo()
    importlib.reload(zerogpu)


def loaded() -> Engines:
    engines = Engines(CHOICE, lambda progress, **choice: load_toy(0))
    engines.load()
    assert list(engines.watch(0.01))[-1].info
    return engines


def ask(tokens: int = 20, **sampling: Any) -> RunRequest:
    return RunRequest("name[The Salted Fig]", "e2e", Streaming(), Sampling(max_new_tokens=tokens, **sampling), True)


def test_without_the_package_or_off_a_space_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not zerogpu.ACTIVE and runs.zerogpu is zerogpu
    package = ModuleType("spaces")
    package.GPU = lambda function: function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", package)
    importlib.reload(zerogpu)
    assert not zerogpu.ACTIVE


def test_a_run_happens_where_the_gpu_is_for_the_request_that_asked(space: Space, tmp_path: Path) -> None:
    runlog = RunLog(tmp_path / "runs.db")
    assert zerogpu.ACTIVE
    token = request.set("a visitor's")
    run = RunJob(loaded(), runlog, ask(), "me")
    request.reset(token)
    items = [item for batch in run.batches() for item in batch]
    assert [made for made, _ in space.calls] == ["a visitor's"] and space.calls[0][1][0]["device"] == "auto"
    assert next(i for i in items if isinstance(i, Verdict)).agreement is Agreement.IDENTICAL
    logged = runlog.runs()[0]
    assert logged["status"] == "finished" and logged["tokens"] == 20


def test_stop_closes_the_call_and_the_log_says_stopped(space: Space, tmp_path: Path) -> None:
    runlog = RunLog(tmp_path / "runs.db")
    run = RunJob(loaded(), runlog, ask(2000, ignore_eos=True), "me")
    items: list[Any] = []
    for batch in run.batches():
        items += batch
        if any(isinstance(item, tuple) and isinstance(item[1], Step) for item in batch):
            run.stop.set()
    assert not [i for i in items if isinstance(i, Notice) and i.failed]
    assert items[-1] == (Lane.METHOD, Finished(Reason.STOPPED))
    assert runlog.runs()[0]["status"] == "stopped"
