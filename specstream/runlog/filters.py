"""The filters and sort orders of the page and the command line, as SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from specstream.runlog.database import RunLogError
from specstream.runlog.serialization import clean

NEWEST = "newest"
SORTS = {
    NEWEST: "started_utc desc, number desc",
    "oldest": "started_utc, number",
    "speed-up": "speedup desc, number desc",
    "tokens per second": "tokens_per_second desc, number desc",
    "tokens per step": "tokens_per_step desc, number desc",
    "tokens": "tokens desc, number desc",
}  # numbers: largest first, unmeasured runs last. Every order has an index (migration m005)


@dataclass(frozen=True)
class Filter:
    """Which runs to list; an empty field matches every run.

    ``search`` holds words, or beginnings of words, of the prompt, the output and the note. ``since`` and ``until`` are
    days, both inclusive, in the time ``zone`` with this name; in UTC if it is empty or unknown here. ``visitor`` None
    means everybody's runs, any text only that visitor's.
    """

    search: str | None = ""
    method: str | None = ""
    model: str | None = ""
    since: str | None = ""
    until: str | None = ""
    zone: str | None = ""
    starred: bool = False
    visitor: str | None = None

    def where(self) -> tuple[str, list[str]]:
        """The SQL condition on ``runs``, and its values. Raises RunLogError for an invalid day."""
        parts = list(self._parts())
        return " and ".join(["1", *(sql for sql, _ in parts)]), [value for _, values in parts for value in values]

    def _parts(self) -> Iterator[tuple[str, list[str]]]:
        if self.visitor is not None:
            yield "visitor = ?", [self.visitor]
        if self.method:
            yield "method = ?", [clean(self.method)]
        if self.model:
            yield "model = ?", [clean(self.model)]
        if self.starred:
            yield "star = 1", []
        if self.since and self.since.strip():
            yield "started_utc >= ?", [self._begin(day(self.since))]
        if self.until and self.until.strip():
            last = min(day(self.until), date.max - timedelta(days=1))
            yield "started_utc < ?", [self._begin(last + timedelta(days=1))]
        if self.search and self.search.strip():
            match = _match(re.findall(r"\w+", clean(self.search)))
            yield "number in (select rowid from runs_fts where runs_fts match ?)", [match]

    def _begin(self, first: date) -> str:
        """When a day begins, in UTC."""
        try:
            return (
                datetime.combine(first, time(), time_zone(self.zone)).astimezone(UTC).replace(tzinfo=None).isoformat()
            )
        except OverflowError:  # the first or last day that there is
            return first.isoformat()


def time_zone(name: str | None) -> tzinfo:
    """The time zone that browsers call so; UTC if it is unknown here."""
    try:
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, LookupError):
        return UTC


def day(text: str) -> date:
    """A day written as 2026-11-24. Raises RunLogError for anything else."""
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise RunLogError(f"{text.strip()!r} is not a day: write it as 2026-11-24.") from None


def order(sort: str) -> str:
    """The SQL of an order. Raises RunLogError for an unknown one."""
    if sort not in SORTS:
        raise RunLogError(f"Runs can't be sorted by {sort!r}: choose one of {', '.join(SORTS)}.")
    return SORTS[sort]


def _match(words: Iterable[str]) -> str:
    """An FTS query for all the words, each matched as a prefix. A search without words matches nothing."""
    return " ".join(f'"{word}"*' for word in words) or '""'
