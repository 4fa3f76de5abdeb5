"""Attention in which a row's result depends only on its own past.

A token must get the same bits whether it is decoded alone or as a node of a draft tree. The library's attention sums
over keys in an order that changes with their number and with their indices in the cache. Here a masked key has a weight
of exactly zero, and interleaved zeros do not change any sum over keys.

It is registered with transformers' attention interface, so it works for every family that uses that interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from specstream import native

NAME = "specstream"
# Fractional bits. Products of two factors are multiples of 2**-36, those of a weight and a value of 2**-43, so sums
# below 2**17 and 2**10 are exact in float64, whatever their order.
FACTORS, VALUES = 18, 20
_prompt: ContextVar[bool] = ContextVar("prompt", default=False)


@contextmanager
def prompt_pass() -> Iterator[None]:
    """A context for the rows of a prompt. All methods read them in the same passes, so without our functions in C++ the
    library's attention may be used, which is faster for many rows than our matmuls."""
    token = _prompt.set(True)
    try:
        yield
    finally:
        _prompt.reset(token)


def reads_prompt() -> bool:
    """Whether a ``prompt_pass`` is under way."""
    return _prompt.get()


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' ``AttentionInterface``: returns ``[B, rows, heads, head_dim]``, and no weights.

    ``query`` is ``[B, heads, rows, head_dim]``; ``key`` and ``value`` are ``[B, kv_heads, keys, head_dim]``. The mask
    ``[B, 1, rows, keys]`` is added to the scores, so it includes a sliding window. ``s_aux`` ``[heads]`` are sinks.
    """
    shared, scale = key.shape[1], query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = query.unflatten(1, (shared, -1))  # [B, kv_heads, group, rows, head_dim]
    mask = attention_mask[:, :, None].float()
    sinks = None if s_aux is None else s_aux.float().view(1, shared, -1, 1, 1)
    plain = softcap is None and s_aux is None and query.device.type == "cpu"
    ours = _by_native(query, key, value)
    if plain and reads_prompt() and not ours and not torch.compiler.is_exporting():
        return _by_the_library(query, key, value, attention_mask, scale), None
    if ours:
        s_aux = None if s_aux is None else s_aux.float()
        made = torch.ops.specstream.attend(
            query, key.transpose(-1, -2), value, attention_mask, scale, softcap or 0.0, s_aux
        )
        return made.view(1, query.shape[2], query.shape[1], -1), None
    if torch.compiler.is_exporting():
        out = _looped(grouped, key, value, mask, scale, softcap, sinks)
    else:
        out = _multiplied(grouped, key, value, mask, scale, softcap, sinks)
    return out.to(query.dtype).permute(0, 3, 1, 2, 4).flatten(2, 3), None


def _by_native(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the function in C++ is used: on a CPU, for one text, without gradients."""
    return (
        query.device.type == "cpu"
        and (torch.compiler.is_exporting() or torch.is_inference_mode_enabled())
        and query.shape[0] == 1
        and native.takes(query.dtype, key.shape[2], value.shape[3])
    )


def _by_the_library(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    shared = key.shape[1] != query.shape[1]
    out = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=shared)
    return out.transpose(1, 2)


def _multiplied(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """By matmuls, in whatever order they sum: on a fixed-point grid in float64 all orders give the same result."""
    rows = query.flatten(2, 3)
    if (
        query.dtype == torch.bfloat16 and query.device.type == "cpu"
    ):  # sums over the head dimension: always in the same order
        scores = torch.matmul(rows, key.transpose(-1, -2)).float()
    else:
        scores = torch.matmul(_on_grid(rows, FACTORS), _on_grid(key, FACTORS).transpose(-1, -2)).float()
    weights, total = _weights(scores.unflatten(2, query.shape[2:4]) * scale, mask, softcap, sinks)
    values = _on_grid(value, VALUES)
    out = torch.matmul(weights.flatten(2, 3).to(values.dtype), values)
    return out.unflatten(2, query.shape[2:4]) / total


def _on_grid(x: Tensor, bits: int) -> Tensor:
    """``x`` in float64, rounded to multiples of 2**-bits; unrounded float32 on MPS, which has no float64."""
    if x.device.type == "mps":
        return x.float()
    shift = 1.5 * 2.0 ** (52 - bits)  # so large that the sum can't represent smaller digits
    return (x.double() + shift) - shift


def _looped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """As sums that a compiler turns into loops: one key at a time in float32, vectorised over the head dimension."""
    hold = torch.ops.specstream.hold
    rows = hold(query.float() * scale)
    scores = (rows[..., None] * key.float().transpose(-1, -2)[:, :, None, None]).sum(-2)  # [B, kv, group, rows, keys]
    weights, total = _weights(hold(scores), mask, softcap, sinks)
    return (hold(weights)[..., None] * value.float()[:, :, None, None]).sum(-2) / total


def _weights(scores: Tensor, mask: Tensor, softcap: float | None, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unnormalised softmax weights, and their sum ``[..., 1]``; all float32.

    Weights are rounded to multiples of 2**-23 and at most 1, so their sums in float64 are exact in any order.
    """
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    highest = scores.amax(-1, keepdim=True)
    if sinks is not None:
        highest = torch.maximum(highest, sinks)
    weights = ((scores - highest).exp() + 1) - 1
    total = weights.sum(-1, keepdim=True, dtype=None if scores.device.type == "mps" else torch.float64)
    if sinks is not None:
        total = total + ((sinks - highest).exp() + 1) - 1
    return weights, total.float()


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
if not hasattr(torch.ops.specstream, "hold"):
    torch.library.define("specstream::hold", "(Tensor x) -> Tensor")  # keeps a compiler from recomputing x
    torch.library.impl("specstream::hold", "CompositeExplicitAutograd", lambda x: x.clone())
    torch.library.register_fake("specstream::hold", lambda x: torch.empty_like(x).contiguous())


def install(model: PreTrainedModel) -> bool:
    """Make a model use ``attend``. Returns False if its family does not use the attention interface."""
    if not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(NAME)
    return True


@contextmanager
def using(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """A context in which a model uses another attention implementation."""
    before = model.config._attn_implementation
    if implementation == before:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
