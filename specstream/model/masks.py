"""Attention masks as tensors: which rows attend to which keys in a pass over a tree with streams.

In boolean masks, True means that the row attends to the key ("sees" it). The model gets an additive float mask, the
only form that is correct for both eager and SDPA attention.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from specstream.model.introspection import FULL, SLIDING, Anatomy

Masks = dict[str, Tensor]  # by layer type, boolean [B, rows, keys]


def tree_mask(rows: list[list[int]], prefix: int) -> Tensor:
    """Boolean ``[1, n, prefix + n]``: row i sees the prefix and the rows listed in ``rows[i]``."""
    n = len(rows)
    own = [[False] * n for _ in rows]
    for row, visible in zip(own, rows, strict=True):
        for other in visible:
            row[other] = True
    mask = torch.ones(1, n, prefix + n, dtype=torch.bool)
    mask[0, :, prefix:] = torch.tensor(own)
    return mask


def causal_mask(rows: int, prefix: int) -> Tensor:
    """Boolean ``[1, rows, prefix + rows]``: the causal mask of a chain of tokens."""
    return torch.ones(1, rows, prefix + rows, dtype=torch.bool).tril(prefix)


def windowed(mask: Tensor, query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """``mask`` ``[B, q, k]`` without the keys that are ``window`` or more positions before the query.

    By position rather than index, since in a tree the two differ.
    """
    near = query_positions[:, :, None] - key_positions[:, None, :] < window
    return mask & near


def with_streams(mask: Tensor, nodes: Tensor, gamma: int) -> Tensor:
    """Add the stream rows and their keys to the mask of the node rows (equation 2).

    ``mask`` is boolean ``[B, n, k]``; its last n keys are the node rows themselves. ``nodes`` ``[B, S]`` are the rows
    that carry streams. Returns boolean ``[B, n + S*gamma, k + S*gamma]`` with stream rows in the order node, stream.
    Node rows never see a stream. Stream j of a node sees what its node sees, and streams 1..j of the same node.
    """
    batch, n, keys = mask.shape
    view = mask.gather(1, nodes[:, :, None].expand(-1, -1, keys))  # [B, S, k]
    streams = nodes.shape[1] * gamma
    out = mask.new_zeros(batch, n + streams, keys + streams)
    out[:, :n, :keys] = mask
    out[:, n:] = of_streams(view, gamma)
    return out


def of_streams(view: Tensor, gamma: int) -> Tensor:
    """Only the stream rows of ``with_streams``, boolean ``[B, S * gamma, k + S * gamma]``; ``view`` ``[B, S, k]`` is
    what the nodes see."""
    batch, carried, _ = view.shape
    own = _beside(carried, gamma, view.device).expand(batch, -1, -1)
    return torch.cat([view.repeat_interleave(gamma, dim=1), own], 2)


@functools.lru_cache(maxsize=8)
def _beside(nodes: int, gamma: int, device: torch.device) -> Tensor:
    """Boolean ``[S * gamma, S * gamma]``: which streams each stream sees."""
    number = torch.arange(nodes * gamma, device=device)
    node, stream = number // gamma, number % gamma
    return (node[:, None] == node) & (stream[:, None] >= stream)


def additive(mask: Tensor, dtype: torch.dtype, keys: int = 0) -> Tensor:
    """The additive mask ``[B, 1, q, k]`` in ``dtype``: 0 where seen, else the lowest finite number (-inf gives NaN in
    eager attention).

    With ``keys`` the mask is widened to that many keys; the added keys are masked.
    """
    out = torch.full((*mask.shape[:2], keys or mask.shape[2]), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    out[:, :, : mask.shape[2]].masked_fill_(mask, 0)
    return out[:, None]


def layer_masks(anatomy: Anatomy, mask: Tensor, positions: Tensor, prefix: int = 0) -> Masks:
    """What each row sees, by layer type: sliding-window layers mask the keys that are too far back.

    ``mask`` is boolean ``[B, n, prefix + n]`` without a window; ``positions`` ``[B, n]`` are those of the rows, which
    follow ``prefix`` keys.
    """
    assert mask.shape[1:] == (positions.shape[1], prefix + positions.shape[1]), "a mask of other rows or keys"
    masks = {FULL: mask}
    if anatomy.window:
        before = torch.arange(prefix, device=mask.device).expand(len(positions), -1)
        masks[SLIDING] = windowed(mask, positions, torch.cat([before, positions], 1), anatomy.window)
    return {t: masks[t] for t in set(anatomy.layer_types)}


def model_masks(anatomy: Anatomy, masks: Masks, keys: int = 0) -> Any:
    """Masks in the form that the model's forward expects: additive; a single one, or a dict with one per layer type."""
    floats = {t: additive(m, anatomy.dtype, keys) for t, m in masks.items()}
    return floats if anatomy.mask_by_type else floats[anatomy.layer_types[0]]
