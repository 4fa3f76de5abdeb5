"""Linear layers with float16 weights and float32 arithmetic, for processors that have no bfloat16.

Reading the weights takes most of a pass, and float16 halves it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from specstream import native

PANEL = 16  # outputs whose weights lie together
LARGEST = torch.finfo(torch.float16).max
# Bypasses Python's checks for fake tensors.
_fbgemm: Any = torch.ops.quantized.linear_dynamic_fp16.default._op


class HalfLinear(nn.Module):
    """``y = W x + b`` like the ``nn.Linear`` that it replaces: float32 rows, weights rounded to float16.

    A row's result has the same bits whatever other rows are computed. Needs ``native.library()``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.float()
        self.packed = _in_panels(weight)
        self._matmul = native.linear_half()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, float32."""
        if torch.compiler.is_exporting():
            out = torch.ops.specstream.linear_half(x.flatten(0, -2), self.packed, self.out_features)
            out = out.view(*x.shape[:-1], self.out_features)
            return out if self.bias is None else out + self.bias
        x, out = x.contiguous(), x.new_empty(*x.shape[:-1], self.out_features)
        rows = x.numel() // self.in_features
        self._matmul(x.data_ptr(), rows, self.in_features, self.packed.data_ptr(), self.out_features, out.data_ptr())
        return out if self.bias is None else out.add_(self.bias)


class FbgemmLinear(nn.Module):
    """The same by PyTorch's FBGEMM, which needs no compiler and is slower."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return cast(Tensor, _fbgemm(x, self.packed))


def half_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """The faster of the two that works here."""
    return (FbgemmLinear if native.library() is None else HalfLinear)(weight, bias)


def _in_panels(weight: Tensor) -> Tensor:
    """A weight ``[out, in]`` as float16 ``[panels, in, PANEL]``, filled up with zeros."""
    outputs, inputs = weight.shape
    panels = -(-outputs // PANEL)
    packed = torch.zeros(panels * PANEL, inputs, dtype=torch.float16)
    packed[:outputs] = weight.clamp(-LARGEST, LARGEST)
    return packed.view(panels, PANEL, inputs).transpose(1, 2).contiguous()
