"""Writing a run while it happens, without making it wait for the disk."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from specstream.events import Event, Lane, Verdict
from specstream.runlog import serialization
from specstream.runlog.database import LogFile, RunLogError

INTERVAL = 0.3  # seconds: the most that a killed process can lose


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class NullRecorder:
    """Accepts everything and writes nothing, for runs that are not logged. ``run_id`` is empty."""

    run_id = ""

    def add(self, lane: Lane, event: Event) -> None:
        """Take an event."""

    def verdict(self, verdict: Verdict) -> None:
        """Take the verdict."""

    def close(self, error: str | None = None) -> None:
        """End the run; ``error`` is a sentence if something went wrong. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Only an Exception is an error: a closed generator or Ctrl-C means that the run was stopped.
        self.close((str(error) or type(error).__name__) if isinstance(error, Exception) else None)


class Recorder(NullRecorder):
    """Writes one run. ``add`` only buffers; a timer flushes the buffer at most every ``INTERVAL``. Thread-safe. If a
    flush fails, the next call raises its RunLogError.
    """

    def __init__(self, file: LogFile, run_id: str) -> None:
        self.run_id = run_id
        self._file = file
        self._db = file.open(any_thread=True)
        self._pending: list[tuple[Lane, Event]] = []
        self._timer: threading.Timer | None = None
        self._failure: RunLogError | None = None
        self._closed = False
        self._mutex = threading.Lock()  # guards the fields above, briefly
        self._turn = threading.Lock()  # guards the connection, for the length of a write

    def add(self, lane: Lane, event: Event) -> None:
        """Buffer an event; it is on disk within ``INTERVAL``."""
        with self._mutex:
            self._check()
            self._pending.append((lane, event))
            if self._timer is None:
                self._timer = threading.Timer(INTERVAL, self._save_later)
                self._timer.daemon = True
                self._timer.start()

    def verdict(self, verdict: Verdict) -> None:
        """Save the verdict at once."""
        names = ("compared", "position", "margin", "speedup")
        values = {name: getattr(verdict, name) for name in names}
        values |= {"agreement": str(verdict.agreement), "message": serialization.clean(verdict.message)}
        with self._mutex:
            self._check()
        with self._turn:
            self._save()
            self._update(values)

    def close(self, error: str | None = None) -> None:
        """Save all events, then what is computed from them: outputs, metrics, status. A second call does nothing."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        with self._turn:
            try:
                self._save()
                self._finish(error)
            finally:
                self._db.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RunLogError(f"Run {self.run_id} is closed: start another one.")

    def _save_later(self) -> None:
        with self._mutex:
            self._timer = None
        with self._turn:
            if self._closed:  # close() has saved everything
                return
            try:
                self._save()
            except RunLogError as error:
                self._failure = error

    def _save(self) -> None:
        """Write pending events in one transaction; they stay pending if it fails. The caller holds ``_turn``."""
        with self._mutex:
            batch = list(self._pending)
        if batch:
            with self._file.writing(self._db):
                serialization.write_events(self._db, self.run_id, batch)
            with self._mutex:
                del self._pending[: len(batch)]

    def _finish(self, error: str | None) -> None:
        status, message = serialization.outcome(self._db, self.run_id)
        if error is not None:
            status, message = "error", serialization.clean(error)
        values = {"status": status, "error": message, "finished_utc": now()}
        self._update(values | serialization.summary(self._db, self.run_id))

    def _update(self, values: dict[str, Any]) -> None:
        with self._file.writing(self._db):
            self._db.table("runs").update(self._number(), values)

    def _number(self) -> int:
        found = self._db.execute("select number from runs where id = ?", [self.run_id]).fetchone()
        if found is None:
            raise RunLogError(f"Run {self.run_id} was deleted while it was being written.")
        return int(found[0])

    def __del__(self) -> None:
        with suppress(Exception):  # never closed: the run stays as it is and is later marked as interrupted
            self._db.close()
