"""Linear maps with their weights packed once for the few rows of a decoding pass, on a CPU.

PyTorch's default product is slow for one to thirty rows. Two layouts: oneDNN's, in float32 or in bfloat16 where the
processor computes in it, and FBGEMM's of float16, which computes in float32 and reads half as many bytes. Maps that
read the same rows (queries, keys and values; gate and up) become one product. Every kind of decoding gains; the figures
are in the log of experiments.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from specstream.model.hardware import computes_bfloat16
from specstream.model.introspection import Anatomy
from specstream.model.lora import LoRA

ROWS = 16  # rows that oneDNN's layout is chosen for; it serves other numbers as well

LEAST = 4  # rows of a pass: one row alone is slower than four, and a matmul of one row rounds otherwise than of more


class PackedLinear(nn.Module):
    """``y = W x + b`` like the ``nn.Linear`` that it replaces, by oneDNN, in the weights' own number format.

    Its weights can no longer be read or moved. Every row gets the same bits whatever rows are beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.bias = weight.dtype, bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if torch.compiler.is_exporting():
            flat = torch.ops.specstream.linear(x.flatten(0, -2), self.packed, self.bias)
            return flat.view(*x.shape[:-1], self.out_features)
        if x.dtype != self.dtype:  # a check in float32
            return self._unpacked(x)
        if x.numel() == self.in_features:  # a single row
            several = x.reshape(1, -1).expand(LEAST, -1)
            return _onednn(several, self.packed, self.bias, "none", [], "")[:1].view(*x.shape[:-1], -1)
        return cast(Tensor, _onednn(x, self.packed, self.bias, "none", [], ""))

    def _unpacked(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.packed.to_dense().to(x.dtype), bias)


class HalfLinear(nn.Module):
    """The same by FBGEMM: float32 rows, and weights rounded to float16, which are half as many bytes to read."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return cast(Tensor, _fbgemm(x, self.packed))


# Without Python's checks for fake tensors. Absent from builds without oneDNN or FBGEMM: ``works`` finds out.
_onednn: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
_onednn = getattr(_onednn, "_op", None)
_fbgemm: Any = torch.ops.quantized.linear_dynamic_fp16.default._op


torch.library.define("specstream::linear", "(Tensor x, Tensor packed, Tensor? bias) -> Tensor")  # for a compiler
torch.library.register_fake("specstream::linear", lambda x, packed, bias: x.new_empty(x.shape[0], packed.shape[0]))


def packed_linear(linear: nn.Linear, half: bool = False) -> nn.Module:
    """A packed layer in place of a linear one. With ``half`` its weights are rounded to float16."""
    bias = None if linear.bias is None else linear.bias.detach()
    return (HalfLinear if half else PackedLinear)(linear.weight.detach(), bias)


class PackedPart(nn.Module):
    """One of several maps that share a product: its outputs are columns ``start`` .. ``stop`` - 1."""

    def __init__(self, shared: Shared, start: int, stop: int) -> None:
        super().__init__()
        self.shared, self._start, self._stop = shared, start, stop

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, a view."""
        return self.shared.of(x, self._start)[..., self._start : self._stop]


class Shared:
    """The product of several maps. The first that is called with some rows computes it, the others take theirs.

    Each takes it once: called again, a map computes anew, so that rows changed in place are never missed.
    """

    def __init__(self, linear: nn.Module, parts: int) -> None:
        self.linear, self._parts = linear, parts
        self._rows: Tensor | None = None
        self._out: Tensor | None = None
        self._taken: set[int] = set()

    def of(self, x: Tensor, part: int) -> Tensor:
        """The whole product ``[..., all outputs]`` of these very rows."""
        if self._rows is not x or part in self._taken:
            self._rows, self._out, self._taken = x, self.linear(x), set()
        out = cast(Tensor, self._out)
        self._taken.add(part)
        if len(self._taken) == self._parts:
            self._rows = self._out = None
        return out


@torch.inference_mode()
def works(half: bool = False, dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has the packed product for weights of a ``dtype`` and computes it rightly."""
    linear, x = nn.Linear(48, 64, dtype=dtype), torch.randn(1, 3, 48, dtype=dtype)
    rounding = 1e-2 if half else max(1e-4, 3 * torch.finfo(dtype).eps)
    try:
        return torch.allclose(packed_linear(linear, half)(x), linear(x), atol=rounding)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def suits(anatomy: Anatomy, half: bool = False) -> bool:
    """Whether packing helps this model: not where the processor would only emulate its dtype."""
    native = anatomy.dtype == torch.float32 or (anatomy.dtype == torch.bfloat16 and computes_bfloat16("cpu"))
    return anatomy.device.type == "cpu" and native and works(half, anatomy.dtype)


def pack(anatomy: Anatomy, half: bool = False) -> Anatomy:
    """Pack every linear map of the layers and the head, in place, where that helps; else change nothing.

    Norms are made one call each. To be called last: weights can't be changed afterwards. ``half`` rounds those of the
    linear maps to float16.
    """
    if not suits(anatomy, half):
        return anatomy
    for owners in _groups(anatomy):
        _replace(owners, half)
    for module in anatomy.model.modules():
        _one_call(module)
    if not isinstance(anatomy.head, nn.Linear):
        return anatomy
    head = packed_linear(anatomy.head, half)
    anatomy.model.set_output_embeddings(head)
    return replace(anatomy, head=head)


def merged_copies(anatomy: Anatomy, lora: LoRA, half: bool = False) -> list[nn.Module]:
    """Copies of the layers that a LoRA changes, with it merged and packed where that helps, for rows that it acts on.

    To be called before ``pack``. Their weights take as much memory again as those of the layers.
    """
    own = list(anatomy.layers[lora.first :])
    places = range(lora.first, len(anatomy.layers))
    for i in places:
        anatomy.layers[i] = copy.deepcopy(own[i - lora.first])
    try:
        lora.merge(anatomy)
        copies = list(anatomy.layers[lora.first :])
        if suits(anatomy, half):
            for owners in _groups(anatomy, lora.first):
                _replace(owners, half)
            for module in (m for layer in copies for m in layer.modules()):
                _one_call(module)
    finally:
        for i in places:
            anatomy.layers[i] = own[i - lora.first]
    return copies


@torch.inference_mode()
def _one_call(norm: nn.Module) -> None:
    """Let a norm that computes PyTorch's ``rms_norm`` call just that: families spell it out in seven operations."""
    weight, own = getattr(norm, "weight", None), vars(norm)
    eps = own.get("variance_epsilon", own.get("eps"))
    if not type(norm).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or eps is None:
        return
    one = partial(_rms_norm, norm, eps)
    x = torch.randn(2, 3, *weight.shape, dtype=weight.dtype)
    places = max(1e-5, 2 * torch.finfo(weight.dtype).eps)  # they round at other places
    with suppress(Exception):  # a foreign module may want other inputs: it stays as it is
        if torch.allclose(norm(x), one(x), rtol=places, atol=places / 10):
            setattr(norm, "forward", one)  # noqa: B010


def _rms_norm(norm: nn.Module, eps: float, x: Tensor) -> Tensor:
    weight = cast(Tensor, norm.weight)
    return nn.functional.rms_norm(x, weight.shape, weight, eps)


@torch.inference_mode()
def round_weights(anatomy: Anatomy) -> None:
    """Round what ``pack`` packs to float16, in place: a stock model then computes with the values of a packed one."""
    for module in (m for layer in anatomy.layers for m in layer.modules() if isinstance(m, nn.Linear)):
        module.weight.copy_(module.weight.half())
    if isinstance(anatomy.head, nn.Linear):  # it may be tied to the embedding, which is not rounded
        head = copy.copy(anatomy.head)
        head._parameters = dict(head._parameters, weight=nn.Parameter(head.weight.half().float()))
        anatomy.model.set_output_embeddings(head)


Owner = tuple[nn.Module, str]  # a module and the name of a linear map in it


def _groups(anatomy: Anatomy, first: int = 0) -> list[list[Owner]]:
    """The linear maps of the layers from ``first`` on; those of one module that read the same tensor together, seen on
    a token."""
    owners = [
        (module, name)
        for layer in anatomy.layers[first:]
        for module in layer.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    read: dict[int, Tensor] = {}  # held, so that no two have one id

    def note(index: int, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            read[index] = args[0]

    hooks = [getattr(m, n).register_forward_pre_hook(partial(note, i)) for i, (m, n) in enumerate(owners)]
    with torch.inference_mode():
        anatomy.model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
    for hook in hooks:
        hook.remove()
    together: dict[tuple[int, int], list[Owner]] = defaultdict(list)
    for index, owner in enumerate(owners):
        together[id(owner[0]), id(read[index]) if index in read else -index].append(owner)
    return list(together.values())


@torch.inference_mode()
def _replace(owners: Sequence[Owner], half: bool) -> None:
    linears = [getattr(module, name) for module, name in owners]
    if len(linears) == 1:
        module, name = owners[0]
        setattr(module, name, packed_linear(linears[0], half))
        return
    biases = [torch.zeros(m.out_features, dtype=m.weight.dtype) if m.bias is None else m.bias for m in linears]
    bias = torch.cat(biases) if any(m.bias is not None for m in linears) else None
    weight = torch.cat([m.weight for m in linears])
    shared, start = Shared((HalfLinear if half else PackedLinear)(weight, bias), len(linears)), 0
    for (module, name), linear in zip(owners, linears, strict=True):
        setattr(module, name, PackedPart(shared, start, start + linear.out_features))
        start += linear.out_features
