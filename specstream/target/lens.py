"""The stream lens: what each stream predicts at each of its layers, and which tokens of the text it attends to.

The streams' hidden states after every layer go through the final norm and the LM head, as those of the last layer do
when they draft (the logit lens of nostalgebraist, 2020). They are recomputed for one token position in a separate pass,
which does not affect any run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from specstream.params import Streaming
from specstream.target.model_target import ModelTarget

GUESSES, PLACES = 3, 6  # tokens per layer, and positions of the text, that are reported


@dataclass(frozen=True)
class Watched:
    """``logits`` ``[1 + layers, gamma, drafted]`` before the first layer with streams and after each of them;
    ``ids`` ``[drafted]`` their tokens, None for all; ``shares`` ``[gamma, tokens]`` the share of a stream's attention
    on each token of the text, mean over layers and heads, None if the model does not expose it."""

    logits: Tensor
    ids: Tensor | None
    shares: Tensor | None


def look(engine: Any, ids: Sequence[int]) -> dict[str, Any]:
    """The state of the streams when they drafted what follows the last of ``ids``, in plain values.

    ``layers`` are the layer numbers, starting with the one below the first layer with streams; ``streams`` is a list
    with, for each stream, ``beliefs`` (per layer, a list of [text, probability]) and ``looked`` ([index, text, share]
    of the tokens that it attended to most; empty if the model does not expose attention). The first token is left out,
    because it is an attention sink. ``text`` holds the tokens of ``ids``.

    Raises ValueError if the model has no streams, for fewer than two tokens, and for more than fit in the context.
    """
    if reason := engine.info.unavailable.get(Streaming.name):
        raise ValueError(reason)
    if len(ids) < 2:
        raise ValueError("There is nothing before the first token for the streams to attend to.")
    if len(ids) > (most := engine.info.context):
        raise ValueError(f"The text has {len(ids):,} tokens; this model's context is {most:,}: shorten the text.")
    with engine.lock:
        target = engine.make_target(engine.settled(Streaming(streams="deferred", prune=0)))
        seen: Watched = target.look(ids) if hasattr(target, "look") else watch(target, ids)
    top = seen.logits.softmax(-1).topk(GUESSES, -1)
    tokens = top.indices if seen.ids is None else seen.ids[top.indices]
    beliefs = [
        [
            [[engine.show(token), round(value, 4)] for token, value in zip(*pair, strict=True)]
            for pair in zip(tokens[:, stream].tolist(), top.values[:, stream].tolist(), strict=True)
        ]
        for stream in range(tokens.shape[1])
    ]
    looked = _looked(engine, ids, seen.shares, len(beliefs))
    first = (engine.info.layers or len(seen.logits)) - len(seen.logits) + 1
    return {
        "layers": list(range(first, first + len(seen.logits))),
        "text": [engine.show(token) for token in ids],
        "streams": [{"beliefs": b, "looked": places} for b, places in zip(beliefs, looked, strict=True)],
    }


def _looked(engine: Any, ids: Sequence[int], shares: Tensor | None, streams: int) -> list[list[list[Any]]]:
    if shares is None:
        return [[] for _ in range(streams)]
    most = shares[:, 1:].topk(min(PLACES, shares.shape[1] - 1), -1)
    return [
        [[place + 1, engine.show(ids[place + 1]), round(share, 4)] for place, share in zip(*pair, strict=True)]
        for pair in zip(most.indices.tolist(), most.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def watch(target: ModelTarget, ids: Sequence[int]) -> Watched:
    """Run the text without its last token through the model, then the streams of its last row, and record these."""
    assert target.adapter is not None, "no streams"
    layers = list(target.adapter.merged) or list(target.anatomy.layers[-target.adapter.streams.layers :])
    states: list[Tensor] = []
    try:
        target.prefill(ids[:-1])
        with _uncompiled(layers), _noted(layers, states), _attended(layers) as shares:
            target.stream_logits(0)
        logits = torch.stack([target.adapter.draft_logits(target.anatomy, state[0]) for state in states])
    finally:
        target.release()
    mean = torch.stack([s[:, : len(ids) - 1] for s in shares]).mean(0) if shares else None
    return Watched(logits, target.stream_ids, mean)


@contextmanager
def _noted(layers: Sequence[nn.Module], states: list[Tensor]) -> Iterator[None]:
    """A context that records the states ``[1, rows, hidden]`` before the first layer and after each layer."""

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: nn.Module, _args: Any, out: Any) -> None:
        states.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _uncompiled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which these layers run uncompiled, because a compiled one does not expose its attention."""
    compiled = [(layer, vars(layer).pop("forward", None)) for layer in layers]
    try:
        yield
    finally:
        for layer, forward in compiled:
            if forward is not None:
                layer.forward = forward


@contextmanager
def _attended(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A context that records the attention ``[rows, keys]`` of each of these layers, mean over heads, if they use
    transformers' attention interface."""
    kept: list[Tensor] = []
    known = AttentionInterface()
    configs: list[Any] = [m.config for m in layers[0].modules() if hasattr(m, "config")]
    name = str(configs[0]._attn_implementation) if configs else ""
    if name not in known:
        yield kept
        return
    own = known[name]

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scaling: float | None = None,
        **more: Any,
    ) -> Any:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query.float().unflatten(1, (key.shape[1], -1)) @ key.float()[:, :, None].transpose(-1, -2) * scale
        kept.append((scores + mask[:, :, None].float()).softmax(-1).mean((0, 1, 2)))
        return own(module, query, key, value, mask, scaling=scaling, **more)

    AttentionInterface.register(name, attend)
    try:
        yield kept
    finally:
        AttentionInterface.register(name, own)
