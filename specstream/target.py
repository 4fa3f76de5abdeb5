"""The model whose output must not change, behind four calls: prefill, verify, keep, release."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specstream.adapters import Adapter
from specstream.anatomy import FULL, SLIDING, Anatomy, context_of
from specstream.cache import TreeCache
from specstream.events import Draft
from specstream.heads import Heads
from specstream.lora import LoRA
from specstream.masks import additive, causal_mask, tree_mask, windowed, with_streams
from specstream.rows import Masks, TopLayers, ahead, run_below
from specstream.streams import Carried, Plan, carry
from specstream.tree import Candidates, attention_rows, pruned

CHUNK = 512  # prompt rows per pass: bounds the size of the mask
NO_EXIT = "Pruning needs an adapter with an early exit, and this one has none: set pruning to 0, or train one with it."


class Stopped(Exception):
    """The user stopped a run inside its prompt pass."""


def never() -> bool:
    """No wish to stop."""
    return False


class Target(Protocol):
    """What the decode loop needs. A pass appends rows to the cache; ``keep`` then says which of them stay.

    ``stream_rows`` are the rows that only the top layers had, in the last pass or for it. ``pruned`` are the nodes that
    the last pass dropped: its logits hold no rows for them.
    """

    context: int
    stream_rows: int
    pruned: Collection[int]

    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = ...) -> Tensor: ...
    def verify(self, root: int, draft: Draft) -> Tensor: ...
    def keep(self, rows: Sequence[int]) -> None: ...
    def synchronize(self) -> None: ...
    def release(self) -> None: ...


class Synchronized(Protocol):
    """What computes on a device that may work on its own: ``synchronize`` waits for it."""

    def synchronize(self) -> None: ...


class StreamSource(Synchronized, Protocol):
    """A target that drafts: logits ``[gamma, drafted]`` of the streams of the row that was accepted last.

    ``stream_ids`` ``[drafted]`` are the tokens that they are of; None: all. ``stream_pairs`` weighs them by the token
    above, given the logits of some depths, the root and how many candidates to find; None where there is no pair map.

    ``prepare`` comes before a run; it raises ValueError for a variant that the source can't do. ``device_type`` says
    where it runs ("cpu", "cuda").
    """

    gamma: int
    device_type: str

    @property
    def stream_ids(self) -> Tensor | None: ...
    @property
    def stream_pairs(self) -> Callable[[Tensor, int, int], Candidates] | None: ...
    def prepare(self, deferred: bool, prune: float) -> None: ...
    def stream_logits(self, row: int) -> Tensor: ...


class MedusaSource(Synchronized, Protocol):
    """A target with Medusa heads: their logits ``[medusa_depth, drafted]`` for the row that was accepted last, of the
    tokens ``medusa_ids`` ``[drafted]``; None: all."""

    medusa_depth: int

    @property
    def medusa_ids(self) -> Tensor | None: ...
    def medusa_logits(self, row: int) -> Tensor: ...


class ExitSource(Synchronized, Protocol):
    """A target whose first layers draft.

    While ``early_exit`` is open, it gives a function that puts one token after the text and those before it, and
    returns the exit's logits ``[1, vocab]`` for what follows. Nothing of it stays in the target.
    """

    def early_exit(self) -> AbstractContextManager[Callable[[int], Tensor]]: ...


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class ModelTarget:
    """A stock Hugging Face causal LM. With an adapter, and ``streaming`` on, it drafts by streams; with ``heads``, by
    these.

    State belongs to one run: ``prefill`` begins it, ``release`` ends it.
    """

    def __init__(self, anatomy: Anatomy, adapter: Adapter | None, streaming: bool, heads: Heads | None = None) -> None:
        self.anatomy, self.adapter = anatomy, adapter if streaming else None
        self.heads = heads or Heads()
        self.medusa_depth = self.heads.medusa.card.count if self.heads.medusa else 0
        self.gamma = self.adapter.card.gamma if self.adapter else 0
        self.device_type = anatomy.device.type
        self.context = anatomy.context
        self.stream_rows = 0
        self.pruned: Collection[int] = frozenset()
        self.length = 0  # committed positions in the cache
        self.cache: TreeCache | None = None
        self._deferred, self._threshold = False, 0.0
        self._top: TopLayers | None = None
        self._carried: Carried | None = None
        self._deferred_rows = 0
        self._states = torch.empty(0)  # of the last pass, after the final norm

    def prepare(self, deferred: bool, prune: float) -> None:
        """Choose the variant of the runs to come.

        In the pass (the paper) every row carries streams; deferred, a short pass of its own computes them for the
        accepted row. ``prune`` is the early-exit probability below which a node is dropped with all below it; 0 keeps
        all. Raises ValueError when the adapter has no early exit.
        """
        assert self.adapter is not None, "no streams"
        if prune and not self.adapter.streams.exit_rank:
            raise ValueError(NO_EXIT)
        self._deferred, self._threshold = deferred, prune

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = never) -> Tensor:
        """Put the prompt through the model. Returns the logits of its last row, float32 ``[1, vocab]``.

        Raises Stopped between two chunks of a long prompt once ``should_stop`` says so.
        """
        self.cache, self.length = TreeCache(len(self.anatomy.layers)), 0
        chunks = [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]
        states = torch.empty(0)
        for chunk in chunks:
            if should_stop():
                raise Stopped
            positions = range(self.length, self.length + len(chunk))
            mask = causal_mask(len(chunk), self.length)
            last = chunk is chunks[-1]
            with self._recorded() if last else nullcontext():
                states = self._pass(chunk, positions, mask, [len(chunk) - 1] if last else [])
            self.keep(range(len(chunk)))
        self._states = states[-1:]
        return self.anatomy.head_logits(self._states)

    @torch.inference_mode()
    def verify(self, root: int, draft: Draft) -> Tensor:
        """One pass over the root and the draft's nodes.

        Returns logits, float32 ``[1 + nodes, vocab]``, without those of ``pruned`` nodes.
        """
        rows = [root, *draft.tokens]
        positions = [self.length, *(self.length + d for d in draft.depths())]
        mask = tree_mask(attention_rows(draft.parents), self.length)
        states = self._states = self._pass(rows, positions, mask, range(len(rows)), draft)
        scored = self._carried.rows if self._carried else None
        return self.anatomy.head_logits(states if scored is None else states[scored])

    @torch.inference_mode()
    def stream_logits(self, row: int) -> Tensor:
        """Logits of the streams of a row of the last pass (of the prompt pass: 0), float32 ``[gamma, drafted]``.

        Computed for the one accepted row, after verification: the head over every node's streams would cost more than
        it gives. Deferred streams can be had after ``keep`` only, of the last row that was kept.
        """
        assert self.adapter is not None and self._carried is not None, "no pass with streams yet"
        place = self._carried.place(row)
        if self._deferred:
            states = self._late_streams(self._carried.main[:, place : place + 1])
        else:
            states = self._carried.states[0, place]
        return self.adapter.draft_logits(self.anatomy, states)

    @property
    def stream_ids(self) -> Tensor | None:
        """The tokens that streams can draft, None for all."""
        return self.adapter.vocabulary if self.adapter else None

    @property
    def stream_pairs(self) -> Callable[[Tensor, int, int], Candidates] | None:
        """What weighs a stream's tokens by the one above, None where the adapter has no pair map."""
        return self._weighed if self.adapter and self.adapter.pairs else None

    @torch.inference_mode()
    def _weighed(self, logits: Tensor, root: int, width: int) -> Candidates:
        assert self.adapter is not None and self.adapter.pairs is not None, "no pair map"
        table = self.anatomy.model.get_input_embeddings().weight
        return self.adapter.pairs.weighed(logits, self.stream_ids, root, table, width)

    @torch.inference_mode()
    def medusa_logits(self, row: int) -> Tensor:
        """Logits of the Medusa heads for a row of the last pass (the prompt pass: 0), ``[medusa_depth, drafted]``."""
        assert self.heads.medusa is not None, "no Medusa heads"
        return self.heads.medusa.row_scores(self.anatomy, self._states[row])

    @property
    def medusa_ids(self) -> Tensor | None:
        """The tokens that Medusa heads can draft, None for all."""
        return self.heads.medusa.vocabulary if self.heads.medusa else None

    @contextmanager
    def early_exit(self) -> Iterator[Callable[[int], Tensor]]:
        """While open, gives what puts a token after the text, and after those before it, through the first layers, and
        returns the exit's logits ``[1, vocab]``. Their keys and values follow the cache's, and are dropped in the end.
        """
        exit, cache = self.heads.exit, self.cache
        assert exit is not None and cache is not None, "no exit, or no run"
        drafted = itertools.count()

        @torch.inference_mode()
        def logits_after(token: int) -> Tensor:
            return exit.logits(self.anatomy, self._first_layers(exit.card.layers, token, self.length + next(drafted)))

        try:
            yield logits_after
        finally:
            cache.keep(self.length, [], slice(exit.card.layers))

    def _first_layers(self, layers: int, token: int, position: int) -> Tensor:
        """State ``[1, hidden]`` after the first ``layers`` layers of one row that sees all of their cache."""
        where = torch.tensor([[position]], device=self.anatomy.device)
        mask = causal_mask(1, position).to(where.device)
        states = run_below(
            self.anatomy,
            layers,
            input_ids=torch.tensor([[token]], device=where.device),
            attention_mask=self._model_masks(self._masks(mask, where, position), 1),
            position_ids=where,
            past_key_values=self.cache,
            use_cache=True,
        )
        return states[0]

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Commit these rows of the last pass (0 is the root); the cache drops the others and all stream rows."""
        assert self.cache is not None, "no run"
        carried = self._carried
        if carried is None or carried.rows is None:
            self.cache.keep(self.length, rows)
        else:  # the top layers never had the pruned rows
            self.cache.keep(self.length, rows, slice(self._first))
            self.cache.keep(self.length, [carried.place(r) for r in rows], slice(self._first, None))
        self.length += len(rows)

    @property
    def vocabulary(self) -> int:
        """How many token ids the model can read and score."""
        return int(self.anatomy.model.get_input_embeddings().num_embeddings)

    def rewind(self, length: int) -> None:
        """Forget the committed positions from ``length`` on."""
        assert self.cache is not None, "no run"
        self.cache.keep(length, [])
        self.length = length

    def synchronize(self) -> None:
        synchronize(self.anatomy.device)

    def release(self) -> None:
        """End the run and free its memory."""
        self.cache = self._carried = self._top = None
        self._states = torch.empty(0)
        self.length = self._deferred_rows = 0

    @property
    def _first(self) -> int:
        """The first layer with streams."""
        assert self.adapter is not None
        return len(self.anatomy.layers) - self.adapter.streams.layers

    def _pass(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        mask: Tensor,
        nodes: Sequence[int],
        draft: Draft | None = None,
    ) -> Tensor:
        """States ``[n, hidden]`` after the final norm; those of pruned rows mean nothing."""
        device, anatomy = self.anatomy.device, self.anatomy
        where = torch.tensor([list(positions)], device=device)
        masks = self._masks(mask.to(device), where, self.length)
        plan = Plan(masks, where, torch.tensor([list(nodes)], device=device))
        self.pruned = frozenset()
        with self._carry(plan, draft) if self.adapter and nodes else nullcontext() as carried:
            out = anatomy.decoder(
                input_ids=torch.tensor([list(tokens)], device=device),
                attention_mask=self._model_masks(masks, len(tokens)),
                position_ids=where,
                past_key_values=self.cache,
                use_cache=True,
            )
        self._carried = carried
        self.stream_rows, self._deferred_rows = self._deferred_rows, 0
        if carried and not self._deferred:
            self.stream_rows += carried.states[0, :, :, 0].numel()
        return out.last_hidden_state[0]

    @contextmanager
    def _carry(self, plan: Plan, draft: Draft | None) -> Iterator[Carried]:
        assert self.adapter is not None
        streams = self.adapter.streams
        prune = (lambda states: self._survivors(states, draft)) if self._threshold and draft else None
        with carry(self.anatomy, streams, plan, self._stream_lora, prune, attach=not self._deferred) as carried:
            yield carried

    @property
    def _stream_lora(self) -> LoRA | None:
        """What acts on stream rows only; in shared mode LoRA is merged into the weights."""
        assert self.adapter is not None
        return self.adapter.lora if self.adapter.card.mode == "lossless" else None

    def _survivors(self, states: Tensor, draft: Draft) -> list[int]:
        """Rows that go on, from states ``[1, n, hidden]`` at layer N - N_s: the root, and nodes that are likely enough
        after their parent."""
        assert self.adapter is not None
        rows = sorted({p + 1 for p in draft.parents})  # leaves need no early exit
        logits = self.adapter.logits(self.anatomy, self.adapter.streams.exit_states(states[0, rows]))
        above = [rows.index(p + 1) for p in draft.parents]
        logprobs = logits[above, list(draft.tokens)] - logits.logsumexp(-1)[above]
        self.pruned = pruned(draft.parents, (logprobs >= math.log(self._threshold)).tolist())
        return [row for row in range(len(draft) + 1) if row - 1 not in self.pruned]

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """While open, a pass is recorded that deferred streams can follow."""
        with ExitStack() as stack:
            if self._deferred:
                assert self.adapter is not None
                self._top = TopLayers(self.anatomy, len(self.anatomy.layers) - self._first, self.adapter.merged)
                stack.enter_context(self._top.recorded())
            yield

    def _late_streams(self, main: Tensor) -> Tensor:
        """States ``[gamma, hidden]`` of the streams of the row kept last, from its state ``[1, 1, hidden]`` at layer
        N - N_s, by a pass through the top layers. What the row saw is just what the cache holds."""
        assert self.adapter is not None and self.cache is not None and self._top is not None, "no run"
        where = torch.tensor([[self.length - 1]], device=main.device)
        row = self._masks(causal_mask(1, self.length - 1).to(main.device), where, self.length - 1)
        masks = {t: with_streams(m, torch.zeros_like(where), self.gamma)[:, 1:] for t, m in row.items()}
        merged, streams = self.adapter.merged, self.adapter.streams
        lora = None if merged else self._stream_lora
        layers = merged or self.anatomy.layers[self._first :]
        with lora.attached(self.anatomy) if lora else nullcontext(), streams.turned(layers, 0):
            start = streams.start(main).flatten(1, 2)
            out = self._top.run(start, masks, ahead(where, self.gamma, self.context))
        self.cache.keep(self.length, [], slice(self._first, None))
        self._deferred_rows += self.gamma
        return out[0]

    def _masks(self, mask: Tensor, positions: Tensor, prefix: int) -> Masks:
        masks = {FULL: mask}
        if self.anatomy.window:
            keys = torch.cat([torch.arange(prefix, device=mask.device)[None], positions], 1)
            masks[SLIDING] = windowed(mask, positions, keys, self.anatomy.window)
        return {t: masks[t] for t in set(self.anatomy.layer_types)}

    def _model_masks(self, masks: Masks, rows: int) -> Any:
        if rows == 1 and not self.anatomy.window:
            return None  # one row sees everything: without a mask attention takes its fast path
        floats = {t: additive(m, self.anatomy.dtype) for t, m in masks.items()}
        return floats if self.anatomy.mask_by_type else floats[self.anatomy.layer_types[0]]


class PlainTarget:
    """Standard decoding only, for models that can't verify a tree: the model's own cache and masks."""

    gamma = 0
    stream_rows = 0
    pruned: Collection[int] = ()

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
