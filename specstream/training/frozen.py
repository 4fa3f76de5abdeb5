"""States below the weights that are trained: the same for an example every time, so computed once and kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specstream.training.data import Batch

GB = 1e9


class FrozenStates:
    """``compute`` gives states ``[1, n, hidden]`` for token ids ``[1, n]``. At most ``gigabytes`` of them are kept.

    Examples are computed one by one and never padded, so that a state does not depend on what it was batched with:
    a training that is resumed sees what an uninterrupted one saw.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], gigabytes: float) -> None:
        self._compute, self._room = compute, gigabytes * GB
        self._kept: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def of(self, batch: Batch) -> Tensor:
        """States ``[B, L, hidden]``; zero behind an example's last row that predicts anything."""
        needed = (batch.nodes.amax(1) + 1).tolist()
        rows = [self._row(ids[:count]) for ids, count in zip(batch.ids, needed, strict=True)]
        out = rows[0].new_zeros(*batch.ids.shape, rows[0].shape[-1], device=batch.ids.device)
        for place, row in zip(out, rows, strict=True):
            place[: len(row)] = row
        return out

    def _row(self, ids: Tensor) -> Tensor:
        key = tuple(ids.tolist())
        if key in self._kept:
            return self._kept[key]
        states = self._compute(ids[None])[0].cpu()
        size = states.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[key] = states
        return states
