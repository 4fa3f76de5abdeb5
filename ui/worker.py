"""One thread for each run: it alone touches the model and the log, and never waits for the page."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from specstream.events import Event, Lane, Verdict
from specstream.params import Method, Sampling
from ui.engines import Engines, Stopped, sentence

log = logging.getLogger(__name__)
# A browser on the same machine takes its time from the model: where there are few cores, it is woken less often.
UPDATES_PER_SECOND = 12 if (os.cpu_count() or 1) > 2 else 6


@dataclass(frozen=True)
class Ask:
    """What a visitor wants to run. ``prompt`` is the text as typed; the task's template is put round it."""

    prompt: str
    task: str
    method: Method
    sampling: Sampling
    baseline: bool


@dataclass(frozen=True)
class Notice:
    """A sentence for the status line; ``failed``: the run could not go on, ``lasting``: to be said at its end too."""

    text: str
    failed: bool = False
    lasting: bool = False


@dataclass(frozen=True)
class Recorded:
    """The run's number in the log."""

    run: str


Item = tuple[Lane, Event] | Verdict | Notice | Recorded


class Run:
    """A run in a thread of its own. ``batches`` yields what happened; ``stop`` ends it after the step under way."""

    def __init__(self, engines: Engines, runlog: Any, ask: Ask, visitor: str | None = None) -> None:
        self.stop = threading.Event()
        self._engines, self._runlog, self._ask, self._visitor = engines, runlog, ask, visitor
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="run")

    def batches(self) -> Generator[list[Item], None, None]:
        """Start, and yield what has happened since the last time, at most ``UPDATES_PER_SECOND`` times a second.

        Closing the iterator stops the run.
        """
        self._thread.start()
        try:
            open_ = True
            while open_:
                began = time.monotonic()
                batch, open_ = self._drain()
                if batch:
                    yield batch
                time.sleep(max(0.0, began + 1 / UPDATES_PER_SECOND - time.monotonic()) if open_ else 0)
        finally:
            self.stop.set()

    def _drain(self) -> tuple[list[Item], bool]:
        """Everything in the queue, waiting for the first item; and whether more will come."""
        batch: list[Item] = []
        item = self._items.get()
        while item is not None:
            batch.append(item)
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _work(self) -> None:
        try:
            with self._engines.lend(self.stop, self._say) as engine:
                self._say("Running")
                self._generate(engine)
        except Stopped:
            self._say("Stopped before it began")
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("the run failed")
            self._items.put(Notice(sentence(error), failed=True))
        finally:
            self._items.put(None)

    def _say(self, words: str, lasting: bool = False) -> None:
        self._items.put(Notice(words, lasting=lasting))

    def _generate(self, engine: Any) -> None:
        from specstream.session import run_session  # imports torch: only now, in the worker

        ask = self._ask
        prompt = engine.prompt(ask.task, ask.prompt)
        items = run_session(engine, prompt, ask.method, ask.sampling, ask.baseline, self.stop.is_set)
        first = next(items)  # refusals come before the first event: they are no runs, and not logged
        record = Record(self._runlog, self._say)
        record.start(engine.info, ask, self._visitor)
        if record.run:
            self._items.put(Recorded(record.run))
        try:
            self._pass_on(first, record)
            for item in items:
                self._pass_on(item, record)
        except BaseException as error:
            record.close(sentence(error))
            raise
        record.close(None)

    def _pass_on(self, item: tuple[Lane, Event] | Verdict, record: Record) -> None:
        self._items.put(item)
        record.add(item)


class Record:
    """Writes a run to the log. A log that can't be written costs the user a sentence, not the run."""

    def __init__(self, runlog: Any, say: Callable[..., None]) -> None:
        self.run = ""
        self._runlog, self._say = runlog, say
        self._recorder: Any = None

    def start(self, info: Any, ask: Ask, visitor: str | None) -> None:
        if self._runlog is not None:
            settings = {"method": ask.method.to_dict(), "sampling": ask.sampling.to_dict(), "baseline": ask.baseline}
            self._try(self._begin, info, ask, settings, visitor)

    def _begin(self, info: Any, ask: Ask, settings: dict[str, Any], visitor: str | None) -> None:
        self._recorder = self._runlog.start(info, ask.prompt, ask.task, ask.method.name, settings, visitor=visitor)
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


class Stops:
    """The runs under way, by visitor, so that the Stop button and a closed page can reach them."""

    def __init__(self) -> None:
        self._runs: dict[str, threading.Event] = {}

    def put(self, visitor: str, stop: threading.Event) -> None:
        self._runs[visitor] = stop

    def stop(self, visitor: str) -> None:
        """Ask the visitor's run to end; nothing happens without one."""
        if stop := self._runs.get(visitor):
            stop.set()

    def drop(self, visitor: str, stop: threading.Event) -> None:
        """Forget a run that has ended, unless the visitor has begun another."""
        if self._runs.get(visitor) is stop:
            del self._runs[visitor]
