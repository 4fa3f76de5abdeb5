"""The model whose output must not change, behind four calls: prefill, verify, keep, release."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specstream.adapters import Adapter
from specstream.anatomy import FULL, SLIDING, Anatomy, context_of
from specstream.cache import TreeCache
from specstream.events import Draft
from specstream.masks import additive, causal_mask, tree_mask, windowed
from specstream.streams import Carried, Plan, carry
from specstream.tree import attention_rows

CHUNK = 512  # prompt rows per pass: bounds the size of the mask


class Stopped(Exception):
    """The user stopped a run inside its prompt pass."""


def never() -> bool:
    """No wish to stop."""
    return False


class Target(Protocol):
    """What the decode loop needs. A pass appends rows to the cache; ``keep`` then says which of them stay."""

    context: int
    stream_rows: int

    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = ...) -> Tensor: ...
    def verify(self, root: int, draft: Draft) -> Tensor: ...
    def keep(self, rows: Sequence[int]) -> None: ...
    def synchronize(self) -> None: ...
    def release(self) -> None: ...


class StreamSource(Protocol):
    """A target that drafts: logits of the streams attached to a row of the last pass."""

    gamma: int

    def stream_logits(self, row: int) -> Tensor: ...


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class ModelTarget:
    """A stock Hugging Face causal LM. With an adapter, and ``streaming`` on, every pass carries streams.

    State belongs to one run: ``prefill`` begins it, ``release`` ends it.
    """

    def __init__(self, anatomy: Anatomy, adapter: Adapter | None, streaming: bool) -> None:
        self.anatomy, self.adapter = anatomy, adapter if streaming else None
        self.gamma = self.adapter.card.gamma if self.adapter else 0
        self.context = anatomy.context
        self.stream_rows = 0
        self.length = 0  # committed positions in the cache
        self.cache: TreeCache | None = None
        self._states: Tensor | None = None

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = never) -> Tensor:
        """Put the prompt through the model. Returns the logits of its last row, float32 ``[1, vocab]``.

        Raises Stopped between two chunks of a long prompt once ``should_stop`` says so.
        """
        self.cache, self.length = TreeCache(len(self.anatomy.layers)), 0
        chunks = [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]
        logits = torch.empty(0)
        for chunk in chunks:
            if should_stop():
                raise Stopped
            positions = range(self.length, self.length + len(chunk))
            mask = causal_mask(len(chunk), self.length)
            last = chunk is chunks[-1]
            logits = self._pass(chunk, positions, mask, [len(chunk) - 1] if last else [], keep_logits=1)
            self.keep(range(len(chunk)))
        return logits

    @torch.inference_mode()
    def verify(self, root: int, draft: Draft) -> Tensor:
        """One pass over the root and the draft's nodes. Returns logits, float32 ``[1 + nodes, vocab]``."""
        rows = [root, *draft.tokens]
        positions = [self.length, *(self.length + d for d in draft.depths())]
        mask = tree_mask(attention_rows(draft.parents), self.length)
        return self._pass(rows, positions, mask, range(len(rows)), keep_logits=0)

    @torch.inference_mode()
    def stream_logits(self, row: int) -> Tensor:
        """Logits of the streams of a row of the last pass (of the prompt pass: 0), float32 ``[gamma, vocab]``.

        Computed for the one accepted row, after verification: the head over every node's streams would cost more than
        it gives.
        """
        assert self._states is not None, "no pass with streams yet"
        return self.anatomy.logits(self._states[0, row])

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Commit these rows of the last pass (0 is the root); the cache drops the others and all stream rows."""
        assert self.cache is not None, "no run"
        self.cache.keep(self.length, list(rows))
        self.length += len(rows)

    def synchronize(self) -> None:
        synchronize(self.anatomy.device)

    def release(self) -> None:
        """End the run and free its memory."""
        self.cache = self._states = None
        self.length = 0

    def _pass(
        self, tokens: Sequence[int], positions: Sequence[int], mask: Tensor, nodes: Sequence[int], keep_logits: int
    ) -> Tensor:
        device, anatomy = self.anatomy.device, self.anatomy
        where = torch.tensor([list(positions)], device=device)
        masks = self._masks(mask.to(device), where)
        self.stream_rows = len(nodes) * self.gamma
        plan = Plan(masks, where, torch.tensor([list(nodes)], device=device))
        with self._carry(plan) if self.stream_rows else nullcontext() as carried:
            out = anatomy.model(
                input_ids=torch.tensor([list(tokens)], device=device),
                attention_mask=self._model_masks(masks, len(tokens)),
                position_ids=where,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep_logits,
            )
        self._states = carried.states if carried else None
        return out.logits[0].float()

    @contextmanager
    def _carry(self, plan: Plan) -> Iterator[Carried]:
        assert self.adapter is not None
        first, lora = plan.positions.shape[1], self.adapter.lora
        apart = lora if self.adapter.card.mode == "lossless" else None  # in shared mode it is merged into the weights
        adapted = apart.attached(self.anatomy, first, first + self.stream_rows) if apart else nullcontext()
        with adapted, carry(self.anatomy, self.adapter.streams, plan) as carried:
            yield carried

    def _masks(self, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
        masks = {FULL: mask}
        if self.anatomy.window:
            keys = torch.cat([torch.arange(self.length, device=mask.device)[None], positions], 1)
            masks[SLIDING] = windowed(mask, positions, keys, self.anatomy.window)
        return {t: masks[t] for t in set(self.anatomy.layer_types)}

    def _model_masks(self, masks: dict[str, Tensor], rows: int) -> Any:
        if rows == 1 and not self.anatomy.window:
            return None  # one row sees everything: without a mask attention takes its fast path
        floats = {t: additive(m, self.anatomy.dtype) for t, m in masks.items()}
        return floats if self.anatomy.mask_by_type else floats[self.anatomy.layer_types[0]]


class PlainTarget:
    """Standard decoding only, for models that can't verify a tree: the model's own cache and masks."""

    gamma = 0
    stream_rows = 0

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.context = context_of(model.config)
        self._state: dict[str, Any] = {}
        self._ids: list[int] = []

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = never) -> Tensor:
        self.release()
        return self._pass(ids)

    @torch.inference_mode()
    def verify(self, root: int, draft: Draft) -> Tensor:
        if len(draft):
            raise ValueError("This model can't verify drafts.")
        return self._pass([root])

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing to do: without drafts every row stays."""

    def synchronize(self) -> None:
        synchronize(self.model.device)

    def release(self) -> None:
        self._state, self._ids = {}, []

    def _pass(self, tokens: Sequence[int]) -> Tensor:
        self._ids += tokens
        ids = list(tokens) if self._state else self._ids  # a model that gives no state back is shown the whole text
        out = self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=True, **self._state)
        names = ("past_key_values", "cache_params", "state")  # recurrent models name their state otherwise
        self._state = {n: out[n] for n in names if getattr(out, n, None) is not None}
        return out.logits[0, -1:].float()
