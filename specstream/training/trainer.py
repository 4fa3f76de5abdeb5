"""The training loop: time or epoch budget, cosine schedule, checkpoints, exact resume, one or several processes."""

from __future__ import annotations

import contextlib
import ctypes
import math
import platform
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from specstream import processes
from specstream.adapters import readme, weights
from specstream.adapters.card import AdapterError, Card, files, read_card, write_card
from specstream.adapters.weights import Adapter, Drafting
from specstream.model.introspection import Anatomy
from specstream.training import checkpoint
from specstream.training.batches import Batch, DataError, Example, batches, collate, spread
from specstream.training.config import Config
from specstream.training.loss import StreamModel, means, objective
from specstream.training.probe import tokens_per_step
from specstream.training.trainable import Trainee


@dataclass
class TrainerState:
    """The progress of a run; part of every checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


OnEvent = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Trainer:
    """Trains one adapter. ``report`` gets a dict per step (``kind`` "step") and per validation ("validation").

    Every batch is split into equal parts, one per process and accumulation step; losses are means over the whole
    batch, so neither changes the result.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        tokenizer: PreTrainedTokenizerBase,
        card: Card,
        config: Config,
        out: Path,
        vocabulary: Tensor | None = None,
        trainee: Trainee | None = None,
    ):
        self.config, self.out = config, out
        self.anatomy, self.tokenizer = anatomy, tokenizer
        anatomy.model.requires_grad_(False).eval()
        keep_freed_memory()
        set_seed(config.seed)
        cpu = anatomy.device.type == "cpu"
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=config.chosen_precision(anatomy.device.type))
        if self.accelerator.num_processes > 1:
            processes.leave_at_exit()
        self._plain_model = trainee or StreamModel(
            anatomy, Adapter(anatomy, card, vocabulary), config.tuned_layers, config.cache
        )
        self.model: Trainee = self._plain_model.to(anatomy.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=0.0, fused=False)
        self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.progress = TrainerState()
        self._cut_short = False  # whether a request to stop interrupted a validation
        self.parts = config.accumulate * self.accelerator.num_processes
        if config.batch < self.parts:
            raise ValueError(f"--batch is {config.batch}: it must be at least {self.parts}, one row for every part.")

    @property
    def adapter(self) -> Drafting:
        """The weights that are trained."""
        return self._plain_model.part

    @property
    def weights(self) -> int:
        """The number of trained weights."""
        return sum(p.numel() for p in self.adapter.parameters() if p.requires_grad)

    def resume(self) -> bool:
        """Continue from the checkpoint in ``out``; returns False if there is none.

        Raises DataError if the checkpoint was made with other settings that change what is trained, or is damaged or
        from an earlier version.
        """
        name = self._plain_model.checkpoint
        folder = next((f for n in (name, f"{name}.old") if (f := self.out / n).is_dir()), None)
        if folder is None:
            return False
        if changed := self._plain_model.changed(checkpoint.card_of(folder)):
            raise DataError(f"The checkpoint in {self.out} has other {', '.join(changed)}: resume it with the same.")
        state = checkpoint.load(folder, self._plain_model, self.optimizer, self._state())
        self.progress = TrainerState(**state["progress"])
        if not self._adapter_saved():  # the best one was moved away: the next one is the best again
            self.progress.best, self.progress.best_step, self.progress.history = -math.inf, 0, []
        if scaler := self.accelerator.scaler:
            scaler.load_state_dict(state["scaler"])
        self.adapter.restrict_head(self.anatomy)
        self._merge_tuning()
        return True

    def _adapter_saved(self) -> bool:
        """Whether ``out`` holds an adapter, with all its files."""
        try:
            return all((self.out / name).is_file() for name in files(read_card(self.out)))
        except AdapterError:
            return False

    def start_from(self, folder: Path) -> None:
        """Start from the weights of a trained adapter; parts that it lacks (an early exit) are initialised.

        In lossless mode, a LoRA with which another mode fine-tuned the model is frozen, and streams are trained on top.
        There may be fewer or more layers with streams than before (LoRA on added layers starts without effect), a
        larger rank of the start layer, and more streams, which start as copies of the last one. A pair map of another
        rank is initialised anew. If only the pair map is trained, the draft vocabulary is kept too.
        Raises AdapterError for an adapter of another shape.
        """
        before = weights.load(folder, self.anatomy)
        state = _beginning(cast(Adapter, self.adapter), before)
        if self.config.tuned_layers == "none" and before.vocabulary is not None:
            state["vocabulary"] = before.vocabulary  # otherwise it depends on the data
        try:
            unknown = self.adapter.load_state_dict(state, strict=False).unexpected_keys
        except RuntimeError:  # other sizes
            unknown = list(state)
        if unknown:
            raise AdapterError(
                f"The adapter in {folder} has other streams or ranks than this training run: use the same."
            )
        self.adapter.restrict_head(self.anatomy)
        self._merge_tuning()

    def _merge_tuning(self) -> None:
        """Train lossless streams on the model as it was tuned before; that LoRA is saved with the adapter too."""
        if isinstance(self.adapter, Adapter) and self.adapter.main:
            self.adapter.main.merge(self.anatomy)

    def seconds_per_step(self, examples: list[Example]) -> float:
        """The seconds per step on this machine, from two steps without an update, of which the second counts."""
        seconds = 0.0
        for chosen in batches(examples, self.config.batch, self.config.seed, 0)[:2]:
            rng = random.Random(0)
            started = time.monotonic()
            self._gradients([self._collate(chosen[i :: self.parts], rng) for i in range(self.parts)])
            self.optimizer.zero_grad()
            seconds = time.monotonic() - started
        return self._agreed(seconds)

    def train(
        self,
        examples: list[Example],
        held_out: list[Example],
        report: OnEvent,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Card:
        """Train to the end of the budget, save the adapter in ``out`` and return its card.

        With held-out examples, the adapter of the best validation is saved: by tokens per step of real decoding, or by
        the streams' loss if ``probes`` is 0. ``should_stop`` is called after every step. If training stops before the
        end (``finished`` is then False), it can resume from its checkpoint as if uninterrupted.
        """
        saved = time.monotonic()
        self._validate_if_due(held_out, report, should_stop)  # resumed after an interrupted validation
        self._steps_planned = self.config.epochs * math.ceil(len(examples) / self.config.batch)
        for parts in self._batches(examples):
            report({"kind": "step", **self._step(parts), **self.position(), "fraction": self._fraction()})
            self._validate_if_due(held_out, report, should_stop)
            if time.monotonic() - saved > self.config.save_every:
                self.save_checkpoint()
                saved = time.monotonic()
            if self._any(should_stop()):
                break
        if held_out and self.finished and not self._validated():
            self.save_checkpoint()  # so that nothing is lost if the validation is interrupted
            self._validate_and_keep(held_out, report, should_stop)
        self.save_checkpoint()
        return read_card(self.out)

    @property
    def finished(self) -> bool:
        """Whether the budget is used up and no validation was interrupted."""
        return self._fraction() >= 1 and not self._cut_short

    def _validate_if_due(self, held_out: list[Example], report: OnEvent, should_stop: Callable[[], bool]) -> None:
        step = self.progress.step
        if held_out and step and step % self.config.validate_every == 0 and not self._validated():
            self._validate_and_keep(held_out, report, should_stop)

    def _validated(self) -> bool:
        """Whether the newest step has already been validated."""
        return bool(self.progress.history) and self.progress.history[-1]["step"] == self.progress.step

    def position(self) -> dict[str, Any]:
        """The progress of training, as plain values."""
        return {n: getattr(self.progress, n) for n in ("epoch", "batch", "step", "examples", "seconds")}

    def _batches(self, examples: list[Example]) -> Iterator[list[Batch]]:
        """Batches, each as a list of its parts."""
        progress = self.progress
        while self._fraction() < 1:
            epoch = [b for b in batches(examples, self.config.batch, self.config.seed, progress.epoch)
                     if len(b) >= self.parts]  # fmt: skip
            while progress.batch < len(epoch) and self._fraction() < 1:
                rng = random.Random(f"{self.config.seed}/{progress.epoch}/{progress.batch}")
                chosen = epoch[progress.batch]
                progress.batch += 1  # before the step: a checkpoint taken after it must not repeat the batch
                yield [self._collate(chosen[i :: self.parts], rng) for i in range(self.parts)]
            if progress.batch == len(epoch):
                progress.epoch, progress.batch = progress.epoch + 1, 0

    def _collate(self, examples: list[Example], rng: random.Random | None = None) -> Batch:
        share = self.config.share if rng else 1.0
        return collate(examples, self._plain_model.ahead, self.tokenizer.eos_token_id, share, rng)

    def _fraction(self) -> float:
        """The share of the budget used so far."""
        if self.config.minutes:
            return self.progress.seconds / (60 * self.config.minutes)
        return self.progress.step / self._steps_planned

    def _step(self, parts: list[Batch]) -> dict[str, Any]:
        started = time.monotonic()
        rate = self._set_rate()
        sums = self._gradients(parts)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm) and not self._scaled_too_high(sums):
            raise DataError("The loss is no longer finite: train with a smaller learning rate.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.examples += sum(len(p.ids) for p in parts)
        losses, hits = means(sums)
        self.progress.seconds += self._agreed(time.monotonic() - started)
        return {"losses": losses, "hits": hits, "lr": rate}

    def _scaled_too_high(self, sums: Tensor) -> bool:
        """Whether infinite gradients are due to float16's loss scale: the optimizer then skips the step, and the scale
        is halved. They are not if the losses are infinite too, or the scale is below 1."""
        scaler = self.accelerator.scaler
        return scaler is not None and bool(sums[0].isfinite().all()) and scaler.get_scale() >= 1

    def _gradients(self, parts: list[Batch]) -> Tensor:
        """Compute the gradients of the whole batch. Returns its sums ``[3, columns]`` over all processes."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = parts[rank::world]
        counts = torch.stack([self._plain_model.counts(p) for p in parts]).sum(0).to(self.anatomy.device)
        total = torch.zeros(3, len(counts), device=self.anatomy.device)
        self.model.train()
        for index, part in enumerate(mine):
            last = index == len(mine) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                sums = self.model(part.to(self.anatomy.device))
                loss = objective(sums[0], counts, self.config.alpha, self._plain_model.drafting)
                self.accelerator.backward(loss * world)  # the processes' gradients are averaged, not summed
            total += sums.detach()
        return cast(Tensor, self.accelerator.reduce(total))

    def _agreed(self, seconds: float) -> float:
        """The mean over all processes, so that they stop at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        return float(self.accelerator.reduce(torch.tensor(seconds, device=self.anatomy.device), "mean"))

    def _any(self, wish: bool) -> bool:
        """Whether any process wants to stop, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return wish
        return bool(self.accelerator.reduce(torch.tensor(float(wish), device=self.anatomy.device)))

    def _set_rate(self) -> float:
        done = self._fraction()
        warm = min(1.0, done / self.config.warmup) if self.config.warmup else 1.0
        rate = self.config.lr * max(warm, 0.01) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def validate(
        self, examples: list[Example], should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """Mean losses and top-1 accuracies over held-out examples; tokens per step of decoding some prompts, unless
        the model ends all of them at once: then losses alone decide which adapter is best.

        None once ``should_stop`` returns True; it is called before every batch and every prompt.
        """
        self.model.eval()
        going = self._until(should_stop)
        parts = (examples[i : i + self.config.batch] for i in range(0, len(examples), self.config.batch))
        sums = [self._plain_model(self._collate(part).to(self.anatomy.device)) for part in going(parts)]
        prompts = [e.prompt for e in spread(examples, self.config.probes)] if self.config.probes else []
        measured = tokens_per_step(self._plain_model, self.tokenizer, going(prompts)) if prompts else math.nan
        if self._cut_short:
            return None
        losses, hits = means(torch.stack(sums).sum(0))
        return {"losses": losses, "hits": hits} | ({} if math.isnan(measured) else {"tokens_per_step": measured})

    def _until(self, should_stop: Callable[[], bool]) -> Callable[[Iterable[T]], Iterator[T]]:
        """Yield items until a stop is requested, and remember that."""

        def going(items: Iterable[T]) -> Iterator[T]:
            for item in items:
                self._cut_short = self._cut_short or self._any(should_stop())
                if self._cut_short:
                    return
                yield item

        return going

    def _validate_and_keep(self, held_out: list[Example], report: OnEvent, should_stop: Callable[[], bool]) -> None:
        if (measured := self.validate(held_out, should_stop)) is None:
            return
        found = {"step": self.progress.step, "seconds": round(self.progress.seconds), **measured}
        self.progress.history.append(found)
        trained = found["losses"][1 : 1 + self._plain_model.drafting] or found["losses"]
        score = found.get("tokens_per_step", -sum(trained) / len(trained))
        report({"kind": "validation", **found})
        if score > self.progress.best:
            self.progress.best, self.progress.best_step = score, self.progress.step
            self._save_adapter({k: v for k, v in found.items() if k not in ("step", "seconds")})

    def save_checkpoint(self) -> None:
        """Let the first process write the whole state, while the others wait."""
        if self.accelerator.is_main_process:
            self._write_checkpoint()
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self) -> None:
        """Write the whole state to a new folder, then replace the old one, so that a crash leaves one complete.

        Before the first validation the adapter itself is written as well, since there is no better one.
        """
        name = self._plain_model.checkpoint
        new, current, old = (self.out / n for n in (f"{name}.new", name, f"{name}.old"))
        shutil.rmtree(new, ignore_errors=True)
        checkpoint.save(new, self._plain_model, self.optimizer, self._state())
        write_card(new, self._card({}))
        if current.exists():
            shutil.rmtree(old, ignore_errors=True)
            current.rename(old)
        new.rename(current)
        shutil.rmtree(old, ignore_errors=True)
        if not self.progress.history:
            self._save_adapter({})

    def _state(self) -> dict[str, Any]:
        """The contents of a checkpoint besides tensors."""
        scaler = self.accelerator.scaler
        return {"progress": asdict(self.progress)} | ({"scaler": scaler.state_dict()} if scaler else {})

    def _save_adapter(self, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            card = self._card(metrics)
            self._plain_model.save(self.out, card)
            readme.write(self.out, card)

    def _card(self, metrics: dict[str, Any]) -> Card:
        training = {"config": asdict(self.config), "progress": asdict(self.progress)}
        return self._plain_model.described(training, metrics, datetime.now(UTC).date().isoformat())


def _beginning(adapter: Adapter, before: Adapter) -> dict[str, Tensor]:
    """The weights from which training of ``adapter`` starts, taken from those of its predecessor."""
    state = before.state_dict()
    state.pop("vocabulary", None)
    if adapter.card.mode == "lossless" and before.card.mode != "lossless":
        state = {re.sub(r"^lora\.", "main.", name): weight for name, weight in state.items()}
    own = adapter.state_dict()
    lowest = adapter.lora.first if adapter.lora else 0
    found = {n: _widened(n, w, own.get(n)) for n, w in state.items() if not _of_a_layer_below(lowest, n)}
    pairs = [n for n in found if n.startswith("pairs.") and n in own]
    if any(found[n].shape != own[n].shape for n in pairs):
        found = {n: w for n, w in found.items() if n not in pairs}
    return found


def _of_a_layer_below(lowest: int, name: str) -> bool:
    """Whether this is a factor of the streams' LoRA on a layer that no longer carries streams."""
    found = re.match(r"lora\.[ab]\.(\d+)/", name)
    return found is not None and int(found[1]) < lowest


def _widened(name: str, weight: Tensor, own: Tensor | None) -> Tensor:
    """The weight for more streams, in which the last one (in the pair map its factor) is repeated, or for a larger
    start rank, whose additions are zero at first. ``own`` is the new adapter's weight."""
    if own is None or not name.startswith(("streams.", "pairs.")) or own.ndim != weight.ndim:
        return weight
    if name in ("streams.embedding", "streams.up", "pairs.weight") and len(own) > len(weight):
        weight = torch.cat([weight, weight[-1:].expand(len(own) - len(weight), *weight.shape[1:])])
    if name == "streams.up" and own.shape[-1] > weight.shape[-1]:
        weight = nn.functional.pad(weight, (0, own.shape[-1] - weight.shape[-1]))
    if name == "streams.down" and len(own) > len(weight):
        weight = torch.cat([weight, own[len(weight) :].to(weight)])
    return weight


def keep_freed_memory() -> None:
    """Make glibc's allocator keep memory that PyTorch frees; otherwise every large tensor of every step is mapped
    anew. No effect elsewhere. docs/experiments-appendix.md has the times."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # names of mallopt(3)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
