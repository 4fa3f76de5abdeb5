"""What a job tells the page, beside the events of its runs."""

from __future__ import annotations

from dataclasses import dataclass

from specstream.events import Event, Lane, Verdict

from .origin import Origin


@dataclass(frozen=True)
class Notice:
    """A status message. ``failed``: the job can't go on; ``lasting``: it is to be shown when the job has ended too."""

    text: str
    failed: bool = False
    lasting: bool = False


@dataclass(frozen=True)
class Recorded:
    """The id of the run in the log."""

    run: str


Item = tuple[Lane, Event] | Verdict | Notice | Recorded | Origin
