"""Attention in which a row's numbers depend on nothing but its own past.

A token must get the same bits whether it is decoded alone or as a node of a draft tree. The library's attention sums
over keys in an order that changes with their number and with where they lie in the cache. Here a key that a row does
not see has a weight of exactly zero, and every sum over keys is one that zeros in between don't disturb.

It is registered with transformers' attention interface, so it serves every family that uses that interface.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "specstream"


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
    """Attention as of transformers' ``AttentionInterface``: ``[B, rows, heads, head_dim]``, and no weights.

    ``query`` is ``[B, heads, rows, head_dim]``; ``key`` and ``value`` are ``[B, kv_heads, keys, head_dim]``. The mask
    ``[B, 1, rows, keys]`` is added to the scores, so it holds a window too. ``s_aux`` ``[heads]`` are attention sinks.
    """
    shared, scale = key.shape[1], query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = query.unflatten(1, (shared, -1))  # [B, kv_heads, group, rows, head_dim]
    mask = attention_mask[:, :, None].float()
    sinks = None if s_aux is None else s_aux.float().view(1, shared, -1, 1, 1)
    if torch.compiler.is_exporting():
        out = _looped(grouped, key, value, mask, scale, softcap, sinks)
    else:
        out = _multiplied(grouped, key, value, mask, scale, softcap, sinks)
    return out.to(query.dtype).permute(0, 3, 1, 2, 4).flatten(2, 3), None


def _multiplied(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """By matrix multiplication: in bfloat16 where that was seen to be exact, else in float64."""
    kind = _accumulator(query)
    rows = query.flatten(2, 3).to(kind)
    scores = torch.matmul(rows, key.to(kind).transpose(-1, -2)).unflatten(2, query.shape[2:4])
    weights, total = _weights(scores.float() * scale, mask, softcap, sinks, kind)
    return torch.matmul(weights.flatten(2, 3), value.to(kind)).unflatten(2, query.shape[2:4]).float() / total


def _looped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """As sums for a compiler to make loops of: key after key in float32, with the head's dimensions side by side."""
    hold = torch.ops.specstream.hold
    rows = hold(query.float() * scale)
    scores = (rows[..., None] * key.float().transpose(-1, -2)[:, :, None, None]).sum(-2)  # [B, kv, group, rows, keys]
    weights, total = _weights(hold(scores), mask, softcap, sinks, torch.float32)
    return (hold(weights)[..., None] * value.float()[:, :, None, None]).sum(-2) / total


def _weights(
    scores: Tensor, mask: Tensor, softcap: float | None, sinks: Tensor | None, kind: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weights of a softmax before division, in ``kind``, and their sum, float32 ``[..., 1]``.

    Weights are rounded to multiples of 2**-23: the largest is 1, and sums of them in float64 are exact in any order.
    """
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    highest = scores.amax(-1, keepdim=True)
    if sinks is not None:
        highest = torch.maximum(highest, sinks)
    weights = (((scores - highest).exp() + 1) - 1).to(kind)
    total = weights.sum(-1, keepdim=True, dtype=None if scores.device.type == "mps" else torch.float64)
    if sinks is not None:
        total = total + ((sinks - highest).exp() + 1) - 1
    return weights, total.float()


def _accumulator(query: Tensor) -> torch.dtype:
    if query.device.type == "mps":  # no float64 there
        return torch.float32
    exact = query.dtype == torch.bfloat16 and query.device.type == "cpu" and bfloat16_matmul_is_exact()
    return torch.bfloat16 if exact else torch.float64


@functools.cache
@torch.inference_mode()
def bfloat16_matmul_is_exact() -> bool:
    """Whether this processor's bfloat16 matmul sums over keys one after the other, zeros in between or not."""
    generator = torch.Generator().manual_seed(0)
    rows, keys = torch.rand(1, 24, 96, generator=generator).bfloat16(), 256
    values = torch.randn(1, 96, 64, generator=generator).bfloat16()
    for gap in (0, 1, 7, 32):
        apart, spread = torch.zeros(1, 24, keys), torch.zeros(1, keys, 64)
        places = torch.cat([torch.arange(80), torch.arange(80, 96) + gap * torch.arange(1, 17).clamp_max(4)])
        apart[:, :, places], spread[:, places] = rows.float(), values.float()
        got = torch.bmm(apart.bfloat16(), spread.bfloat16())
        for count in (4, 6, 24):
            if not torch.equal(torch.bmm(rows[:, :count], values), got[:, :count]):
                return False
    return True


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
if not hasattr(torch.ops.specstream, "hold"):
    torch.library.define("specstream::hold", "(Tensor x) -> Tensor")  # keeps a compiler from computing x again
    torch.library.impl("specstream::hold", "CompositeExplicitAutograd", lambda x: x.clone())
    torch.library.register_fake("specstream::hold", lambda x: torch.empty_like(x).contiguous())


def install(model: PreTrainedModel) -> bool:
    """Let a model attend by ``attend``. False where its family does not use the attention interface."""
    if not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(NAME)
    return True


@contextmanager
def using(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """While open, a model attends by another implementation."""
    before = model.config._attn_implementation
    if implementation == before:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
