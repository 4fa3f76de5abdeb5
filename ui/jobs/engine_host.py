"""The one loaded engine: loaded in the background, lent to one run at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from specstream.info import EngineInfo
from specstream.model import memory
from specstream.params import Sampling, Standard

from ..access_rules import OPEN, TOY, Rules
from ..state.methods import Offer
from . import zerogpu
from .model_queue import Line, Place, Stopped

__all__ = ["TOY", "Busy", "Engines", "NotLoaded", "State", "Stopped", "sentence"]
log = logging.getLogger(__name__)
LOAD, RUN = "load", "run"  # what a turn is for
WARM_PROMPT, WARM_TOKENS = "The first passes of a model take longer than all that follow, whatever they write.", 4
WARM_SECONDS = 3.0  # of a large model's warm-up: no further pass begins after that


class NotLoaded(ValueError):
    """There is no engine to run on; the message says why and what to do."""


class Busy(ValueError):
    """Another load is in progress."""


@dataclass(frozen=True)
class State:
    """The state of the engine for the page. ``error`` is a sentence if the last load failed.

    ``used`` are the bytes of memory that the whole program takes after the last load.
    """

    loading: bool = False
    words: str = "No model is loaded."
    fraction: float | None = None
    info: EngineInfo | None = None
    error: str = ""
    used: int = 0


class Engines:
    """Holds the engine. ``choice`` (model, adapter, device, dtype, draft) is what ``load`` without arguments loads.

    Loads and runs share one queue: a load waits for the runs before it, a run waits for a load.
    """

    def __init__(self, choice: dict[str, str], loader: Callable[..., Any] | None = None, rules: Rules = OPEN) -> None:
        self.state = State()
        self.choice = choice
        self.rules = rules
        self._loader = loader or load
        self._engine: Any = None
        self._line = Line()
        self._guard = threading.Lock()  # held briefly, so that only one load starts

    @property
    def offer(self) -> Offer:
        """The methods that the page offers: all of them while another model or adapter is on its way."""
        return Offer(None if self.state.loading else self.state.info, demo=not self.rules.may_load_any)

    def load(self, **choice: str) -> None:
        """Start to load in the background. Raises Busy during another load, Refused if the rules forbid it."""
        if choice:  # the rules do not apply to the model with which the page was started
            self.rules.check_choice(**choice)
        choice = {name: value.strip() for name, value in (choice or self.choice).items()}
        self._begin(lambda: self._load(choice))

    def unload(self) -> None:
        """Free the model's memory, in the background. Raises Busy and Refused like ``load``."""
        self.rules.check_unload()
        self._begin(self._unload)

    def _begin(self, change: Callable[[], None]) -> None:
        """Queue a change of the engine, in a separate thread."""
        with self._guard:
            if self.state.loading:
                raise Busy("A model is being loaded already: wait until it is ready.")
            self._set(loading=True, words="Starting", fraction=None, error="")
            place = self._line.join(LOAD)
        threading.Thread(target=self._change, args=(change, place), daemon=True, name="load").start()

    def _change(self, change: Callable[[], None], place: Place) -> None:
        with self._line.turn(place, threading.Event(), self._behind):
            try:
                change()
            except Exception as error:
                if not isinstance(error, ValueError):
                    log.exception("loading failed")
                self._set(loading=False, words="Loading failed", error=sentence(error))

    def _load(self, choice: dict[str, str]) -> None:
        self._engine = self._loader(progress=self._progress, **choice)
        self._progress("Warming up")
        warm_up(self._engine)
        self.choice = choice
        memory.give_back()  # of the previous model, whose parts reference each other
        self._set(loading=False, words="Ready", info=self._engine.info, used=memory.used())

    def _unload(self) -> None:
        self._engine = None
        memory.give_back()
        self._set(loading=False, words="No model is loaded.", info=None, used=0)

    def _progress(self, words: str, fraction: float | None = None) -> None:
        self._set(words=words, fraction=fraction)

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def watch(self, seconds: float = 0.25) -> Iterator[State]:
        """The state now and whenever it changes, until nothing is being loaded."""
        shown = None
        wait = threading.Event()
        while True:
            state = self.state
            if state != shown:
                shown = state
                yield state
            if not state.loading:
                return
            wait.wait(seconds)

    def ahead(self) -> str:
        """What a run that begins now waits for; empty for nothing."""
        ahead = self._line.purposes
        return waiting(len(ahead), ahead[0]) if ahead else ""

    def _behind(self, ahead: int, purpose: str) -> None:
        self._set(words=f"Waiting: {ahead} ahead of it")

    @contextmanager
    def lend(self, stop: threading.Event, say: Callable[[str], None]) -> Iterator[Any]:
        """The engine, exclusively for this thread. ``say`` is called with what it is waiting for.

        Raises Stopped when ``stop`` is set while waiting, NotLoaded without an engine.
        """
        with self._line.turn(self._line.join(RUN), stop, lambda ahead, purpose: say(waiting(ahead, purpose))):
            if self._engine is None:
                raise NotLoaded(self.state.error or "No model is loaded: choose one under Model and press Load.")
            self._refresh()
            yield self._engine

    def _refresh(self) -> None:
        """Swap in compiled layers once they are built; only between jobs, since a job compares its runs."""
        before = self._engine.info
        self._engine.refresh()
        if self._engine.info != before:
            self._set(info=self._engine.info)
        if self._engine.info.compiled and not before.compiled:
            warm_up(self._engine)


def waiting(ahead: int, purpose: str) -> str:
    """The message to the visitor of a waiting run."""
    if purpose != LOAD:
        return f"Waiting for the model: {ahead} ahead of you"
    return "Waiting for the model to load" + (f", {ahead - 1} ahead of you" if ahead > 1 else "")


def load(model: str, progress: Callable[..., None], **choice: str) -> Any:
    """The engine for a choice; torch is imported here, in the loading thread. Raises ValueError with one sentence."""
    if model == TOY:
        from specstream.testing.toy import load_toy

        return load_toy()
    import specstream

    if zerogpu.ACTIVE:  # there, runs load a model of their own
        choice["device"] = "cpu"
    memory.check(model, choice.get("device", "auto"), choice.get("dtype", "auto"))
    return specstream.load(model, progress=progress, **choice)


def warm_up(engine: Any) -> None:
    """A few tokens by each method that a first run measures, so that the slow first passes count against neither.

    Nobody sees them: they are not logged. An error here is left to the run that would meet it too.
    """
    if zerogpu.ACTIVE:
        return
    until = time.monotonic() + WARM_SECONDS
    sampling = Sampling(max_new_tokens=WARM_TOKENS, ignore_eos=True)
    for method in dict.fromkeys((engine.default_method(), Standard())):
        try:
            list(engine.generate(WARM_PROMPT, method, sampling, lambda: time.monotonic() > until))
        except Exception as error:
            log.warning("the warm-up failed: %s", error)


def sentence(error: BaseException) -> str:
    """One line for the page: the message of our own errors, with the type for others."""
    if isinstance(error, ValueError) and str(error):
        return str(error)
    first = (str(error).strip().splitlines() or ["no further details"])[0]
    return f"Something went wrong ({type(error).__name__}: {first}). The details are in the terminal."
