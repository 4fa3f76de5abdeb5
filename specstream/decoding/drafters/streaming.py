"""Speculative Streaming (Bhendawade et al. 2024): the streams of the last accepted row draft the next tree."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specstream.decoding.drafters.levels import LevelDrafter
from specstream.decoding.drafters.prompt_lookup import PromptLookupDrafter
from specstream.decoding.interfaces import StreamSource
from specstream.events import Draft
from specstream.params import PromptLookup, Streaming
from specstream.tree import Candidates


class StreamingDrafter(LevelDrafter):
    """Drafts with the streams of the last accepted row.

    With ``lookup`` it drafts an n-gram copy instead where the end of ``ids``, the growing list of committed tokens,
    occurred before; this costs no pass. If nothing of a copy was accepted, the streams draft next.

    ``params`` must be settled for the device. Raises ValueError at once if they ask for a full tree that is too large.
    """

    def __init__(self, source: StreamSource, params: Streaming, ids: Sequence[int]) -> None:
        super().__init__(source, source.stream_logits, source.stream_ids, source.gamma, params)
        self._text = ids
        self._pairs = source.stream_pairs if params.pairs == "on" else None
        self._copies = PromptLookupDrafter(ids, copying(params)) if params.lookup > 0 else None
        self._copied = False

    def _candidates(self, logits: Tensor) -> Candidates:
        if self._pairs is None:
            return super()._candidates(logits)
        return self._pairs(logits, self._text[-1], self._params.width)

    def propose(self, room: int) -> Draft:
        if self._copies and not self._copied:
            draft = self._copies.propose(room)
            self._copied = len(draft) > 0
            if self._copied:
                return draft
        self._copied = False
        return super().propose(room)

    def observe(self, row: int) -> None:
        super().observe(row)
        self._copied = self._copied and row == 0


def copying(params: Streaming) -> PromptLookup:
    """Settings for copies: one path, as long as the budget, after a match of at least ``lookup`` tokens."""
    depth = min(params.nodes, 16)
    return PromptLookup(params.nodes, depth, candidates=1, longest=params.lookup, shortest=params.lookup)
