"""The training loop: time or epoch budget, cosine schedule, checkpoints, exact resume."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from specstream import adapters
from specstream.adapters import Adapter, Card
from specstream.anatomy import Anatomy
from specstream.training.data import IGNORE, Batch, DataError, Example, batches, collate
from specstream.training.objective import StreamModel, objective

SHAPE = ("base_shape", "task", "mode", "gamma", "layers", "start_rank", "lora_rank", "lora_scale")


@dataclass(frozen=True)
class Config:
    """Settings of a training run.

    ``alpha`` weighs each stream's loss (the paper: 0.1; a larger weight trains the streams sooner). Training ends after
    ``epochs``, or after ``minutes`` of training time where that is not 0. ``warmup`` is the share of the run in which
    the learning rate rises; it then falls to zero along a cosine.
    """

    mode: str = "shared"
    gamma: int = 4
    layers: int = 6
    start_rank: int = 64
    lora_rank: int = 16
    lora_scale: float = 2.0
    alpha: float = 0.5
    batch: int = 8
    lr: float = 1e-3
    warmup: float = 0.03
    epochs: int = 3
    minutes: float = 0.0
    seed: int = 0
    save_every: float = 180.0
    validate_every: int = 100


@dataclass
class Progress:
    """How far a run is; part of every checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    examples: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


Report = Callable[[dict[str, Any]], None]


class Trainer:
    """Trains one adapter. ``report`` gets a dict per step (``kind`` "step") and per validation ("validation")."""

    def __init__(self, anatomy: Anatomy, tokenizer: PreTrainedTokenizerBase, card: Card, config: Config, out: Path):
        self.config, self.card, self.out = config, card, out
        self.anatomy, self.tokenizer = anatomy, tokenizer
        anatomy.model.requires_grad_(False).eval()
        set_seed(config.seed)
        self.accelerator = Accelerator(cpu=anatomy.device.type == "cpu")
        self.adapter = Adapter(anatomy, card).to(anatomy.device)
        self.model = StreamModel(anatomy, self.adapter)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=0.0, fused=False)
        self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress)

    def resume(self) -> bool:
        """Go on from the checkpoint in ``out``; False when there is none.

        Raises DataError when the checkpoint was made with other settings that change what is trained.
        """
        checkpoint = next((c for name in ("checkpoint", "checkpoint.old") if (c := self.out / name).is_dir()), None)
        if checkpoint is None:
            return False
        before = adapters.read_card(self.out)
        changed = [n for n in SHAPE if getattr(before, n) != getattr(self.card, n)]
        if changed:
            raise DataError(f"The checkpoint in {self.out} has other {', '.join(changed)}: resume it with the same.")
        self.accelerator.load_state(str(checkpoint))
        return True

    def train(self, examples: list[Example], held_out: list[Example], report: Report) -> Card:
        """Train to the end of the budget, save the adapter in ``out`` and return its card."""
        saved = time.monotonic()
        self._steps_planned = self.config.epochs * math.ceil(len(examples) / self.config.batch)
        for batch in self._batches(examples):
            report({"kind": "step", **self._step(batch), **asdict(self.progress), "fraction": self._fraction()})
            if held_out and self.progress.step % self.config.validate_every == 0:
                report({"kind": "validation", "step": self.progress.step, **self.validate(held_out)})
            if time.monotonic() - saved > self.config.save_every:
                self.save_checkpoint()
                saved = time.monotonic()
        self.save_checkpoint()
        return self._save_adapter(held_out)

    def _batches(self, examples: list[Example]) -> Iterator[Batch]:
        progress = self.progress
        while self._fraction() < 1:
            epoch = batches(examples, self.config.batch, self.config.seed, progress.epoch)
            while progress.batch < len(epoch) and self._fraction() < 1:
                part = epoch[progress.batch]
                progress.batch += 1  # before the step: a checkpoint taken after it must not repeat the batch
                yield collate(part, self.config.gamma, self.tokenizer.eos_token_id).to(self.anatomy.device)
            if progress.batch == len(epoch):
                progress.epoch, progress.batch = progress.epoch + 1, 0

    def _fraction(self) -> float:
        """Share of the budget that is used up."""
        if self.config.minutes:
            return self.progress.seconds / (60 * self.config.minutes)
        return self.progress.step / self._steps_planned

    def _step(self, batch: Batch) -> dict[str, Any]:
        started = time.monotonic()
        rate = self._set_rate()
        losses, hits = self.model(batch)
        self.accelerator.backward(objective(losses, self.config.alpha, self.card.mode))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise DataError("The loss is not a finite number any more: train with a smaller learning rate.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.examples += len(batch.ids)
        self.progress.seconds += time.monotonic() - started
        return {"losses": losses.tolist(), "hits": hits.tolist(), "lr": rate}

    def _set_rate(self) -> float:
        done = self._fraction()
        warm = min(1.0, done / self.config.warmup) if self.config.warmup else 1.0
        rate = self.config.lr * max(warm, 0.01) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def validate(self, examples: list[Example]) -> dict[str, Any]:
        """Mean losses and top-1 accuracies over held-out examples, weighed by their number of tokens."""
        results, weights = [], []
        for start in range(0, len(examples), self.config.batch):
            part = examples[start : start + self.config.batch]
            batch = collate(part, self.config.gamma, self.tokenizer.eos_token_id).to(self.anatomy.device)
            results.append(torch.stack(self.model(batch)))
            weights.append((batch.targets != IGNORE).sum((0, 1)))
        weight = torch.stack(weights)[:, None]  # [batches, 1, 1 + gamma]
        losses, hits = (torch.stack(results) * weight).sum(0) / weight.sum(0)
        return {"losses": losses.tolist(), "hits": hits.tolist()}

    def save_checkpoint(self) -> None:
        """Write the whole state beside the old one, then swap, so that a crash leaves one of the two whole."""
        new, current, old = (self.out / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
        shutil.rmtree(new, ignore_errors=True)
        self.accelerator.save_state(str(new))
        if current.exists():
            shutil.rmtree(old, ignore_errors=True)
            current.rename(old)
        new.rename(current)
        shutil.rmtree(old, ignore_errors=True)
        adapters.save(self.adapter, self.out, self._card({}))

    def _save_adapter(self, held_out: list[Example]) -> Card:
        card = self._card(self.validate(held_out) if held_out else {})
        adapters.save(self.adapter, self.out, card)
        return card

    def _card(self, metrics: dict[str, Any]) -> Card:
        training = {"config": asdict(self.config), "progress": asdict(self.progress)}
        date = datetime.now(UTC).date().isoformat()
        return replace(self.card, training=training, metrics=metrics, date=date)
