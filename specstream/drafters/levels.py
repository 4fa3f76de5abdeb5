"""A tree from one distribution per depth: what streams and Medusa heads draft."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from specstream import tree
from specstream.events import Draft
from specstream.params import LevelTree
from specstream.tree import Level


class LevelDrafter:
    """Grows a tree from logits ``[depths, vocab]`` of the row that was accepted last.

    Raises ValueError at once when the full tree that the settings ask for is too large.
    """

    def __init__(self, logits: Callable[[int], Tensor], deepest: int, params: LevelTree) -> None:
        self._logits, self._params = logits, params
        self._depth = min(params.depth or deepest, deepest)
        self._row = 0
        size = tree.full_size(params.width, self._depth)
        if params.tree == "full" and size > tree.FULL_TREE_LIMIT:
            raise ValueError(
                f"A full tree of width {params.width} and depth {self._depth} has {size} nodes, more than "
                f"{tree.FULL_TREE_LIMIT}: choose a smaller width or depth, or the best-first tree."
            )

    def propose(self, room: int) -> Draft:
        depth = min(self._depth, room)
        if depth < 1:
            return Draft()
        levels = likeliest(self._logits(self._row)[:depth], self._params.width)
        return tree.full(levels) if self._params.tree == "full" else tree.best_first(levels, self._params.budget)

    def observe(self, row: int) -> None:
        self._row = row


def likeliest(logits: Tensor, width: int) -> list[Level]:
    """The ``width`` likeliest tokens with their probabilities, for every row of logits ``[rows, vocab]``."""
    top = logits.softmax(-1).topk(width, -1)
    return [
        list(zip(tokens, values, strict=True))
        for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
