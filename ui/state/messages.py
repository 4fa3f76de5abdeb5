"""Messages of a job to the page, besides the events of its runs."""

from __future__ import annotations

from dataclasses import dataclass

from specstream.events import Event, Lane, Verdict

from .origin import Origin


@dataclass(frozen=True)
class Notice:
    """A status message. ``failed``: the job can't continue; ``lasting``: it stays visible after the job has ended."""

    text: str
    failed: bool = False
    lasting: bool = False


@dataclass(frozen=True)
class Recorded:
    """The id of the run in the log."""

    run: str


Item = tuple[Lane, Event] | Verdict | Notice | Recorded | Origin
