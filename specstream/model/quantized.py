"""Linear layers in int8 on a CPU: one scale per output of the weights and one per row, with integer sums.

They are computed by our functions in C++ (``specstream.native``), or by oneDNN where these can't be built. Integer sums
are exact, so a row's result never depends on other rows. Inputs of some channels are far larger than the rest: their
scale, measured on a few texts, is first moved into the weights (SmoothQuant, Xiao et al. 2023).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from specstream import native
from specstream.model.hardware import ABSENT

TOP, MIDDLE = 127, 128  # the largest integer, and the zero point of an unsigned byte
SHARE = 0.45  # smoothing: exponent of the inputs' magnitude; that of the weights' is one minus this
TINY = 1e-20  # a row with a smaller scale is treated as zero
ROWS = 16  # number of rows for which oneDNN chooses the layout; it works for other numbers too

# Texts that calibrate the magnitude of the inputs: prose, a conversation, facts, code and a query.
TEXTS = (
    "The river rises in the hills and runs south past three small towns. In spring the water is high, and people walk "
    "along its banks. A boat leaves the quay at nine every morning; it takes an hour to the lake.",
    "User: How do I bake bread?\nAssistant: Mix 500 g of flour with water, salt and yeast, let it rise for two hours, "
    "then bake it at 220 degrees. Here are three tips:\n\n1. Use warm water.\n2. Wait.\n3. Let it cool.",
    "Facts: name[Old Mill], eatType[pub], area[city centre], near[Harbour Hall]\nText: Old Mill is a pub.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "CREATE TABLE users (name VARCHAR, age INTEGER)\n\nSELECT name FROM users WHERE age > 30 AND name <> 'Ann';",
)

torch.library.define(  # for a compiler
    "specstream::linear_int8",
    "(Tensor x, Tensor unit, Tensor middle, Tensor packed, Tensor scale, Tensor zero) -> Tensor",
)
torch.library.register_fake(
    "specstream::linear_int8",
    lambda x, unit, middle, packed, scale, zero: x.new_empty(x.shape[0], packed.shape[1], dtype=torch.float32),
)
# Bypasses Python's checks for fake tensors. Missing in builds without oneDNN, which ``works`` detects.
_qlinear: Any = getattr(getattr(torch.ops.onednn, "qlinear_pointwise", None), "default", None)
_qlinear = getattr(_qlinear, "_op", None)


class Int8Linear(nn.Module, ABC):
    """``y = W x + b`` like the ``nn.Linear`` that it replaces, with W and x quantised to 255 levels.

    ``inputs`` ``[in]`` is the largest magnitude of each input channel; without it, channels are not smoothed. The
    weights can no longer be read or moved. A row's result has the same bits whatever other rows are computed.
    """

    TENSORS: tuple[str, ...]

    def __init__(self, weight: Tensor, bias: Tensor | None = None, inputs: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        weight = weight.float()
        channels = torch.ones(self.in_features) if inputs is None else _smoothing(weight, inputs)
        weight = weight * channels
        self.smooth, self.bias = 1 / channels, None if bias is None else bias.float()
        self.scale = weight.abs().amax(1).clamp_min(TINY) / TOP
        self._pack((weight / self.scale[:, None]).round().to(torch.int8))

    @abstractmethod
    def _pack(self, weight: Tensor) -> None:
        """Store the quantised weight ``[out, in]``."""


class NativeInt8(Int8Linear):
    """By our functions in C++; needs ``native.multiplies``, and a number of inputs that is a multiple of ``INPUTS``."""

    TENSORS = ("packed", "smooth", "scale", "offset", "bias")
    INPUTS = 16  # the floats of the widest register
    STEP = 4  # inputs that the instruction multiplies at once

    def _pack(self, weight: Tensor) -> None:
        self.packed = native.in_panels(weight, self.STEP)
        self.offset = native.to_panels(MIDDLE * weight.sum(1, dtype=torch.int32))
        self.scale = native.to_panels(self.scale)
        self.bias = None if self.bias is None else native.to_panels(self.bias)
        found = native.library()
        assert found is not None
        self._matmul = found.specstream_linear_in_bytes

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, both in the number format of ``x``."""
        if torch.compiler.is_exporting():
            given = self.packed, self.smooth, self.scale, self.offset, self.bias
            flat = torch.ops.specstream.byte_linear(x.flatten(0, -2), *given, self.out_features)
            return flat.view(*x.shape[:-1], self.out_features)
        return self._multiplied(x, x.dtype)

    def floats(self, x: Tensor) -> Tensor:
        """What ``forward`` returns, in float32, which saves converting it."""
        return self._multiplied(x, torch.float32)

    def _multiplied(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x, out = x.contiguous(), x.new_empty(*x.shape[:-1], self.out_features, dtype=dtype)
        given = self.packed, self.smooth, self.scale, self.offset, self.bias
        rows, pointers = x.numel() // self.in_features, [None if t is None else t.data_ptr() for t in given]
        formats = x.dtype == torch.bfloat16, dtype == torch.float32
        self._matmul(*formats, x.data_ptr(), rows, self.in_features, *pointers, self.out_features, out.data_ptr())
        return out


class OneDnnInt8(Int8Linear):
    """By oneDNN, which needs no compiler and is slower."""

    TENSORS = ("packed", "scale", "zero", "smooth", "unit", "middle", "bias")

    def _pack(self, weight: Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(weight, [ROWS, self.in_features])
        self.zero = torch.zeros(self.out_features, dtype=torch.int32)
        self.unit, self.middle = torch.ones(1), torch.full((1,), MIDDLE, dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, both in the number format of ``x``."""
        rows = x.flatten(0, -2).float() * self.smooth
        top = rows.abs().amax(-1, keepdim=True).clamp_min(TINY)
        out = self._matmul((rows * (TOP / top)).round_().add_(MIDDLE).to(torch.uint8)) * (top / TOP)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _matmul(self, rows: Tensor) -> Tensor:
        """The matmul of unsigned bytes ``[rows, in]``; oneDNN has no fast kernel for signed ones."""
        tensors = self.packed, self.scale, self.zero
        if torch.compiler.is_exporting():
            return cast(Tensor, torch.ops.specstream.linear_int8(rows, self.unit, self.middle, *tensors))
        return cast(Tensor, _qlinear(rows, 1.0, MIDDLE, *tensors, None, 1.0, 0, torch.float32, "none", [], ""))


def fast() -> bool:
    """Whether int8 is computed by our functions in C++, and so faster than 16 bits."""
    return native.multiplies(torch.int8)


def int8_linear(weight: Tensor, bias: Tensor | None = None, inputs: Tensor | None = None) -> Int8Linear:
    """The faster of the two that works here; arguments as of ``Int8Linear``."""
    ours = weight.shape[1] % NativeInt8.INPUTS == 0 and fast()
    return (NativeInt8 if ours else OneDnnInt8)(weight, bias, inputs)


def _smoothing(weight: Tensor, inputs: Tensor) -> Tensor:
    """The factors ``[in]`` by which input channels are divided and their weights multiplied."""
    return inputs.clamp_min(1e-5) ** SHARE / weight.abs().amax(0).clamp_min(1e-5) ** (1 - SHARE)


@functools.cache
@torch.inference_mode()
def works() -> bool:
    """Whether this processor sums products of bytes exactly, and this build of PyTorch has that matmul.

    Processors without the instructions (VNNI) add pairs of products in 16 bits, which can overflow.
    """
    weight = torch.full((64, 128), -1.0)
    weight[::2] = 1.0
    rows = torch.ones(5, 128)
    rows[:, 1::4] = -1
    try:
        linear = int8_linear(weight)
        return all(torch.allclose(linear(x), x @ weight.T) for x in (rows, rows.abs(), -rows[:1]))
    except ABSENT:
        return False


@torch.inference_mode()
def error(linear: Int8Linear, weight: Tensor, rows: Tensor) -> float:
    """The quantisation error of the outputs for these rows ``[n, in]``, relative to their magnitude."""
    rows, weight = rows.float(), weight.float()
    bias = 0 if linear.bias is None else linear.bias[: linear.out_features]
    want = rows @ weight.T
    return float((linear(rows) - bias - want).norm() / want.norm().clamp_min(TINY))


def samples(tokenizer: Any, context: int, texts: Sequence[str] = TEXTS) -> tuple[Tensor, ...]:
    """Token ids ``[1, tokens]`` of the calibration texts."""
    ids = (tokenizer(text, return_tensors="pt").input_ids[:, :context] for text in texts)
    return tuple(i for i in ids if i.numel())
