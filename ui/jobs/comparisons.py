"""Several methods on one prompt, measured one after another by one thread, with every run in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from specstream.events import Event, Finished, Lane, Reason, Step, Verdict
from specstream.params import METHODS, Method, Sampling, Standard
from specstream.runlog import RunLog
from specstream.stats import RunStats, summarize

from ..state.methods import CannotRun, Offer
from .engine_host import Engines, sentence
from .runs import ModelJob, Record, RunRequest

if TYPE_CHECKING:  # the page starts without torch
    from specstream.engine import Engine

WARM_UP = 4  # tokens that each method writes to warm up, so that none is measured with cold caches


@dataclass(frozen=True)
class Lap:
    """The method being measured has written this many tokens; ``step`` are its newest, None while it warms up."""

    method: str
    number: int
    of: int
    tokens: int
    step: Step | None = None


@dataclass(frozen=True)
class Entry:
    """A method's measured run. ``verdict`` compares it with standard decoding, and is None for that itself."""

    method: str
    events: tuple[Event, ...]
    verdict: Verdict | None = None
    run: str = ""

    @property
    def label(self) -> str:
        return METHODS[self.method].label

    @property
    def stats(self) -> RunStats:
        return summarize(self.events)

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    @property
    def tail(self) -> str:
        """Text after that of the last token."""
        return "".join(event.tail for event in self.events if isinstance(event, Finished))


@dataclass(frozen=True)
class Prepared:
    """The model that runs, as plain values, and the methods that it can run, in the order of measurement."""

    info: Any
    methods: tuple[str, ...]


class Contest(ModelJob):
    """Measures ``methods`` after standard decoding. Its items: Notice, Prepared, Lap, Entry."""

    ask: RunRequest

    def __init__(
        self,
        engines: Engines,
        runlog: RunLog | None,
        ask: RunRequest,
        methods: Sequence[Method],
        visitor: str | None = None,
    ) -> None:
        super().__init__(engines, runlog, ask, visitor)
        self._methods: list[Method] = [Standard(), *methods]
        self._reference: list[Event] = []

    @property
    def names(self) -> list[str]:
        """The methods in the order in which they are measured."""
        return [method.name for method in self._methods]

    def use(self, engine: Engine) -> None:
        self._leave_out(self._offer(engine))
        self.put(Prepared(engine.info, tuple(self.names)))
        self._say_mismatch(engine, self.ask.task)
        for number, method in enumerate(self._methods, 1):
            if not self.stop.is_set():
                self._measure(engine, method, number)

    def _leave_out(self, offer: Offer) -> None:
        """Leave out what this model can't run: the methods may have been chosen for the model before it."""
        reasons = {method.label: reason for method in self._methods if (reason := offer.reason(method.name))}
        self._methods = [method for method in self._methods if method.label not in reasons]
        if len(self._methods) < 2:  # only standard decoding is left
            raise CannotRun(" ".join(reasons.values()))
        if reasons:
            self._say(f"Left out: {', '.join(reasons)}. {' '.join(reasons.values())}", lasting=True)

    def _measure(self, engine: Engine, method: Method, number: int) -> None:
        ask = replace(self.ask, method=method)
        prompt = engine.prompt(ask.task, ask.prompt)
        short = replace(ask.sampling, max_new_tokens=min(WARM_UP, ask.sampling.max_new_tokens))
        self.put(Lap(method.name, number, len(self._methods), 0))
        for _ in engine.generate(prompt, method, short, self.stop.is_set):
            pass
        record = Record(self._runlog, self._say)
        record.start(engine.info, ask, self._visitor)
        try:
            self._run(engine, prompt, ask, record, number)
        except BaseException as error:
            record.close(sentence(error))
            raise
        record.close(None)

    def _run(self, engine: Engine, prompt: str, ask: RunRequest, record: Record, number: int) -> None:
        events: list[Event] = []
        tokens = 0
        for event in engine.generate(prompt, ask.method, ask.sampling, self.stop.is_set):
            events.append(event)
            record.add((Lane.METHOD, event))
            tokens += len(event.tokens) if isinstance(event, Step) else 0
            if isinstance(event, Step):
                self.put(Lap(ask.method.name, number, len(self._methods), tokens, event))
        if isinstance(last := events[-1], Finished) and last.reason is Reason.STOPPED:
            return  # the partial run stays in the log, but there is nothing to compare
        found = None if not self._reference else self._compare(engine, prompt, ask.sampling, events, record)
        self._reference = self._reference or events
        self.put(Entry(ask.method.name, tuple(events), found, record.run))

    def _compare(self, engine: Engine, prompt: str, sampling: Sampling, events: list[Event], record: Record) -> Verdict:
        """Add the lane of standard decoding to the logged run, so that it can be explored like any other."""
        from specstream.session import verdict  # imports torch: only now, in the worker

        for event in self._reference:
            record.add((Lane.BASELINE, event))
        found = verdict(engine, prompt, sampling, events, self._reference)
        record.add(found)
        return found
