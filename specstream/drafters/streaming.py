"""Speculative Streaming: the streams of the last accepted row are the next tree."""

from __future__ import annotations

from specstream import tree
from specstream.events import Draft
from specstream.params import Streaming
from specstream.target import StreamSource


class StreamingDrafter:
    """Reads the streams of the row that was accepted last.

    Raises ValueError at once when the full tree that the settings ask for is too large, or when they ask for pruning
    and the source can't.
    """

    def __init__(self, source: StreamSource, params: Streaming) -> None:
        self._source, self._params = source, params
        self._depth = min(params.depth or source.gamma, source.gamma)
        self._row = 0
        size = tree.full_size(params.width, self._depth)
        if params.tree == "full" and size > tree.FULL_TREE_LIMIT:
            raise ValueError(
                f"A full tree of width {params.width} and depth {self._depth} has {size} nodes, more than "
                f"{tree.FULL_TREE_LIMIT}: choose a smaller width or depth, or the best-first tree."
            )
        source.prepare(params.streams == "deferred", params.prune)

    def propose(self, room: int) -> Draft:
        depth = min(self._depth, room)
        if depth < 1:
            return Draft()
        probs = self._source.stream_logits(self._row)[:depth].softmax(-1)  # [depth, vocab]
        top = probs.topk(self._params.width, -1)
        levels = [
            list(zip(tokens, values, strict=True))
            for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        return tree.full(levels) if self._params.tree == "full" else tree.best_first(levels, self._params.budget)

    def observe(self, row: int) -> None:
        self._row = row
