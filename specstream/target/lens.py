"""The stream lens: what each stream believes at each of its layers, and where in the text it looks.

The states of the streams after every layer go through the final norm and the LM head, as those of the last layer do
when they draft (the logit lens of nostalgebraist, 2020). Computed again for one place of a text, in a pass of its own:
no run is touched by it.
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

GUESSES, PLACES = 3, 6  # tokens of a layer, and places of the text, that are told


@dataclass(frozen=True)
class Watched:
    """``logits`` ``[1 + layers, gamma, drafted]`` before the first layer with streams and after each of them;
    ``ids`` ``[drafted]`` their tokens, None for all; ``shares`` ``[gamma, tokens]`` how much of a stream's attention
    each token of the text has, mean over layers and heads, None where the model does not tell."""

    logits: Tensor
    ids: Tensor | None
    shares: Tensor | None


def look(engine: Any, ids: Sequence[int]) -> dict[str, Any]:
    """What the streams saw when the last of ``ids`` had been chosen and they drafted what follows it, in plain values.

    ``layers`` are the numbers of the layers, the one below the first with streams before them; ``streams`` a list with,
    for each stream, ``beliefs`` (a list for each layer of [text, probability]) and ``looked`` ([place, text, share] of
    the tokens that it looked at most; empty where the model does not tell). The first token is left out: attention that
    has nothing to look at rests there. ``text`` are the tokens of ``ids``.

    Raises ValueError where the model has no streams, or for less than two tokens.
    """
    if reason := engine.info.unavailable.get(Streaming.name):
        raise ValueError(reason)
    if len(ids) < 2:
        raise ValueError("There is nothing before the first token for the streams to look at.")
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
    """Put the text but for its last token through the model, then the streams of its last row, and watch these."""
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
    """While open, the states ``[1, rows, hidden]`` that enter the first layer and leave each of them are kept."""

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
    """While open, these layers run as Python: a compiled one tells nothing of its attention."""
    compiled = [(layer, vars(layer).pop("forward", None)) for layer in layers]
    try:
        yield
    finally:
        for layer, forward in compiled:
            if forward is not None:
                layer.forward = forward


@contextmanager
def _attended(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """While open, the attention ``[rows, keys]`` of each of these layers is kept, mean over heads, where they attend by
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
