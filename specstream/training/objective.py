"""The n-gram objective (equation 5) over one batch."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specstream.adapters import Adapter
from specstream.anatomy import FULL, SLIDING, Anatomy
from specstream.masks import additive, windowed
from specstream.streams import Plan, carry
from specstream.training.data import IGNORE, Batch


class StreamModel(nn.Module):
    """The frozen base with its adapter, as one module whose forward gives the losses.

    Only the adapter is registered, so an optimiser, a checkpoint or a distributed wrapper sees nothing else.
    """

    def __init__(self, anatomy: Anatomy, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self._anatomy = [anatomy]  # in a list: the base model must not become a submodule

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (nats) and top-1 accuracy of the main stream (0) and each stream, ``[1 + gamma]`` each."""
        main, streams = self._states(batch)  # [B, S, h] after the final norm, [B, S, gamma, h] before it
        valid = batch.targets != IGNORE
        anatomy = self._anatomy[0]
        losses, hits = [], []
        for j in range(batch.targets.shape[2]):
            rows = valid[:, :, j]
            logits = anatomy.head_logits(main[rows]) if j == 0 else anatomy.logits(streams[:, :, j - 1][rows])
            target = batch.targets[:, :, j][rows]
            losses.append(F.cross_entropy(logits, target) if len(target) else logits.sum())
            hits.append((logits.argmax(-1) == target).float().mean() if len(target) else logits.sum())
        return torch.stack(losses), torch.stack(hits).detach()

    def _states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        anatomy, adapter = self._anatomy[0], self.adapter
        masks = layer_masks(anatomy, batch)
        plan = Plan(masks, batch.positions, batch.nodes)
        floats = {t: additive(m, anatomy.dtype) for t, m in masks.items()}
        first = 0 if adapter.card.mode == "shared" else batch.ids.shape[1]
        rows = batch.ids.shape[1] + batch.nodes.shape[1] * adapter.card.gamma
        lora = adapter.lora.attached(anatomy, first, rows) if adapter.lora else nullcontext()
        with lora, carry(anatomy, adapter.streams, plan) as carried:
            out = anatomy.decoder(
                input_ids=batch.ids,
                attention_mask=floats if anatomy.mask_by_type else floats[anatomy.layer_types[0]],
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
        index = batch.nodes[:, :, None].expand(-1, -1, out.shape[-1])
        return out.gather(1, index), carried.states


def layer_masks(anatomy: Anatomy, batch: Batch) -> dict[str, Tensor]:
    """The boolean mask of every layer type of the model, ``[B, L, L]``."""
    masks = {FULL: batch.mask}
    if anatomy.window:
        masks[SLIDING] = windowed(batch.mask, batch.positions, batch.positions, anatomy.window)
    return {t: masks[t] for t in set(anatomy.layer_types)}


def objective(losses: Tensor, alpha: float, mode: str) -> Tensor:
    """Equation 5 with one weight ``alpha`` for all streams; in lossless mode the main stream is not trained."""
    streams = alpha * losses[1:].sum()
    return streams if mode == "lossless" else losses[0] + streams
