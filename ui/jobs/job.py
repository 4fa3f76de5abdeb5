"""Work in a separate thread, watched by the page, which may leave and return without missing anything."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from functools import partial
from typing import Any

# A browser on the same machine competes with the model: with few cores, it is updated less often.
UPDATES_PER_SECOND = 12 if (os.cpu_count() or 1) > 2 else 2
POLL = 0.1  # seconds between checks for a stop request
DRAWING = 0.5  # most seconds that a job waits for the page to have drawn its beginning
GRACE = 12.0  # seconds that a job continues after its last viewer left, so that a reloaded page finds it running


class Job(ABC):
    """Subclasses implement ``work``, which puts items. ``batches`` yields them; ``stop`` asks the work to end."""

    grace = GRACE
    patience: float | None = None  # seconds that viewers wait for the end after a stop; None: without limit

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.items: list[Any] = []
        self.ended = False
        self.drawn = threading.Event()  # the page says that it has drawn the beginning
        self._stopped = 0.0  # when a viewer first saw the stop request
        self._changed = threading.Condition()
        self._viewers: set[str] = set()
        around = contextvars.copy_context()  # the context of the request, to which a Space lends its GPU
        work = partial(around.run, self._work)
        self._thread = threading.Thread(target=work, daemon=True, name=type(self).__name__.lower())

    @abstractmethod
    def work(self) -> None:
        """The work of the thread. It must handle all its exceptions."""

    def put(self, item: Any) -> None:
        """Publish an item to the viewers; called by the work."""
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    @property
    def begun(self) -> bool:
        return self._thread.ident is not None

    def wait_for_drawing(self) -> None:
        """Wait until the page has drawn the beginning, so that this does not slow down the first passes of a model on
        the same cores; not if the job has begun, and not for long."""
        until = time.monotonic() + DRAWING
        while not (self.begun or self.stop.is_set() or time.monotonic() > until or self.drawn.wait(POLL)):
            pass

    def batches(self, viewer: str = "") -> Generator[list[Any], None, None]:
        """Start if necessary, and yield the items: first all so far, then new ones, a few times a second.

        A job that begins has some time before the first: what it does then is not slowed down by a page that draws. The
        end is reported at once. Closing the iterator means leaving; without viewers the job stops after a while.
        """
        seen, due = 0, 0.0
        with self._changed:
            self._viewers.add(viewer)
            if not self.begun:
                self._thread.start()
                due = time.monotonic() + 1 / UPDATES_PER_SECOND
        try:
            while (batch := self._next(seen, due)) is not None:
                due = time.monotonic() + 1 / UPDATES_PER_SECOND
                seen += len(batch)
                yield batch
        finally:
            self.leave(viewer)

    def _next(self, seen: int, due: float) -> list[Any] | None:
        """The items after the first ``seen``, not before ``due`` unless the job ends; None if there are no more."""
        with self._changed:
            while not self._changed.wait_for(lambda: self.ended or len(self.items) > seen, timeout=POLL):
                if self._out_of_patience():
                    return None
            self._changed.wait_for(lambda: self.ended, timeout=max(0.0, due - time.monotonic()))
            return self.items[seen:] or None

    def _out_of_patience(self) -> bool:
        """Whether viewers waited long enough after a stop request to see what is known. The work ends by itself."""
        if self.patience is None or not self.stop.is_set():
            return False
        self._stopped = self._stopped or time.monotonic()
        return time.monotonic() - self._stopped >= self.patience

    def leave(self, viewer: str) -> None:
        """A viewer leaves. A second call does nothing."""
        with self._changed:
            self._viewers.discard(viewer)
            if self._viewers or self.ended:
                return
        timer = threading.Timer(self.grace, self._stop_unless_watched)
        timer.daemon = True
        timer.start()

    def _stop_unless_watched(self) -> None:
        with self._changed:
            if not self._viewers:
                self.stop.set()

    def _work(self) -> None:
        try:
            self.work()
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()


class Jobs:
    """The current job of every visitor, and who watches it, so that Stop and a closing page can reach it."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._watching: dict[str, str] = {}  # session of a page -> visitor
        self._lock = threading.Lock()

    def put(self, visitor: str, session: str, job: Job) -> None:
        """Set a visitor's job. A visitor has one job at a time: the previous one is stopped and forgotten."""
        with self._lock:
            before = self._jobs.get(visitor)
            self._jobs = {who: known for who, known in self._jobs.items() if not known.ended}
            self._jobs[visitor] = job
            self._watching[session] = visitor
        if before is not None and before is not job:
            before.stop.set()

    def get(self, visitor: str) -> Job | None:
        """The visitor's job while it is running."""
        job = self._jobs.get(visitor)
        return job if job is not None and not job.ended else None

    def stop(self, visitor: str) -> None:
        """Ask the visitor's job, if any, to end."""
        if job := self._jobs.get(visitor):
            job.stop.set()

    def close(self, session: str) -> None:
        """A page was closed or reloaded: it no longer watches."""
        with self._lock:
            visitor = self._watching.pop(session, None)
        if visitor is not None and (job := self._jobs.get(visitor)):
            job.leave(session)
