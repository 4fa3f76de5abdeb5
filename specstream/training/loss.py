"""The n-gram objective (equation 5) over one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specstream.adapters import weights
from specstream.adapters.card import Card
from specstream.adapters.weights import Adapter
from specstream.decoding.drafters.streaming import StreamingDrafter
from specstream.decoding.interfaces import Drafter, Target
from specstream.model.introspection import Anatomy, bind
from specstream.model.masks import layer_masks
from specstream.model.partial_forward import run_below, starting_at
from specstream.params import Streaming
from specstream.streams.stream_attention import PassLayout, carry
from specstream.target.model_target import ModelTarget, Variant
from specstream.training.batches import IGNORE, Batch
from specstream.training.frozen_cache import FrozenStates
from specstream.training.trainable import Trainee, decoder_call, rows_of

SHAPE = (
    "base_shape", "task", "mode", "gamma", "layers", "start_rank", "lora_rank", "lora_scale", "exit_rank",
    "draft_vocabulary", "value_rotation", "pair_rank", "main_rank", "main_scale",
)  # fmt: skip
CHUNK = 256  # rows of logits at a time, so that they and their gradient fit into a CPU's cache
Scores = Callable[[Tensor], Tensor]


class StreamModel(Trainee):
    """The frozen base with its adapter: streams, LoRA and early exit.

    With ``tuned_layers`` "top" the LoRA below the layers with streams is frozen, with "none" everything except the
    pair map. Then, and in lossless mode, the inputs of those layers never change; up to ``cache`` GB of them are kept.
    """

    checkpoint = "checkpoint"

    def __init__(self, anatomy: Anatomy, adapter: Adapter, tuned_layers: str = "all", cache: float = 0.0) -> None:
        super().__init__(anatomy)
        self.adapter = adapter
        self.ahead = self.drafting = adapter.card.gamma
        self._first = len(anatomy.layers) - adapter.card.layers
        frozen = adapter.card.mode == "lossless" or tuned_layers in ("top", "none")
        self._below = FrozenStates(self._run_below, cache) if frozen else None
        if adapter.lora and frozen:
            for weight in adapter.lora.below(self._first):
                weight.requires_grad_(False)
        if tuned_layers == "none":
            for name, weight in adapter.named_parameters():
                weight.requires_grad_(name.startswith("pairs."))

    def _run_below(self, ids: Tensor) -> Tensor:
        with self.tuned():
            return run_below(self.anatomy, self._first, input_ids=ids, use_cache=False)

    @property
    def part(self) -> Adapter:
        return self.adapter

    def forward(self, batch: Batch) -> Tensor:
        """Sums over the batch, ``[3, columns]``: cross-entropy in nats, tokens guessed right (top 1), tokens counted.

        Columns are the main stream (0), the streams, and the early exit if the adapter has one. In lossless mode
        the main stream is not trained, and counted in evaluation mode only.
        """
        main, streams, exits = self._states(batch)
        targets = batch.targets[:, :, 0]
        columns = []
        if self.adapter.card.mode == "lossless" and self.training:
            columns.append(main.new_zeros(3, dtype=torch.float32))
        else:
            columns.append(sums_of(self.anatomy.head_logits, main, targets))
        drafted = self.in_vocabulary(batch.stream_targets())
        pairs = self._pairs(batch)
        columns += [
            sums_of(self._draft_logits, streams[:, :, j], drafted[:, :, j], pairs and (pairs[0][:, :, j], pairs[1]))
            for j in range(streams.shape[2])
        ]
        if exits is not None:
            columns.append(sums_of(self._draft_logits, exits, self.in_vocabulary(targets)))
        return torch.stack(columns, 1)

    def counts(self, batch: Batch) -> Tensor:
        """The number of tokens that each column counts ``[columns]``, without a forward pass."""
        first = batch.targets[:, :, 0]
        drafted = self.in_vocabulary(batch.stream_targets())
        counts = [(first != IGNORE).sum(), *(drafted != IGNORE).sum((0, 1))]
        if self.adapter.card.exit_rank:
            counts.append((self.in_vocabulary(first) != IGNORE).sum())
        return torch.stack(counts)

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The pair map's two factors: for the token before each stream's target ``[B, S, gamma, rank]``, and for every
        token that can be drafted ``[drafted, rank]``."""
        pairs, ids = self.adapter.pairs, self.adapter.vocabulary
        if pairs is None:
            return None
        table = self.anatomy.model.get_input_embeddings().weight
        above = pairs.above(table[batch.tokens_above().clamp_min(0)]) * pairs.weight[:, None]
        return above, pairs.below(table if ids is None else table[ids])

    def _draft_logits(self, states: Tensor) -> Tensor:
        return self.adapter.draft_logits(self.anatomy, states)

    def lane(self, ids: list[int], budget: int) -> tuple[Target, Drafter]:
        params = Streaming(budget=budget, pause=0, copies="off").on(self.anatomy.device.type)
        target = ModelTarget(self.anatomy, self.adapter, Variant.of(params))
        return target, StreamingDrafter(target, params, ids)

    def tuned(self) -> AbstractContextManager[object]:
        if (
            self.adapter.card.mode == "lossless" or not self.adapter.lora
        ):  # the LoRA that tuned the base is merged into it
            return nullcontext()
        return self.adapter.lora.attached(self.anatomy)

    def described(self, training: dict[str, Any], metrics: dict[str, Any], date: str) -> Card:
        card = self.adapter.card
        return replace(card, training={**card.training, **training}, metrics=metrics, date=date)

    def save(self, folder: Path, card: Card) -> None:
        weights.save(self.adapter, folder, card)

    def changed(self, before: Card) -> list[str]:
        return [n for n in SHAPE if getattr(before, n) != getattr(self.adapter.card, n)]

    def _states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Main stream after the final norm ``[B, R, h]``, streams before it ``[B, S, gamma, h]``, early exit."""
        anatomy, adapter = self.anatomy, self.adapter
        plan = PassLayout(layer_masks(anatomy, batch.mask, batch.positions), batch.positions, batch.stream_rows())
        rows = batch.ids.shape[1]
        first = rows if adapter.card.mode == "lossless" else 0
        total = rows + plan.nodes.shape[1] * adapter.card.gamma
        lora = adapter.lora.attached(anatomy, first, total) if adapter.lora else nullcontext()
        carrying = carry(anatomy, adapter.streams, plan) if adapter.card.gamma else nullcontext()
        begun = starting_at(anatomy, self._first, self._below.of(batch)) if self._below else nullcontext()
        with begun, lora, noting(anatomy, self._first) as entry, carrying as carried:
            out = anatomy.decoder(**decoder_call(anatomy, batch)).last_hidden_state
        exits = self._exits(rows_of(entry[0], batch.nodes)) if adapter.card.exit_rank else None
        nothing = out.new_empty(*plan.nodes.shape, 0, out.shape[-1])
        return rows_of(out, batch.nodes), carried.states if carried else nothing, exits

    def _exits(self, states: Tensor) -> Tensor:
        """Early-exit states; the gradient stops here, so that o_theta trains nothing below it."""
        return self.adapter.streams.exit_states(states.detach())


@contextmanager
def noting(anatomy: Anatomy, layer: int) -> Iterator[list[Tensor]]:
    """A context that records the states at the entry of a layer."""
    noted: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        noted.append(bind(module, args, kwargs)["hidden_states"])

    hook = anatomy.layers[layer].register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield noted
    finally:
        hook.remove()


def sums_of(scores: Scores, states: Tensor, targets: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """``[3]``: summed cross-entropy, hits and count of the rows that have a target.

    ``pairs`` are factors whose product is added to the scores: ``[..., rank]`` of every row, and ``[drafted, rank]``.
    """
    valid = targets != IGNORE
    above, below = (pairs[0][valid], pairs[1]) if pairs else (None, None)
    return cast(Tensor, _ChunkedLoss.apply(scores, targets[valid], states[valid], above, below))


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy of many rows in chunks, so that the logits of all rows never exist at once.

    Gradients are computed chunk by chunk in the forward pass, while the logits exist, and kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Scores, targets: Tensor, states: Tensor, above: Tensor | None, below: Tensor | None
    ) -> Tensor:
        out = torch.zeros(3, device=states.device)
        inputs = [t for t in (states, above, below) if t is not None]
        trained = [i for i in range(len(inputs)) if ctx.needs_input_grad[2 + i]]
        ctx.grads = {i: torch.zeros_like(inputs[i]) for i in trained}
        for at in range(0, len(states), CHUNK):
            rows = slice(at, at + CHUNK)
            with torch.set_grad_enabled(bool(trained)):
                parts = [(t if t is below else t[rows]).detach().requires_grad_(i in trained)
                         for i, t in enumerate(inputs)]  # fmt: skip
                logits, target = scores(parts[0]), targets[rows]
                if below is not None:
                    logits = logits + parts[1] @ parts[2].T
                loss = F.cross_entropy(logits, target, reduction="sum")
            grads = torch.autograd.grad(loss, [parts[i] for i in trained]) if trained else ()
            for i, grad in zip(trained, grads, strict=True):
                (ctx.grads[i] if inputs[i] is below else ctx.grads[i][rows]).add_(grad)
            out += torch.stack([loss.detach(), (logits.argmax(-1) == target).sum(), loss.new_tensor(len(target))])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(ctx.grads[i] * grad[0] if i in ctx.grads else None for i in range(3))


def means(sums: Tensor) -> tuple[list[float], list[float]]:
    """Mean losses in nats and top-1 accuracies, one per column of ``StreamModel.forward``."""
    loss, hits, counts = sums[0], sums[1], sums[2].clamp_min(1)
    return (loss / counts).tolist(), (hits / counts).tolist()


def objective(losses: Tensor, counts: Tensor, alpha: float, gamma: int) -> Tensor:
    """Equation 5 with one weight ``alpha`` for all streams, as a mean per token of each column.

    ``losses`` are sums ``[columns]`` over a micro-batch and ``counts`` the tokens of the whole batch, so the values of
    the micro-batches add up to the batch's. The early exit has weight 1, since it shares no weights with the rest.
    """
    weights = torch.ones_like(losses)
    weights[1 : 1 + gamma] = alpha
    return (weights * losses / counts.clamp_min(1)).sum()
