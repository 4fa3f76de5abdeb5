"""Early exit (self-speculation, as in LayerSkip, Elhoushi et al. 2024): the target's first layers draft token by token.

LayerSkip trains the whole model to exit early; here a small exit is trained on a frozen model.
"""

from __future__ import annotations

from collections.abc import Sequence

from specstream import tree
from specstream.decoding.drafters.levels import likeliest
from specstream.decoding.interfaces import Drafter, ExitSource
from specstream.events import Draft
from specstream.params import EarlyExit
from specstream.tree import Level


class EarlyExitDrafter(Drafter):
    """Drafts a chain of the exit's likeliest tokens, with the next likeliest beside each. ``ids`` are the committed
    tokens; the list grows during the run."""

    def __init__(self, source: ExitSource, ids: Sequence[int], params: EarlyExit) -> None:
        self._source, self._ids, self._params = source, ids, params

    def propose(self, room: int) -> Draft:
        depth = min(self._params.depth, self._params.nodes, room)
        if depth < 1:
            return Draft()
        return tree.caterpillar(self._levels(depth), self._params.nodes)

    def observe(self, row: int) -> None:
        """Nothing to do: accepted tokens are in the target's cache."""

    def _levels(self, depth: int) -> list[Level]:
        levels: list[Level] = []
        token, joint = self._ids[-1], 1.0
        with self._source.early_exit() as logits_after:
            while len(levels) < depth and joint >= self._params.confidence:
                with self.passing(self._source.synchronize):
                    logits = logits_after(token)
                levels += likeliest(logits, self._params.width)
                token, prob = levels[-1][0]
                joint *= prob
        return levels
