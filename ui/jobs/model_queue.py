"""The queue for the model: first come, first served, and everyone knows how many are ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

POLL = 0.05  # seconds between checks for a stop request while waiting


class Stopped(Exception):
    """The user stopped while waiting."""


@dataclass(eq=False)
class Place:
    """A place in the queue; ``purpose`` says what the turn is for."""

    purpose: str


Say = Callable[[int, str], None]  # called with how many are ahead, and the purpose of the current turn


class Line:
    """A queue in which one job at a time has the turn."""

    def __init__(self) -> None:
        self._places: list[Place] = []  # the first has the turn
        self._changed = threading.Condition()

    def join(self, purpose: str) -> Place:
        """Join the queue at the end; the caller must continue with ``turn``."""
        with self._changed:
            self._places.append(place := Place(purpose))
        return place

    @property
    def purposes(self) -> list[str]:
        """What all places are for, the current turn first."""
        with self._changed:
            return [place.purpose for place in self._places]

    @contextmanager
    def turn(self, place: Place, stop: threading.Event, say: Say) -> Iterator[None]:
        """Wait for the turn and hold it. ``say`` is called whenever the jobs ahead change.

        Raises Stopped if ``stop`` is set while waiting. The place is always given up at the end.
        """
        try:
            self._wait(place, stop, say)
            yield
        finally:
            with self._changed:
                self._places.remove(place)
                self._changed.notify_all()

    def _wait(self, place: Place, stop: threading.Event, say: Say) -> None:
        said: list[Place] = []
        while (ahead := self._ahead(place)) and not stop.is_set():
            if ahead != said:
                said = ahead
                say(len(ahead), ahead[0].purpose)
            with self._changed:
                self._changed.wait(POLL)
        if stop.is_set():
            raise Stopped

    def _ahead(self, place: Place) -> list[Place]:
        with self._changed:
            return self._places[: self._places.index(place)]
