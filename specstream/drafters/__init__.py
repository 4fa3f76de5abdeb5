"""Drafters: what is proposed. One small file per method; the loop and the target are shared by all."""

from __future__ import annotations

from typing import Protocol

from specstream.events import Draft


class Drafter(Protocol):
    """Proposes trees of tokens."""

    def propose(self, room: int) -> Draft:
        """A tree at most ``room`` deep for the tokens after the newest committed one; may be empty."""
        ...

    def observe(self, row: int) -> None:
        """The last accepted row of the pass that just ended (0 is its root)."""
        ...
