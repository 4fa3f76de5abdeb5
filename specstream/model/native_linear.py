"""Linear layers in C++ (``specstream.native``), in which a few rows take little longer than reading the weights.

Weights are in bfloat16 like the rows, or in float16 with float32 rows, for processors that have no bfloat16.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from specstream import native

LARGEST = torch.finfo(torch.float16).max
PAIR = 2  # inputs that the instruction for bfloat16 multiplies at once
# Bypasses Python's checks for fake tensors.
_fbgemm: Any = torch.ops.quantized.linear_dynamic_fp16.default._op


class NativeLinear(nn.Module):
    """``y = W x + b`` like the ``nn.Linear`` that it replaces, with float32 sums.

    A ``weight`` in bfloat16 stays so; any other is rounded to float16, and rows are float32. A row's result has the
    same bits whatever other rows are computed. Needs ``native.multiplies``, and for bfloat16 an even number of inputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.in_bfloat16 = weight.dtype == torch.bfloat16
        rounded = weight if self.in_bfloat16 else weight.clamp(-LARGEST, LARGEST).half()
        self.packed = native.in_panels(rounded, PAIR if self.in_bfloat16 else 1)
        self.bias = None if bias is None else native.to_panels(bias.float())
        found = native.library()
        assert found is not None
        self._matmul = found.specstream_linear

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if torch.compiler.is_exporting():
            flat = torch.ops.specstream.packed_linear(x.flatten(0, -2), self.packed, self.bias, self.out_features)
            return flat.view(*x.shape[:-1], self.out_features)
        if self.in_bfloat16 and x.dtype != torch.bfloat16:  # float32 weights, for a check
            bias = None if self.bias is None else self.bias[: self.out_features].to(x.dtype)
            return nn.functional.linear(x, self._unpacked().to(x.dtype), bias)
        return self._multiplied(x, x.dtype)

    def floats(self, x: Tensor) -> Tensor:
        """What ``forward`` returns, in float32, which saves converting it."""
        return self.forward(x) if x.dtype == torch.float32 else self._multiplied(x, torch.float32)

    def _multiplied(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x, out = x.contiguous(), x.new_empty(*x.shape[:-1], self.out_features, dtype=dtype)
        rows, bias = x.numel() // self.in_features, None if self.bias is None else self.bias.data_ptr()
        given = x.data_ptr(), rows, self.in_features, self.packed.data_ptr(), bias, self.out_features
        self._matmul(self.in_bfloat16, dtype == torch.float32, *given, out.data_ptr())
        return out

    def _unpacked(self) -> Tensor:
        return self.packed.transpose(1, 2).flatten(2).flatten(0, 1)[: self.out_features]


class FbgemmLinear(nn.Module):
    """Float16 weights by PyTorch's FBGEMM, which needs no compiler and is slower."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return cast(Tensor, _fbgemm(x, self.packed))


def half_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A layer with float16 weights, the faster of the two that work here."""
    return (NativeLinear if native.multiplies(torch.float16) else FbgemmLinear)(weight, bias)
