"""The headline of a run, as HTML. Every text from outside is escaped here."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

ALIKE = 0.05  # a ratio this close to 1 counts as equal
NOISY = "This machine is busy, so timings vary. Measure again."


@dataclass(frozen=True)
class Remedy:
    """A button that fixes a slow run: its label, and what it does: load the task's adapter, or set the default tree
    budget."""

    label: str
    loads: bool = False


@dataclass(frozen=True)
class Headline:
    """``main`` is read first, ``parts`` are beside it, ``below`` are sentences in small type."""

    tone: str
    main: str
    parts: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    details: str = ""
    remedy: Remedy | None = None


def headline(said: Headline) -> str:
    """Always two lines, so that nothing moves when they change."""
    parts = "".join(f"<span>{escape(part)}</span>" for part in said.parts)
    below = escape(" ".join(said.below))
    more = f"<details><summary>details</summary>{escape(said.details)}</details>" if said.details else ""
    return (
        f'<div class="ss-headline ss-{escape(said.tone)}"><p><strong>{escape(said.main)}</strong>{parts}</p>'
        f'<div class="ss-below">{below} {more}</div></div>'
    )
