"""Heads that draft for a model as alternatives to streams: Medusa heads, and the exit of early-exit drafting.

They are stored in an adapter's folder, one file per kind, and belong to the model with that adapter applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specstream.adapters.card import AdapterError, HeadCard, read_card
from specstream.adapters.weights import Drafting, read_weights
from specstream.model.introspection import Anatomy
from specstream.params import EarlyExit, Medusa

MEDUSA, EXIT = "medusa", "exit"


class MedusaHeads(Drafting):
    """One head per depth (Medusa): ``x + SiLU(W_j x + b_j)``, then a projection to the vocabulary.

    x is the main stream's state after the final norm, which is the LM head's input: with W zero, a head that shares
    the LM head starts equal to it, and needs no norm of its own. ``square`` W is ``[count, hidden, hidden]``, ``bias``
    ``[count, hidden]``. With "own" projections, as published, there is a ``projection``
    ``[count, draft vocabulary, hidden]``, initialised with the LM head's rows; else the LM head itself is used.
    """

    def __init__(self, anatomy: Anatomy, card: HeadCard, ids: Tensor | None = None) -> None:
        super().__init__(anatomy, card.draft_vocabulary, ids)
        self.card = card
        width = state_size(anatomy)
        self.square = nn.Parameter(torch.zeros(card.count, width, width))
        self.bias = nn.Parameter(torch.zeros(card.count, width))
        if card.projection == "own":
            self.projection = nn.Parameter(self._rows(anatomy).repeat(card.count, 1, 1))

    def _rows(self, anatomy: Anatomy) -> Tensor:
        """The LM head's weight for the draft vocabulary. Raises AdapterError for a head that is not linear."""
        head = self._head or anatomy.head
        if not isinstance(head, nn.Linear):
            raise AdapterError(
                "Own projections need a linear LM head, which this model does not have: use shared ones."
            )
        return head.weight.detach().float()

    def states(self, x: Tensor) -> Tensor:
        """Inputs of the projections, ``[..., count, hidden]``, from main-stream states ``[..., hidden]``."""
        inner = torch.einsum("...i,coi->...co", x, self.square.to(x.dtype)) + self.bias.to(x.dtype)
        return x[..., None, :] + F.silu(inner)

    def scores(self, anatomy: Anatomy, states: Tensor, head: int) -> Tensor:
        """Logits, float32 ``[..., draft vocabulary]``, of one head's states ``[..., hidden]``."""
        if self.card.projection == "own":
            return (states @ self.projection[head].to(states.dtype).T).float()
        return self.head_logits(anatomy, states)

    def row_scores(self, anatomy: Anatomy, x: Tensor) -> Tensor:
        """Logits, float32 ``[count, draft vocabulary]``, of every head from one row's state ``[hidden]``."""
        states = self.states(x)
        if self.card.projection == "own":
            return torch.stack([self.scores(anatomy, s, head) for head, s in enumerate(states)])
        return self.head_logits(anatomy, states)


class ExitHead(Drafting):
    """The exit of early-exit drafting: ``M + B SiLU(A M)`` on the hidden state M after the first layers, then the
    model's own final norm and LM head.

    ``down`` A is ``[rank, hidden]``; ``up`` B ``[hidden, rank]`` is initialised to zero, so training starts from the
    model's own head.
    """

    def __init__(self, anatomy: Anatomy, card: HeadCard, ids: Tensor | None = None) -> None:
        super().__init__(anatomy, card.draft_vocabulary, ids)
        if not 0 < card.layers < len(anatomy.layers):
            raise AdapterError(f"An exit must be after layer 1 to {len(anatomy.layers) - 1}, not {card.layers}.")
        self.card = card
        width = anatomy.hidden_size
        self.down = nn.Parameter(torch.randn(card.rank, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(width, card.rank))

    def states(self, main: Tensor) -> Tensor:
        """Inputs of the final norm, ``[..., hidden]``, from states after the first layers, ``[..., hidden]``."""
        return main + F.silu(main @ self.down.to(main.dtype).T) @ self.up.to(main.dtype).T

    def logits(self, anatomy: Anatomy, main: Tensor) -> Tensor:
        """Logits, float32 ``[..., vocab]``, from states after the first layers ``[..., hidden]``."""
        return self.spread(anatomy, self.draft_logits(anatomy, self.states(main)))


KINDS: dict[str, type[MedusaHeads] | type[ExitHead]] = {MEDUSA: MedusaHeads, EXIT: ExitHead}


@dataclass(frozen=True)
class Heads:
    """The heads loaded with a model."""

    medusa: MedusaHeads | None = None
    exit: ExitHead | None = None

    def parameters(self) -> dict[str, int]:
        """The number of weights per method, by its name."""
        have = {Medusa.name: self.medusa, EarlyExit.name: self.exit}
        return {name: part.parameter_count() for name, part in have.items() if part is not None}

    def ready(self, anatomy: Anatomy, pack: Callable[[nn.Linear], nn.Module] | None) -> None:
        """Prepare for decoding: convert to the model's number format, and pack the restricted LM head."""
        for part in filter(None, (self.medusa, self.exit)):
            part.to(anatomy.dtype)
            if pack:
                part.pack_head(pack)


def state_size(anatomy: Anatomy) -> int:
    """The input width of the LM head; some families first project from the hidden size to another."""
    return int(getattr(anatomy.head, "in_features", anatomy.hidden_size))


def load(folder: Path, anatomy: Anatomy) -> Heads:
    """The heads in an adapter's folder. Raises AdapterError if they are damaged."""
    cards = read_card(folder).heads
    found: dict[str, Any] = {}
    for kind, card in cards.items():
        found[kind] = read_weights(KINDS[kind](anatomy, card), folder / card.file, anatomy)
    return Heads(**found)
