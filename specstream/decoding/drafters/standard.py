"""Standard decoding: the loop with an empty draft."""

from __future__ import annotations

from specstream.decoding.interfaces import Drafter
from specstream.events import Draft


class StandardDrafter(Drafter):
    """Drafts nothing."""

    def propose(self, room: int) -> Draft:
        return Draft()

    def observe(self, row: int) -> None:
        """Nothing to do."""
