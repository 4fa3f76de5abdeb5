"""Training heads: the base and its adapter are frozen and only run forward."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from specstream.adapters import weights
from specstream.adapters.card import CARD, WEIGHTS, Card, HeadCard, files, read_card, write_card
from specstream.adapters.heads import MEDUSA, ExitHead, Heads, MedusaHeads
from specstream.adapters.weights import Adapter
from specstream.decoding.drafters.early_exit import EarlyExitDrafter
from specstream.decoding.drafters.medusa import MedusaDrafter
from specstream.decoding.interfaces import Drafter, Target
from specstream.model.introspection import Anatomy
from specstream.model.partial_forward import run_below
from specstream.params import EarlyExit, Medusa
from specstream.target.model_target import ModelTarget
from specstream.training.batches import IGNORE, Batch, DataError
from specstream.training.config import Config
from specstream.training.frozen_cache import FrozenStates
from specstream.training.loss import noting, sums_of
from specstream.training.trainable import Trainee, decoder_call, rows_of


class HeadModel(Trainee):
    """A base with its adapter merged into its weights, and new heads of one kind.

    ``card`` is the card of the adapter in the folder ``start`` (None: the bare base).
    """

    drafting = 1
    ahead = 0

    def __init__(
        self, anatomy: Anatomy, card: Card, start: Path | None, part: MedusaHeads | ExitHead, cache: float
    ) -> None:
        super().__init__(anatomy)
        self.heads = part
        self._frozen = FrozenStates(self._run, cache)
        self._card, self._start = card, start
        self.checkpoint = f"checkpoint-{part.card.kind}"

    @abstractmethod
    def _run(self, ids: Tensor) -> Tensor:
        """The hidden states ``[1, n, hidden]`` that the heads read, for token ids ``[1, n]``."""

    @property
    def part(self) -> MedusaHeads | ExitHead:
        return self.heads

    def described(self, training: dict[str, Any], metrics: dict[str, Any], date: str) -> Card:
        card = self.heads.card
        card = replace(card, training={**card.training, **training}, metrics=metrics, date=date)
        return replace(self._card, heads=self._card.heads | {card.kind: card})

    def save(self, folder: Path, card: Card) -> None:
        """Write the heads beside the adapter, which is first copied there if the folder has none."""
        if not (folder / CARD).is_file():
            self._put_adapter(folder)
        kind = self.heads.card.kind
        weights.save_weights(self.heads, folder / self.heads.card.file)
        have = read_card(folder)  # heads of another kind may have been added meanwhile
        write_card(folder, replace(have, heads=have.heads | {kind: card.heads[kind]}))

    def _put_adapter(self, folder: Path) -> None:
        if self._start is None:
            weights.save(Adapter(self.anatomy, self._card), folder, self._card)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in files(self._card):
            shutil.copyfile(self._start / name, folder / name)

    def changed(self, before: Card) -> list[str]:
        kind, shape = self.heads.card.kind, self.heads.card.shape()
        if replace(before, heads={}) != replace(self._card, heads={}):
            return ["adapter"]
        if kind not in before.heads:
            return ["heads"]
        old = before.heads[kind].shape()
        return [n for n in shape if old[n] != shape[n]]

    def _main(self, states: Tensor, targets: Tensor) -> Tensor:
        """The sums of the main stream, which is not trained."""
        if self.training:
            return states.new_zeros(3, dtype=torch.float32)
        return sums_of(self.anatomy.head_logits, states, targets)


class MedusaModel(HeadModel):
    """Medusa heads: head j learns the token j positions after the one that the LM head predicts."""

    heads: MedusaHeads

    def __init__(self, anatomy: Anatomy, card: Card, start: Path | None, part: MedusaHeads, cache: float) -> None:
        super().__init__(anatomy, card, start, part, cache)
        self.ahead = self.drafting = part.card.count

    def _run(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.anatomy.decoder(input_ids=ids, use_cache=False).last_hidden_state)

    def forward(self, batch: Batch) -> Tensor:
        main = rows_of(self._frozen.of(batch), batch.nodes)
        drafted, states = self.in_vocabulary(batch.targets[:, :, 1:]), self.heads.states(main)
        columns = [self._column(j, states[:, :, j], drafted[:, :, j]) for j in range(self.drafting)]
        return torch.stack([self._main(main, batch.targets[:, :, 0]), *columns], 1)

    def _column(self, head: int, states: Tensor, targets: Tensor) -> Tensor:
        if self.heads.card.projection == "shared":
            return sums_of(lambda part: self.heads.scores(self.anatomy, part, head), states, targets)
        valid = targets != IGNORE  # the projection needs a gradient too, which the chunked sums don't provide
        logits, targets = self.heads.scores(self.anatomy, states[valid], head), targets[valid]
        hits = (logits.argmax(-1) == targets).sum()
        return torch.stack([F.cross_entropy(logits, targets, reduction="sum"), hits, valid.sum()])

    def counts(self, batch: Batch) -> Tensor:
        drafted = self.in_vocabulary(batch.targets[:, :, 1:])
        return torch.cat([(batch.targets[:, :, :1] != IGNORE).sum((0, 1)), (drafted != IGNORE).sum((0, 1))])

    def lane(self, ids: list[int], budget: int) -> tuple[Target, Drafter]:
        target = ModelTarget(self.anatomy, heads=Heads(medusa=self.heads))
        return target, MedusaDrafter(target, Medusa(budget=budget, pause=0, copies="off"), ids)


class ExitModel(HeadModel):
    """The exit of early-exit drafting learns the next token from the hidden state after the first layers."""

    heads: ExitHead

    def _run(self, ids: Tensor) -> Tensor:
        return run_below(self.anatomy, self.heads.card.layers, input_ids=ids, use_cache=False)

    def forward(self, batch: Batch) -> Tensor:
        entry, out = self._states(batch)
        first = batch.targets[:, :, 0]
        states = self.heads.states(rows_of(entry, batch.nodes))
        exits = sums_of(lambda part: self.heads.draft_logits(self.anatomy, part), states, self.in_vocabulary(first))
        return torch.stack([self._main(rows_of(out, batch.nodes), first), exits], 1)

    @torch.no_grad()
    def _states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states ``[B, L, hidden]`` after the first layers, and for the LM head. In training the latter are not
        needed, and the pass ends at the exit."""
        if self.training:
            states = self._frozen.of(batch)
            return states, states
        with noting(self.anatomy, self.heads.card.layers) as entry:
            out = self.anatomy.decoder(**decoder_call(self.anatomy, batch)).last_hidden_state
        return entry[0], out

    def counts(self, batch: Batch) -> Tensor:
        first = batch.targets[:, :, 0]
        return torch.stack([(first != IGNORE).sum(), (self.in_vocabulary(first) != IGNORE).sum()])

    def lane(self, ids: list[int], budget: int) -> tuple[Target, Drafter]:
        target = ModelTarget(self.anatomy, heads=Heads(exit=self.heads))
        return target, EarlyExitDrafter(target, ids, EarlyExit(budget=budget, confidence=0))


def head_model(
    anatomy: Anatomy, card: Card, start: Path | None, shape: HeadCard, vocabulary: Tensor | None, config: Config
) -> MedusaModel | ExitModel:
    """A model that trains heads of the given shape beside the adapter in ``start``, whose LoRA is already merged."""
    torch.manual_seed(config.seed)
    if shape.kind == MEDUSA:
        return MedusaModel(anatomy, card, start, MedusaHeads(anatomy, shape, vocabulary), config.cache)
    return ExitModel(anatomy, card, start, ExitHead(anatomy, shape, vocabulary), config.cache)


def check_out(out: Path, start: Path | None) -> None:
    """Raise DataError if the folder holds a different adapter from the one that the heads are for."""
    if start == out or not (out / CARD).is_file():
        return
    if start is None or _weights(out) != _weights(start):
        raise DataError(f"{out} holds another adapter: give it as --start too, or give another --out.")


def _weights(folder: Path) -> bytes:
    file = folder / WEIGHTS
    return file.read_bytes() if file.is_file() else b""
