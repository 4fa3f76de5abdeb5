"""The progress of a training run as JSON lines: written by the run, read by its watchers. No torch."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specstream.data.json_lines import end_line

Event = dict[str, Any]
PACE = 1.0  # least seconds between lines of one kind, which keeps the file of a long run short


class Writer:
    """Appends events to a file, one JSON object per line, each with the time.

    Steps are written at most once per ``PACE``, with the mean losses since the previous line. ``memory`` returns the
    peak memory so far in bytes.
    """

    def __init__(self, file: Path, memory: Callable[[], int] = lambda: 0) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        end_line(file)
        self._file, self._memory = file, memory
        self._due = 0.0
        self._held: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Write an event; steps may be held back to be averaged."""
        if event["kind"] != "step":
            self.flush()
            self._write(event)
            return
        self._held.append(event)
        if time.monotonic() >= self._due or event["fraction"] >= 1:  # write the last step now: a validation follows
            self.flush()

    def phase(self, words: str, fraction: float | None = None) -> None:
        """Report work before the first step, with the ``fraction`` done if known."""
        if fraction is None or time.monotonic() >= self._due:
            self._write({"kind": "phase", "words": words, "fraction": fraction})
            self._due = time.monotonic() + PACE * (fraction is not None)

    def flush(self) -> None:
        """Write the steps held back, as one line."""
        if self._held:
            rows = [event["losses"] for event in self._held]
            mean = [round(sum(column) / len(rows), 5) for column in zip(*rows, strict=True)]
            last = {k: v for k, v in self._held[-1].items() if k != "hits"}
            self._held = []
            self._write(last | {"losses": mean, "memory": self._memory()})
            self._due = time.monotonic() + PACE

    def _write(self, event: Event) -> None:
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(event | {"time": time.time()}) + "\n")


@dataclass
class Point:
    """The mean losses of some steps: main stream first, then each stream."""

    step: int
    seconds: float
    losses: list[float]


@dataclass
class Validation:
    """The result of a validation on held-out rows. ``tokens_per_step`` is None if nothing was decoded."""

    step: int
    seconds: float
    losses: list[float]
    tokens_per_step: float | None


@dataclass
class Progress:
    """The progress of a training run: a fold over its events.

    ``fraction`` is the share of the budget used so far; ``rows`` and ``held_out`` count training and held-out rows;
    ``memory`` is the peak so far in bytes. ``left`` seconds are None until they can be estimated.
    """

    words: str = ""
    share: float | None = None
    begun: bool = False
    ended: bool = False
    stopped: bool = False
    fraction: float = 0.0
    step: int = 0
    seconds: float = 0.0
    rows: int = 0
    held_out: int = 0
    memory: int = 0
    updated: float = 0.0
    points: list[Point] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    _moving: bool = False  # a step was made since the start or the last resume
    _look: float = 0.0  # seconds taken by the newest validation

    def add(self, event: Event) -> None:
        """Fold one event in. Raises KeyError, TypeError or ValueError for one that was not written by Writer."""
        before, self.updated = self.updated, float(event["time"])
        if event["kind"] == "validation":
            self._look = self.updated - before
        getattr(self, f"_add_{event['kind']}", self._ignore)(event)

    def _ignore(self, event: Event) -> None:
        """An event of a later version."""

    def _add_phase(self, event: Event) -> None:
        self.words, self.share = str(event["words"]), event["fraction"]
        self.begun = self.ended = self.stopped = False

    def _add_begin(self, event: Event) -> None:
        """A run resumed from a checkpoint forgets everything after it."""
        self.begun, self.words, self.share = True, "", None
        self.rows, self.held_out = int(event["rows"]), int(event["held_out"])
        self.step, self.seconds = int(event["step"]), float(event["seconds"])
        self._moving = False
        self.points = [p for p in self.points if p.step <= self.step]
        self.validations = [v for v in self.validations if v.step <= self.step]

    def _add_step(self, event: Event) -> None:
        self.step, self.seconds = int(event["step"]), float(event["seconds"])
        self.fraction, self.memory = min(1.0, float(event["fraction"])), max(self.memory, int(event["memory"]))
        self._moving = True
        self.points.append(Point(self.step, self.seconds, [float(x) for x in event["losses"]]))

    def _add_validation(self, event: Event) -> None:
        decoded = event.get("tokens_per_step")
        known = None if decoded is None or math.isnan(decoded) else float(decoded)
        losses = [float(x) for x in event["losses"]]
        self.validations.append(Validation(int(event["step"]), float(event["seconds"]), losses, known))

    def _add_end(self, event: Event) -> None:
        self.ended, self.stopped = True, bool(event["stopped"])

    @property
    def closing(self) -> bool:
        """Whether the budget is used up and the adapter is being validated and saved."""
        return self.begun and self.fraction >= 1 and not self.ended

    @property
    def left(self) -> float | None:
        """Estimated seconds left: at the pace of all steps so far, and with validations as often as so far.

        Steps since a resume alone would be too few at first. Each validation, also the final one, is assumed to take as
        long as the newest. None before the first step, and once the budget is used up.
        """
        if not self._moving or not self.fraction or self.closing:
            return None
        spent = self.seconds + len(self.validations) * self._look
        return spent * (1 - self.fraction) / self.fraction + self._look

    @property
    def best(self) -> float | None:
        """The most tokens per step of all validations, which is that of the adapter that is kept."""
        return max((v.tokens_per_step for v in self.validations if v.tokens_per_step is not None), default=None)


def take_in(progress: Progress, line: str | bytes) -> None:
    """Fold the event of a line in; an incomplete or damaged line is skipped."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        progress.add(json.loads(line))


class Tail:
    """Follows a growing file, reading every line once. A file that shrank is read again from its start."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._place, self._progress = 0, Progress()

    def read(self) -> Progress:
        """The progress now; empty without a file."""
        with self._lock:
            try:
                self._read_on()
            except OSError:
                self._place, self._progress = 0, Progress()
            return self._progress

    def _read_on(self) -> None:
        with self._file.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._place:
                self._place, self._progress = 0, Progress()
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    return
                self._place += len(line)
                take_in(self._progress, line)
