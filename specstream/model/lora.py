"""LoRA (Hu et al. 2021) on every linear layer of the decoder, optionally restricted to some rows.

Our own instead of peft's, because in lossless mode the adapters act on the stream rows only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from specstream.model.introspection import Anatomy


class LoRA(nn.Module):
    """One pair of low-rank factors per linear layer in decoder layers ``first`` .. N-1: ``y = W x + scale * B A x``.

    A is ``[rank, in]``, initialised randomly; B is ``[out, rank]``, zero, so that training starts from the base model.
    """

    def __init__(self, anatomy: Anatomy, rank: int, scale: float, first: int = 0) -> None:
        super().__init__()
        self.rank, self.scale, self.first = rank, scale, first
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for layer in range(first, len(anatomy.layers)):
            for path, linear in anatomy.linears(layer).items():
                inner, outer = _sizes(linear)
                key = _key(layer, path)
                self.a[key] = nn.Parameter(torch.randn(rank, inner) * inner**-0.5)
                self.b[key] = nn.Parameter(torch.zeros(outer, rank))

    @contextmanager
    def attached(self, anatomy: Anatomy, first_row: int = 0, rows: int = 0) -> Iterator[None]:
        """A context in which the adapters act in the model's forward: on all rows, or on ``first_row`` .. ``rows`` - 1
        of each sequence of ``rows``."""
        hooks = [
            linear.register_forward_hook(self._hook(_key(layer, path), first_row, rows))
            for layer in range(self.first, len(anatomy.layers))
            for path, linear in self._targets(anatomy, layer)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def below(self, layer: int) -> Iterator[nn.Parameter]:
        """The LoRA factors of the layers below ``layer``."""
        for factors in (self.a, self.b):
            yield from (weight for key, weight in factors.items() if int(key.split("/")[0]) < layer)

    def _targets(self, anatomy: Anatomy, layer: int) -> Iterator[tuple[str, nn.Module]]:
        """The adapted linear layers of a decoder layer by path; looked up by name, since they may have been packed."""
        for path, module in anatomy.layers[layer].named_modules():
            if _key(layer, path) in self.a:
                yield path, module

    def _hook(self, key: str, first_row: int, rows: int) -> Any:
        def act(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            # Some families flatten batch and rows before their linear layers (OPT).
            count = rows if first_row else out.shape[-2]
            x, y = (t.reshape(-1, count, t.shape[-1]) for t in (args[0], out))
            a, b = (w[key].to(y.dtype) for w in (self.a, self.b))  # with mixed precision x has more bits than y
            return cast(Tensor, _AddLowRank.apply(y, x.to(y.dtype), a, b, self.scale, first_row)).reshape(out.shape)

        return act

    @torch.no_grad()
    def merge(self, anatomy: Anatomy) -> None:
        """Merge the adapters permanently into the model's weights. The sum is computed in float32.

        Raises RuntimeError if the model's weights are packed.
        """
        layers = range(self.first, len(anatomy.layers))
        if {_key(layer, path) for layer in layers for path in anatomy.linears(layer)} != self.a.keys():
            raise RuntimeError("The model's weights are packed and can't be changed: merge a LoRA before packing them.")
        for layer in layers:
            for path, linear in anatomy.linears(layer).items():
                weight, key = cast(Tensor, linear.weight), _key(layer, path)
                a, b = (factor[key].float().to(weight.device) for factor in (self.a, self.b))
                first, second = (a.T, b.T) if isinstance(linear, Conv1D) else (b, a)
                weight.copy_(torch.addmm(weight.float(), first, second, alpha=self.scale))


class _AddLowRank(torch.autograd.Function):
    """``y + scale * B A x`` from row ``first`` on, added to ``y`` in place, with a backward pass that keeps no
    full-size intermediates, unlike a matmul, a scaling and a sum."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, first: int) -> Tensor:
        x = x[:, first:].reshape(-1, x.shape[-1])
        inner = x @ a.T
        y[:, first:].add_((inner @ b.T).view(len(y), -1, y.shape[-1]), alpha=scale)
        ctx.save_for_backward(x, a, b, inner)
        ctx.scale, ctx.first = scale, first
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, inner = ctx.saved_tensors
        part = grad[:, ctx.first :].reshape(-1, grad.shape[-1])
        back = (part @ b).mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[1]:
            to_x = (back @ a).view(len(grad), -1, a.shape[1])
            to_x = nn.functional.pad(to_x, (0, 0, ctx.first, 0)) if ctx.first else to_x
        return grad, to_x, back.T @ x, (part.T @ inner).mul_(ctx.scale), None, None


def _key(layer: int, path: str) -> str:
    return f"{layer}/{path}".replace(".", "/")  # a ParameterDict key must not contain a dot


def _sizes(linear: nn.Module) -> tuple[int, int]:
    rows, columns = cast(Tensor, linear.weight).shape
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)
