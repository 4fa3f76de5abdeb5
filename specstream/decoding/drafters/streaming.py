"""Speculative Streaming (Bhendawade et al. 2024): the streams of the last accepted row draft the next tree."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specstream.decoding.drafters.levels import LevelDrafter
from specstream.decoding.interfaces import StreamSource
from specstream.params import Streaming
from specstream.tree import Candidates


class StreamingDrafter(LevelDrafter):
    """Drafts with the streams of the last accepted row, and with copies of ``ids``, the growing list of committed
    tokens.

    ``params`` must be settled for the device. Raises ValueError at once if they ask for a full tree that is too large.
    """

    def __init__(self, source: StreamSource, params: Streaming, ids: Sequence[int]) -> None:
        super().__init__(source, source.stream_logits, source.stream_ids, source.gamma, params, ids)
        self._pairs = source.stream_pairs if params.pairs == "on" else None

    def _candidates(self, logits: Tensor) -> Candidates:
        if self._pairs is None:
            return super()._candidates(logits)
        return self._pairs(logits, self._text[-1], self._params.width)
