"""The key-value cache of one run: buffers grow in blocks, and accepted rows are moved in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

BLOCK = 64  # capacity grows by this many positions; in between, passes keep their shape


class Buffers:
    """Keys ``[layers, 1, heads, head_dim, capacity]`` and values ``[layers, 1, heads, capacity, head_dim]`` of all
    layers with these shapes: one tensor each, so that rows of all layers are moved by one call. Zero where unused."""

    def __init__(self, layers: int, key: Tensor, value: Tensor, capacity: int) -> None:
        self.keys = key.new_zeros(layers, 1, key.shape[1], key.shape[3], capacity)
        self.values = value.new_zeros(layers, 1, value.shape[1], capacity, value.shape[3])
        self.by_layer = list(zip(self.keys, self.values, strict=True))

    def reserve(self, capacity: int) -> None:
        more = capacity - self.keys.shape[-1]
        self.keys, self.values = pad(self.keys, (0, more)), pad(self.values, (0, 0, 0, more))
        self.by_layer = list(zip(self.keys, self.values, strict=True))

    def move(self, start: int, sources: Tensor, layers: slice) -> None:
        """Copy the positions ``sources`` to the positions from ``start`` on."""
        end = start + len(sources)
        self.keys[layers, ..., start:end] = self.keys[layers].index_select(4, sources)
        self.values[layers, ..., start:end, :] = self.values[layers].index_select(3, sources)


class Layer(CacheLayerMixin):
    """One layer of a TreeCache. Attention gets the whole buffers, with a mask for the unused part.

    Sliding-window layers have the full length too: a window cache would evict tokens that are needed again after a
    rejected draft.
    """

    is_sliding = False

    def __init__(self, cache: TreeCache, index: int) -> None:
        self._cache, self._index = cache, index
        self._buffers: Buffers | None = None
        self.length = 0
        super().__init__()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._buffers = self._cache.buffers(key_states, value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values ``[1, heads, rows, head_dim]``. Returns the whole buffers in that layout."""
        start = self.append(key_states.shape[2])
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.whole()
        keys[..., start : self.length] = key_states.transpose(2, 3)
        values[:, :, start : self.length] = value_states
        return keys.transpose(2, 3), values

    def append(self, rows: int) -> int:
        """Count rows that are written elsewhere. Returns the position of the first."""
        start, self.length = self.length, self.length + rows
        assert self.length <= self._cache.capacity, "rows without room: reserve it before the pass"
        return start

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys ``[1, heads, head_dim, capacity]`` and values ``[1, heads, capacity, head_dim]``."""
        assert self._buffers is not None
        return self._buffers.by_layer[self._index]

    @property
    def keys(self) -> Tensor | None:
        """Keys so far, ``[1, heads, length, head_dim]``."""
        return self.whole()[0][..., : self.length].transpose(2, 3) if self._buffers else None

    @keys.setter
    def keys(self, _: Tensor | None) -> None:
        """The base class sets it to None."""

    @property
    def values(self) -> Tensor | None:
        """Values so far, ``[1, heads, length, head_dim]``."""
        return self.whole()[1][:, :, : self.length] if self._buffers else None

    @values.setter
    def values(self, _: Tensor | None) -> None:
        """The base class sets it to None."""

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.capacity, 0

    def get_max_length(self) -> int:
        return -1


class TreeCache(Cache):
    """A cache that can be cut back to an accepted path. ``capacity`` is the number of keys that masks must cover."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[Layer(self, i) for i in range(layers)])
        self.capacity = BLOCK
        self._buffers: dict[tuple[int, ...], Buffers] = {}
        self._slots: tuple[tuple[int, int], Tensor] | None = None

    def examples(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of no positions, of every layer, from which ``initialize`` makes another run's cache."""
        whole = (layer.whole() for layer in self.layers)
        return [(keys[..., :0].transpose(2, 3).clone(), values[:, :, :0].clone()) for keys, values in whole]

    def initialize(self, examples: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Allocate buffers now instead of in the first pass: compiled layers need them."""
        for layer, (keys, values) in zip(self.layers, examples, strict=True):
            layer.lazy_initialization(keys, values)

    def buffers(self, key: Tensor, value: Tensor) -> Buffers:
        """Allocate buffers for layers whose keys and values have the shapes of ``key`` and ``value``."""
        shape = (key.shape[1], key.shape[3], value.shape[1], value.shape[3])
        if shape not in self._buffers:
            self._buffers[shape] = Buffers(len(self.layers), key, value, self.capacity)
        return self._buffers[shape]

    def reserve(self, length: int) -> None:
        """Make sure that every layer has space for ``length`` positions."""
        if length > self.capacity:
            self.capacity = -(-length // BLOCK) * BLOCK
            for buffers in self._buffers.values():
                buffers.reserve(self.capacity)

    def slots(self, start: int, rows: int) -> Tensor:
        """The positions ``[rows]`` from ``start`` on; one tensor for all layers of a pass."""
        if self._slots is None or self._slots[0] != (start, rows):
            self._slots = (start, rows), torch.arange(start, start + rows)
        return self._slots[1]

    def keep(self, prefix: int, rows: Sequence[int], layers: slice = slice(None)) -> None:
        """Keep the first ``prefix`` positions and, after them, ``rows`` (counted from ``prefix``); drop the rest.

        Applies to the given layers, whatever their length: after a pass the top layers hold different rows.
        """
        if list(rows) != list(range(len(rows))):
            for buffers in self._buffers.values():
                sources = torch.tensor([prefix + r for r in rows], device=buffers.keys.device)
                buffers.move(prefix, sources, layers)
        for layer in self.layers[layers]:
            layer.length = prefix + len(rows)
