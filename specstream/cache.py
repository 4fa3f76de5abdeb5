"""The key-value cache of one run: room reserved ahead, accepted rows moved in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

FIRST_ROOM = 256


class Layer(DynamicLayer):
    """Keys and values of one layer ``[1, heads, length, head_dim]``, as views of a buffer that doubles when full.

    Full length for sliding-window layers too: a window cache drops tokens that a rejected draft must give back. The
    window is in the attention mask instead.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._buffers = [t.new_empty(*t.shape[:2], 0, t.shape[3]) for t in (key_states, value_states)]
        self._show(0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            self._grow(max(end, 2 * start, FIRST_ROOM))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def keep(self, prefix: int, count: int, moved: Tensor | None) -> None:
        """Keep the first ``prefix`` positions and ``count`` after them, which are those of ``moved`` ``[count]`` where
        that is given; drop the rest."""
        if moved is not None:
            for buffer in self._buffers:
                buffer[:, :, prefix : prefix + count] = buffer.index_select(2, moved)
        self._show(prefix + count)

    def _grow(self, room: int) -> None:
        length = self.keys.shape[2]
        for i, old in enumerate(self._buffers):
            new = old.new_empty(*old.shape[:2], room, old.shape[3])
            new[:, :, :length] = old[:, :, :length]
            self._buffers[i] = new

    def _show(self, length: int) -> None:
        self.keys, self.values = (b[:, :, :length] for b in self._buffers)


class TreeCache(Cache):
    """A cache whose every layer can be cut back to an accepted path."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[Layer() for _ in range(layers)])

    def keep(self, prefix: int, rows: Sequence[int], layers: slice = slice(None)) -> None:
        """Keep the first ``prefix`` positions and, after them, ``rows`` (counted from ``prefix``); drop the rest.

        Of some layers, whatever their length: the top layers hold other rows than the rest after a pass.
        """
        chosen = self.layers[layers]
        in_place = list(rows) == list(range(len(rows)))
        moved = None if in_place else torch.tensor([prefix + r for r in rows], device=chosen[0].keys.device)
        for layer in chosen:
            layer.keep(prefix, len(rows), moved)
