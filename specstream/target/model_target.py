"""The model whose output must not change, behind four calls: prefill, verify, keep, release."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specstream.adapters.heads import Heads
from specstream.adapters.weights import Adapter
from specstream.decoding.interfaces import Stopped, never
from specstream.events import Draft
from specstream.model import attention
from specstream.model.cpu_linear import LEAST
from specstream.model.introspection import Anatomy, context_of
from specstream.model.kv_cache import TreeCache
from specstream.model.lora import LoRA
from specstream.model.masks import Masks, causal_mask, layer_masks, model_masks, of_streams, tree_mask
from specstream.model.partial_forward import RecordedCalls, ahead, run_below
from specstream.params import Streaming
from specstream.streams.stream_attention import Carried, PassLayout, carry
from specstream.tree import Candidates, attention_rows, pruned

CHUNK = 512  # prompt rows per pass: bounds the size of the mask
TILE = 16  # on accelerators, passes have a multiple of this many rows: libraries choose kernels by the number of rows
NO_EXIT = "Pruning needs an adapter with an early exit, and this one has none: set pruning to 0, or train one with it."


Examples = list[tuple[Tensor, Tensor]]  # see TreeCache.examples
_CACHED: WeakKeyDictionary[nn.Module, dict[tuple[torch.dtype, torch.device], Examples]] = WeakKeyDictionary()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, so that times are correct."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Variant:
    """How a target computes streams.

    ``deferred``: only the streams of the accepted row, after ``keep``; else those of every row, right after its pass
    (the paper). ``prune`` is the early-exit probability below which a node is dropped with its descendants; 0 keeps
    all.
    """

    deferred: bool = False
    prune: float = 0.0

    @classmethod
    def of(cls, params: Streaming) -> Variant:
        """The variant that a method's settings in force ask for."""
        return cls(params.streams == "deferred", params.prune)


class ModelTarget:
    """A stock Hugging Face causal LM. With ``streams`` it computes those of its adapter; with ``heads``, their logits.

    State belongs to one run, from ``prefill`` to ``release``. With ``direct``, passes call the layers directly where
    this equals the model's own forward. Raises ValueError for a variant that prunes if the adapter has no early exit.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        adapter: Adapter | None = None,
        streams: Variant | None = None,
        heads: Heads | None = None,
        direct: bool = True,
    ) -> None:
        if streams and streams.prune and adapter and not adapter.streams.exit_rank:
            raise ValueError(NO_EXIT)
        self.anatomy, self.adapter = anatomy, adapter if streams else None
        self.variant = streams or Variant()
        self.heads = heads or Heads()
        self.medusa_depth = self.heads.medusa.card.count if self.heads.medusa else 0
        self.gamma = self.adapter.card.gamma if self.adapter else 0
        self.context = anatomy.context
        self.stream_rows = 0
        self.pruned: Collection[int] = frozenset()
        self.length = 0  # committed positions in the cache
        self.cache: TreeCache | None = None
        self.direct = direct
        self._calls: RecordedCalls | None = None
        self._carried: Carried | None = None
        self._deferred_rows = 0
        self._states = torch.empty(0)  # of the last pass, after the final norm

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = never) -> Tensor:
        """Run the prompt through the model. Returns the logits of its last row, float32 ``[1, vocab]``.

        Raises Stopped between two chunks of a long prompt once ``should_stop`` returns True.
        """
        examples = self._cached()
        self.cache, self.length, self._calls = TreeCache(len(self.anatomy.layers)), 0, None
        self.cache.initialize(examples)
        chunks = [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]
        states = torch.empty(0)
        for chunk in chunks:
            if should_stop():
                raise Stopped
            positions = range(self.length, self.length + len(chunk))
            mask = causal_mask(len(chunk), self.length)
            last = chunk is chunks[-1]
            with attention.prompt_pass():
                states = self._pass(chunk, positions, mask, [len(chunk) - 1] if last else [])
            self.keep(range(len(chunk)))
        self._states = states[-1:]
        return self.anatomy.head_logits(self._states)

    def _cached(self) -> Examples:
        """What the model caches; found by a pass of one row, once in a process. Every run of a model thus starts with a
        cache, and reads its prompt in the same way."""
        known = _CACHED.setdefault(self.anatomy.model, {})
        form = self.anatomy.dtype, self.anatomy.device
        if form not in known:
            self.cache, self.length, self._calls = TreeCache(len(self.anatomy.layers)), 0, None
            with attention.prompt_pass():
                self._pass([0], range(1), causal_mask(1, 0), [])
            known[form] = self.cache.examples()
        return known[form]

    @torch.inference_mode()
    def verify(self, root: int, draft: Draft) -> Tensor:
        """One pass over the root and the draft's nodes.

        Returns logits, float32 ``[1 + nodes, vocab]``, without rows for ``pruned`` nodes.
        """
        rows = [root, *draft.tokens]
        fill = self._padded(len(rows)) - len(rows)  # padding rows: further roots, whose results are not used
        positions = [self.length, *(self.length + d for d in draft.depths()), *[self.length] * fill]
        visible = attention_rows(draft.parents) + [[len(rows) + i] for i in range(fill)]
        mask = tree_mask(visible, self.length)
        states = self._states = self._pass(rows + [root] * fill, positions, mask, range(len(rows)), draft)
        logits = self.anatomy.head_logits(states, rows=len(rows))
        if not self.pruned:
            return logits  # a view: copying the logits of every row would take as long as choosing from them
        return logits[[row for row in range(len(rows)) if row - 1 not in self.pruned]]

    def _padded(self, rows: int) -> int:
        """The number of rows of a pass after padding."""
        return max(rows, LEAST) if self.anatomy.device.type == "cpu" else -(-rows // TILE) * TILE

    @torch.inference_mode()
    def stream_logits(self, row: int) -> Tensor:
        """Logits of the streams of a row of the last pass (of the prompt pass: 0), float32 ``[gamma, drafted]``.

        Computed only for the accepted row, after verification: the head over every node's streams would cost more than
        it gains. Deferred streams are available only after ``keep``, for the last row kept.
        """
        assert self.adapter is not None and self._carried is not None, "no pass with streams yet"
        index = self._carried.index(row)
        if self.variant.deferred:
            states = self._late_streams(self._carried.main[:, index : index + 1])
        else:
            states = self._carried.states[0, index]
        return self.adapter.draft_logits(self.anatomy, states)

    @property
    def stream_ids(self) -> Tensor | None:
        """The ids of the tokens that streams can draft; None: all."""
        return self.adapter.vocabulary if self.adapter else None

    @property
    def stream_pairs(self) -> Callable[[Tensor, int, int], Candidates] | None:
        """The pair map, which scores a stream's tokens given their parent; None if the adapter has none."""
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
        """The ids of the tokens that Medusa heads can draft; None: all."""
        return self.heads.medusa.vocabulary if self.heads.medusa else None

    @contextmanager
    def early_exit(self) -> Iterator[Callable[[int], Tensor]]:
        """A context that yields a function: it appends a token to the text and to the tokens before it, runs it through
        the first layers, and returns the exit's logits ``[1, vocab]``. Their keys and values are dropped at the end.
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
        """State ``[1, hidden]`` after the first ``layers`` layers of one row that attends to all of their cache."""
        assert self.cache is not None, "no run"
        self.cache.reserve(position + 1)
        where = torch.tensor([[position]], device=self.anatomy.device)
        mask = causal_mask(1, position).to(where.device)
        states = run_below(
            self.anatomy,
            layers,
            input_ids=torch.tensor([[token]], device=where.device),
            attention_mask=model_masks(
                self.anatomy, layer_masks(self.anatomy, mask, where, position), self.cache.capacity
            ),
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
        else:  # pruned rows never reached the top layers
            self.cache.keep(self.length, rows, slice(self._first))
            self.cache.keep(self.length, [carried.index(r) for r in rows], slice(self._first, None))
        self.length += len(rows)

    @property
    def vocabulary(self) -> int:
        """The number of token ids that the model can read and score."""
        return int(self.anatomy.model.get_input_embeddings().num_embeddings)

    def rewind(self, length: int) -> None:
        """Discard the committed positions from ``length`` on."""
        assert self.cache is not None, "no run"
        self.cache.keep(length, [])
        self.length = length

    def synchronize(self) -> None:
        synchronize(self.anatomy.device)

    def release(self) -> None:
        """End the run and free its memory."""
        self.cache = self._carried = self._calls = None
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
        """States ``[n, hidden]`` after the final norm; those of pruned rows are meaningless."""
        assert self.cache is not None, "no run"
        device, anatomy = self.anatomy.device, self.anatomy
        self.cache.reserve(self.length + len(tokens))
        where = torch.tensor([list(positions)], device=device)
        masks = layer_masks(anatomy, mask.to(device), where, self.length)
        plan = PassLayout(masks, where, torch.tensor([list(nodes)], device=device), self.cache.capacity)
        self.pruned = frozenset()
        pruning = bool(self.variant.prune and draft)
        if draft is not None and self.direct and self._calls and self._calls.whole and not pruning:
            states = self._through_layers(tokens, plan)
        else:
            states = self._by_the_model(tokens, plan, draft)
        self.stream_rows, self._deferred_rows = self._deferred_rows, 0
        if self._carried and not self.variant.deferred:
            self._add_streams(self._carried, plan)
        return states

    def _through_layers(self, tokens: Sequence[int], plan: PassLayout) -> Tensor:
        """A pass equal to the model's own, without the Python code of its forward around the layers."""
        anatomy, calls = self.anatomy, self._calls
        assert calls is not None
        rows = calls.rows(plan.masks, plan.positions, plan.keys)
        states = anatomy.model.get_input_embeddings()(torch.tensor([list(tokens)], device=anatomy.device))
        after = [states, *calls.run(states, rows, range(len(anatomy.layers)))]
        if self.adapter:
            self._carried = Carried()
            self._carried.main = after[self._first].index_select(1, plan.nodes[0])
        return anatomy.normed(after[-1])[0]

    def _by_the_model(self, tokens: Sequence[int], plan: PassLayout, draft: Draft | None) -> Tensor:
        """A pass by the model's own forward. The first pass of a run is recorded."""
        anatomy = self.anatomy
        noted = self._noted(plan, draft) if self.adapter and plan.nodes.numel() else nullcontext()
        recorded: AbstractContextManager[None] = nullcontext()
        if self._calls is None:
            self._calls = RecordedCalls(anatomy)
            recorded = self._calls.recorded()
        with noted as self._carried, recorded:
            out = anatomy.decoder(
                input_ids=torch.tensor([list(tokens)], device=anatomy.device),
                attention_mask=model_masks(anatomy, plan.masks, plan.keys),
                position_ids=plan.positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        return out.last_hidden_state[0]

    @contextmanager
    def _noted(self, plan: PassLayout, draft: Draft | None) -> Iterator[Carried]:
        """A context in which a pass records the states at layer N - N_s, from which streams start, and prunes."""
        assert self.adapter is not None
        if self.variant.prune and draft:
            survivors = partial(self._survivors, draft=draft)
            with carry(self.anatomy, self.adapter.streams, plan, survivors=survivors, attach=False) as carried:
                yield carried
            return
        carried = Carried()

        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            carried.main = states[:, plan.nodes[0]]

        hook = self.anatomy.layers[self._first].register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield carried
        finally:
            hook.remove()

    def _add_streams(self, carried: Carried, plan: PassLayout) -> None:
        """Compute the streams of all rows that carry them, through the top layers after the pass itself, so that no
        token's numbers depend on whether there are streams."""
        assert self.cache is not None
        kept = plan if carried.rows is None else plan.narrowed(carried.rows)
        keys = {t: m.gather(1, kept.nodes[:, :, None].expand(-1, -1, m.shape[2])) for t, m in kept.masks.items()}
        states = self._stream_states(carried.main, keys, kept.positions.gather(1, kept.nodes))
        self.cache.keep(self.length, range(kept.positions.shape[1]), slice(self._first, None))
        carried.states = states[None]
        self.stream_rows += (plan.nodes.shape[1] - len(self.pruned)) * self.gamma

    @property
    def _stream_lora(self) -> LoRA | None:
        """The LoRA that acts on stream rows only; in shared mode LoRA is merged into the weights."""
        assert self.adapter is not None
        return self.adapter.lora if self.adapter.card.mode == "lossless" else None

    def _survivors(self, states: Tensor, draft: Draft) -> list[int]:
        """The rows that enter the top layers, from states ``[1, n, hidden]`` at layer N - N_s: all but the pruned
        nodes, plus as many pruned or padding rows as a pass needs."""
        self.pruned = self._unlikely(states, draft)
        order = sorted(range(states.shape[1]), key=lambda row: row - 1 in self.pruned or row > len(draft))
        return sorted(order[: self._padded(len(draft) + 1 - len(self.pruned))])

    def _unlikely(self, states: Tensor, draft: Draft) -> frozenset[int]:
        """The nodes that the early exit finds too unlikely after their parent, and their descendants."""
        assert self.adapter is not None
        rows = sorted({p + 1 for p in draft.parents})  # leaves need no early exit
        logits = self.adapter.logits(self.anatomy, self.adapter.streams.exit_states(states[0, rows]))
        above = [rows.index(p + 1) for p in draft.parents]
        logprobs = logits[above, list(draft.tokens)] - logits.logsumexp(-1)[above]
        return pruned(draft.parents, (logprobs >= math.log(self.variant.prune)).tolist())

    def _late_streams(self, main: Tensor) -> Tensor:
        """States ``[gamma, hidden]`` of the streams of the row kept last, from its state ``[1, 1, hidden]`` at layer
        N - N_s. The cache holds exactly what that row attended to."""
        assert self.cache is not None
        where = torch.tensor([[self.length - 1]], device=main.device)
        row = layer_masks(self.anatomy, causal_mask(1, self.length - 1).to(main.device), where, self.length - 1)
        states = self._stream_states(main, row, where)[0]
        self.cache.keep(self.length, [], slice(self._first, None))
        self._deferred_rows += self.gamma
        return states

    def _stream_states(self, main: Tensor, masks: Masks, positions: Tensor) -> Tensor:
        """States ``[S, gamma, hidden]`` of the streams of S rows after the last layer, by a pass of the top layers.

        ``main`` ``[1, S, hidden]`` are the rows' states at layer N - N_s, ``masks`` ``[1, S, keys]`` what each sees of
        the top layers' cache, ``positions`` ``[1, S]``. Afterwards the cache holds the streams; the caller must drop
        them.
        """
        assert self.adapter is not None and self.cache is not None and self._calls is not None, "no run"
        count, first = main.shape[1], list(self.anatomy.layers)[self._first :]
        merged, streams = self.adapter.merged, self.adapter.streams
        held = next(iter(masks.values())).shape[2]
        rows = count * self.gamma
        self.cache.reserve(held + rows)
        wider = {t: of_streams(m, self.gamma) for t, m in masks.items()}
        lora = None if merged else self._stream_lora
        with lora.attached(self.anatomy) if lora else nullcontext(), streams.turned(merged or first, 0):
            start = streams.start(main).flatten(1, 2)
            placed = self._calls.rows(wider, ahead(positions, self.gamma, self.context), self.cache.capacity)
            *_, last = self._calls.run(start, placed, range(self._first, len(self.anatomy.layers)), merged)
        return last[0].unflatten(0, (count, self.gamma))


class PlainTarget:
    """Standard decoding only, for models that can't verify trees: the model's own cache and masks."""

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
        """Run the prompt through the model. Returns the logits of its last row, float32 ``[1, vocab]``.

        One pass, however long the prompt: not every model can continue its own state by several tokens. Raises Stopped
        if ``should_stop`` returns True before it.
        """
        self.release()
        if should_stop():
            raise Stopped
        return self._pass(ids)

    @torch.inference_mode()
    def verify(self, root: int, draft: Draft) -> Tensor:
        """A pass over the root. Returns its logits, float32 ``[1, vocab]``. Raises ValueError for a non-empty draft."""
        if len(draft):
            raise ValueError("This model can't verify drafts.")
        return self._pass([root])

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing to do: without drafts every row stays."""

    def synchronize(self) -> None:
        synchronize(self.model.device)

    def release(self) -> None:
        """End the run and free its memory."""
        self._state, self._ids = {}, []

    def _pass(self, tokens: Sequence[int]) -> Tensor:
        self._ids += tokens
        ids = list(tokens) if self._state else self._ids  # a model that returns no state reads the whole text again
        out = self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=True, **self._state)
        names = ("past_key_values", "cache_params", "state")  # recurrent models have another name for their state
        self._state = {n: out[n] for n in names if getattr(out, n, None) is not None}
        return out.logits[0, -1:].float()
