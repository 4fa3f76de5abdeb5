"""Hidden states below the trained weights: the same for an example every time, so they are computed once and cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from specstream.training.batches import Batch

GB = 1e9


def batches_passes(device: torch.device) -> bool:
    """Whether many short passes are slower than one padded pass, as on a GPU, where kernel launches dominate."""
    return device.type != "cpu"


class FrozenStates:
    """``compute`` returns states ``[1, n, hidden]`` for token ids ``[1, n]``. At most ``gigabytes`` of them are kept.

    On a CPU, examples are computed one by one without padding, so a state does not depend on its batch and a resumed
    training run sees the same states as an uninterrupted one. On a GPU, where many short passes are slow, the missing
    ones of a batch are computed together, padded on the right, where no earlier row attends.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], gigabytes: float) -> None:
        self._compute, self._room = compute, gigabytes * GB
        self._kept: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def of(self, batch: Batch) -> Tensor:
        """States ``[B, L, hidden]``; zero after the last row of an example that predicts anything."""
        needed = (batch.nodes.amax(1) + 1).tolist()
        examples = [ids[:count] for ids, count in zip(batch.ids, needed, strict=True)]
        together = self._together(examples) if batches_passes(batch.ids.device) else {}
        rows = [self._row(ids, together) for ids in examples]
        out = rows[0].new_zeros(*batch.ids.shape, rows[0].shape[-1], device=batch.ids.device)
        for place, row in zip(out, rows, strict=True):
            place[: len(row)] = row
        return out

    def _together(self, examples: Sequence[Tensor]) -> dict[tuple[int, ...], Tensor]:
        """States of the examples that are not cached, from one pass."""
        missing = {key: ids for ids in examples if (key := tuple(ids.tolist())) not in self._kept}
        if not missing:
            return {}
        padded = nn.utils.rnn.pad_sequence(list(missing.values()), batch_first=True)
        states = self._compute(padded).cpu()
        return {key: row[: len(key)].clone() for key, row in zip(missing, states, strict=True)}

    def _row(self, ids: Tensor, together: dict[tuple[int, ...], Tensor]) -> Tensor:
        key = tuple(ids.tolist())
        if key in self._kept:
            return self._kept[key]
        states = together[key] if key in together else self._compute(ids[None])[0].cpu()
        size = states.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[key] = states
        return states
