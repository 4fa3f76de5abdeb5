"""One thread per run: only it uses the model and the log, and it never waits for the page."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from specstream.data.chat import Chat
from specstream.events import Event, Lane, Verdict
from specstream.params import Method, Sampling
from specstream.runlog import RunLog

from ..state.messages import Notice, Recorded
from ..state.methods import Offer, mismatch
from ..state.origin import Origin, of_info
from . import zerogpu
from .engine_host import Engines, Stopped, sentence
from .job import Job

if TYPE_CHECKING:  # the page starts without torch
    from specstream.engine import Engine

log = logging.getLogger(__name__)


class Request(Protocol):
    """The part of every job's request that the rules check."""

    @property
    def prompt(self) -> str: ...

    @property
    def sampling(self) -> Sampling: ...


@dataclass(frozen=True)
class RunRequest:
    """A visitor's request. ``prompt`` is the text as typed, which is put into the task's template."""

    prompt: str
    task: str
    method: Method
    sampling: Sampling
    baseline: bool
    chat: Chat | None = None  # the conversation that the prompt continues
    prefix: str = ""  # the start of the answer, from which the run continues
    parent: str = ""  # id of the run from which this one branches off

    @property
    def characters(self) -> int:
        """The length of the visitor's input."""
        return len(self.prompt) + len(self.prefix) + (self.chat.characters if self.chat else 0)


def failure(error: Exception) -> Notice:
    """A sentence about an error; unexpected errors are also written to the terminal."""
    if not isinstance(error, ValueError):
        log.exception("the run failed", exc_info=error)
    return Notice(sentence(error), failed=True)


class ModelJob(Job):
    """A job that uses the model exclusively. Subclasses implement ``use``; errors become a Notice."""

    def __init__(self, engines: Engines, runlog: RunLog | None, ask: Request, visitor: str | None = None) -> None:
        super().__init__()
        self.ask = ask
        self._engines, self._runlog, self._visitor = engines, runlog, visitor

    @abstractmethod
    def use(self, engine: Engine) -> None:
        """What is done with the model."""

    def check(self) -> None:
        """Raises Refused if the rules do not allow it: a form's own limits can be bypassed."""
        self._engines.rules.check_run(len(self.ask.prompt), self.ask.sampling)

    def work(self) -> None:
        try:
            self.check()
            with self._engines.lend(self.stop, self._say) as engine:
                self.use(engine)
        except Stopped:
            self._say("Stopped before it began")
        except Exception as error:
            self.put(failure(error))

    def _offer(self, engine: Engine) -> Offer:
        """The methods on the model that the job got, which may not be the one that the page showed."""
        return Offer(engine.info, not self._engines.rules.may_load_any)

    def _say_mismatch(self, engine: Engine, task: str) -> None:
        """A warning if the adapter was not trained for the task, since its speed there says little."""
        if words := mismatch(task, engine.info):
            self._say(words, lasting=True)

    def _say(self, words: str, lasting: bool = False) -> None:
        self.put(Notice(words, lasting=lasting))


class RunJob(ModelJob):
    """One run of the Playground. Its items are notices, the number in the log, events and the verdict."""

    ask: RunRequest
    patience = 0.15  # a step of a large model may take seconds; Stop does not wait for it

    def check(self) -> None:
        """In a chat, the whole conversation counts."""
        self._engines.rules.check_run(self.ask.characters, self.ask.sampling)

    def use(self, engine: Engine) -> None:
        self._say("Running")
        ask = self.ask
        info, items = self._session(engine)
        first = next(items)  # refusals come before the first event: they are not runs and are not logged
        record = Record(self._runlog, self._say)
        record.start(info, ask, self._visitor)
        if record.run:
            self.put(Recorded(record.run))
        self.put(origin(info, ask))
        try:
            self._pass_on(first, record)
            for item in items:
                self._pass_on(item, record)
        except BaseException as error:
            record.close(sentence(error))
            raise
        record.close(None)

    def _session(self, engine: Engine) -> tuple[Any, Iterator[tuple[Lane, Event] | Verdict]]:
        """The facts about the model, and the items of the run."""
        from specstream.session import run_session  # imports torch: only now, in the worker

        ask = self.ask
        if zerogpu.ACTIVE:
            items = zerogpu.session(self._engines.choice, ask, self.stop.is_set)
            return next(items), items
        prompt = engine.prompt(ask.task, ask.prompt, ask.chat or Chat()) + ask.prefix
        return engine.info, run_session(engine, prompt, ask.method, ask.sampling, ask.baseline, self.stop.is_set)

    def _pass_on(self, item: tuple[Lane, Event] | Verdict, record: Record) -> None:
        self.put(item)
        record.add(item)


def settings_of(ask: RunRequest) -> dict[str, Any]:
    """The settings of a run in the form of the log."""
    settings = {"method": ask.method.to_dict(), "sampling": ask.sampling.to_dict(), "baseline": ask.baseline}
    settings |= {"chat": ask.chat.to_dict()} if ask.chat else {}
    return settings | ({"branch": {"of": ask.parent, "after": ask.prefix}} if ask.prefix else {})


def origin(info: Any, ask: RunRequest) -> Origin:
    """The request, the model and machine, and the start time."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return of_info(info, ask.prompt, ask.task, ask.method.name, info.processor, when, settings_of(ask))


class Record:
    """Writes a run to the log. A log that can't be written costs the user a sentence, not the run."""

    def __init__(self, runlog: RunLog | None, say: Callable[..., None]) -> None:
        self.run = ""
        self._runlog, self._say = runlog, say
        self._recorder: Any = None

    def start(self, info: Any, ask: RunRequest, visitor: str | None) -> None:
        if self._runlog is not None:
            self._try(self._begin, self._runlog, info, ask, settings_of(ask), visitor)

    def _begin(self, runlog: RunLog, info: Any, ask: RunRequest, settings: dict[str, Any], visitor: str | None) -> None:
        self._recorder = runlog.start(info, ask.prompt, ask.task, ask.method.name, settings, visitor=visitor)
        self.run = str(self._recorder.run_id)

    def add(self, item: tuple[Lane, Event] | Verdict) -> None:
        if self._recorder is not None:
            if isinstance(item, Verdict):
                self._try(self._recorder.verdict, item)
            else:
                self._try(self._recorder.add, *item)

    def close(self, error: str | None) -> None:
        if self._recorder is not None:
            self._try(self._recorder.close, error)

    def _try(self, write: Callable[..., Any], *values: Any) -> None:
        try:
            write(*values)
        except Exception as error:
            log.exception("the log can't be written")
            self._recorder = None
            self._say(f"Not logged: {sentence(error)}", True)
