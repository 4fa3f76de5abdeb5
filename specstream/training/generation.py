"""Batched generation with a stock model, for its own answers and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from specstream.model.introspection import Anatomy

KEPT = 0.75  # the batch is compacted once at most this share of its rows is still open


class _Layer(CacheLayerMixin):
    """Keys and values of one layer in a preallocated buffer ``[rows, heads, room, head_dim]``: no copy per token."""

    is_sliding = False

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room, self.length = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def buffer(like: Tensor) -> Tensor:
            return like.new_empty(*like.shape[:2], self._room, like.shape[3])

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


@torch.inference_mode()
def write(
    anatomy: Anatomy,
    prompts: Sequence[Sequence[int]],
    most: int,
    temperatures: Sequence[float],
    seed: int,
    end: Sequence[int],
) -> list[list[int]]:
    """Continue prompts of token ids, each at its own temperature; 0 is greedy.

    Every text stops with its first token of ``end``, or after ``most`` tokens. Texts depend only on their batch and on
    ``seed``.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[end[0]] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    batch = _Batch(anatomy, ids, mask, most, torch.tensor(temperatures), seed, torch.tensor(end))
    while batch.open:
        batch.step()
    return batch.texts


class _Batch:
    """A batch of texts being written; rows that have ended are removed from the passes."""

    def __init__(
        self, anatomy: Anatomy, ids: Tensor, mask: Tensor, most: int, temperatures: Tensor, seed: int, end: Tensor
    ) -> None:
        self.texts: list[list[int]] = [[] for _ in ids]
        self.open = list(range(len(ids)))  # for every row of the passes, the index of its text
        self._done = [False] * len(ids)
        self._anatomy, self._most, self._end = anatomy, most, set(end.tolist())
        self._cache = Cache(layers=[_Layer(ids.shape[1] + most) for _ in anatomy.layers])
        self._ids, self._mask = ids.to(anatomy.device), mask.to(anatomy.device)
        self._positions = (self._mask.cumsum(1) - 1).clamp_min(0)
        self._temperatures = temperatures
        self._random = torch.Generator().manual_seed(seed)

    def step(self) -> None:
        """Append one token to every open text."""
        logits = self._anatomy.model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        chosen = self._choose(logits.float())
        for text, token in zip(self.open, chosen.tolist(), strict=True):
            if not self._done[text]:
                self.texts[text].append(token)
                self._done[text] = token in self._end or len(self.texts[text]) == self._most
        self._ids = chosen[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
        self._drop_done()

    def _choose(self, logits: Tensor) -> Tensor:
        """One token per row, ``[rows]``: the likeliest, or sampled with one random number at a temperature above 0."""
        best = logits.argmax(1)
        hot = self._temperatures[self.open]
        points = torch.rand(len(self.texts), generator=self._random)[
            self.open
        ]  # drawn for all texts, so that none depends on which are open
        rows = hot.nonzero()[:, 0]
        if len(rows):
            place = rows.to(logits.device)
            sums = (logits[place] / hot[rows, None].to(logits.device)).softmax(1).cumsum(1)
            wanted = points[rows, None].to(logits.device) * sums[:, -1:]
            best[place] = torch.searchsorted(sums, wanted, right=True)[:, 0].clamp_max(logits.shape[1] - 1)
        return best

    def _drop_done(self) -> None:
        left = [row for row, text in enumerate(self.open) if not self._done[text]]
        if len(left) > KEPT * len(self.open):
            return
        self.open = [self.open[row] for row in left]
        rows = torch.tensor(left, dtype=torch.long, device=self._ids.device)
        self._ids, self._positions, self._mask = self._ids[rows], self._positions[rows], self._mask[rows]
        for layer in self._cache.layers:
            layer.keep(rows)
