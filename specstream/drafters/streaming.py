"""Speculative Streaming: the streams of the last accepted row are the next tree."""

from __future__ import annotations

from specstream.drafters.levels import LevelDrafter
from specstream.params import Streaming
from specstream.target import StreamSource


class StreamingDrafter(LevelDrafter):
    """Reads the streams of the row that was accepted last.

    Raises ValueError at once when the full tree that the settings ask for is too large, or when they ask for pruning
    and the source can't.
    """

    def __init__(self, source: StreamSource, params: Streaming) -> None:
        super().__init__(source, source.stream_logits, source.gamma, params)
        source.prepare(params.on(source.device_type).streams == "deferred", params.prune)
