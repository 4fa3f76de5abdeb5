"""The line that says what a run comes to, as HTML. Every text from outside is escaped here."""

from __future__ import annotations

from html import escape

from ..state.headline import Headline


def headline(said: Headline) -> str:
    """Two lines, always: so that nothing moves when they change."""
    parts = "".join(f"<span>{escape(part)}</span>" for part in said.parts)
    below = escape(" ".join(said.below))
    more = f"<details><summary>details</summary>{escape(said.details)}</details>" if said.details else ""
    return (
        f'<div class="ss-headline ss-{escape(said.tone)}"><p><strong>{escape(said.main)}</strong>{parts}</p>'
        f'<div class="ss-below">{below} {more}</div></div>'
    )
