"""Where a stop string ends a text. What may still become one is held back by ``detokenize``."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stop: Sequence[str]) -> int | None:
    """The index at which the stop string that is complete first begins; None if there is none in the text."""
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return min(found)[1] if found else None


def begun(text: str, stop: Sequence[str]) -> int:
    """The number of characters at the end of the text that could be the start of a stop string."""
    starts = (s[:n] for s in stop for n in range(1, min(len(s), len(text) + 1)))
    return max((len(start) for start in starts if text.endswith(start)), default=0)
