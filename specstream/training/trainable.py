"""The interface of trained models: a frozen base with streams, or with heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.adapters.card import Card
from specstream.adapters.weights import Drafting
from specstream.decoding.interfaces import Drafter, Target
from specstream.model.introspection import Anatomy
from specstream.model.masks import layer_masks, model_masks
from specstream.training.batches import IGNORE, Batch


class Trainee(nn.Module, ABC):
    """A frozen base and the trained weights, as one module whose forward returns the losses.

    Only the trained weights are registered, so an optimizer, a checkpoint or a distributed wrapper sees nothing else.
    ``ahead`` is how many tokens beyond the next one a batch must have targets for, ``drafting`` the number of loss
    columns that belong to streams or heads, and ``checkpoint`` the name of the checkpoint's folder.
    """

    ahead: int
    drafting: int
    checkpoint: str

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        self._anatomy = [anatomy]  # in a list: the base model must not become a submodule

    @property
    def anatomy(self) -> Anatomy:
        return self._anatomy[0]

    @property
    @abstractmethod
    def part(self) -> Drafting:
        """The weights that are trained."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Sums over the batch, ``[3, columns]``: cross-entropy in nats, tokens guessed right (top 1), tokens counted.

        Column 0 is the main stream; if it is not trained, it is counted in evaluation mode only.
        """

    @abstractmethod
    def counts(self, batch: Batch) -> Tensor:
        """The number of tokens that each column counts ``[columns]``, without a forward pass."""

    @abstractmethod
    def lane(self, ids: list[int], budget: int) -> tuple[Target, Drafter]:
        """A target and a drafter for a run from ``ids``, which grow during the run, with trees of ``budget`` nodes."""

    def tuned(self) -> AbstractContextManager[object]:
        """A context for decoding, in which the base computes as it does with the trained weights loaded."""
        return nullcontext()

    @abstractmethod
    def described(self, training: dict[str, Any], metrics: dict[str, Any], date: str) -> Card:
        """The card, including how the weights were trained."""

    @abstractmethod
    def save(self, folder: Path, card: Card) -> None:
        """Write the weights and the card into an adapter's folder."""

    @abstractmethod
    def changed(self, before: Card) -> list[str]:
        """The settings in which a checkpoint with this card differs from this training run."""

    def in_vocabulary(self, targets: Tensor) -> Tensor:
        """Targets as indices into the draft vocabulary; IGNORE for tokens that are not in it."""
        ids = self.part.vocabulary
        if ids is None:
            return targets
        ids = ids.to(targets.device)
        index = torch.searchsorted(ids, targets.clamp_min(0)).clamp_max(len(ids) - 1)
        return index.where((ids[index] == targets) & (targets != IGNORE), IGNORE)


def decoder_call(anatomy: Anatomy, batch: Batch) -> dict[str, Any]:
    """The arguments of the model's decoder for a batch."""
    masks = layer_masks(anatomy, batch.mask, batch.positions)
    return {
        "input_ids": batch.ids,
        "attention_mask": model_masks(anatomy, masks),
        "position_ids": batch.positions,
        "use_cache": False,
    }


def rows_of(states: Tensor, index: Tensor) -> Tensor:
    """The rows ``index`` ``[B, R]`` of states ``[B, L, hidden]``."""
    return states.gather(1, index[:, :, None].expand(-1, -1, states.shape[-1]))
