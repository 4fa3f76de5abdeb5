"""Linear layers on a CPU, with weights packed once for the few rows of a decoding pass.

PyTorch's default matmul is slow for one to thirty rows. There are these layouts: ours, in bfloat16 if the processor
supports it, or with float16 weights and float32 arithmetic (``native_linear``); oneDNN's, in float32, in bfloat16 where
ours can't be built, and in int8 (``quantized``).
Layers that read the same rows (queries, keys and values; gate and up) become one matmul. All decoding methods gain;
docs/experiments.md has the figures.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from specstream import native
from specstream.model import attention, quantized
from specstream.model.hardware import ABSENT, computes_bfloat16
from specstream.model.introspection import Anatomy
from specstream.model.lora import LoRA
from specstream.model.native_linear import PAIR, FbgemmLinear, NativeLinear, half_linear
from specstream.model.quantized import Int8Linear, int8_linear

ROWS = 16  # number of rows for which oneDNN chooses the layout; it works for other numbers too

WORST = 0.02  # int8: a linear layer whose outputs would change by more than this share is not quantised
TRIED = 8  # decoder layers in which this is measured

LEAST = 4  # fewest rows of a pass: a single row is slower than four, and its matmul rounds differently
MOST = 32  # most rows that oneDNN multiplies at a time: with AMX it rounds more of them in another way


@dataclass(frozen=True)
class Format:
    """The format in which linear weights are packed: "native", their own number format; "float16"; or "int8".

    For int8, ``kept`` are the paths of the linear layers that stay in their own number format in every decoder layer,
    and ``inputs`` the largest magnitude of every input channel ``[in]``, by decoder layer and path.
    """

    name: str = "native"
    kept: frozenset[str] = frozenset()
    inputs: Mapping[tuple[int, str], Tensor] = field(default_factory=dict, compare=False)

    @property
    def half(self) -> bool:
        return self.name == "float16"


NATIVE, FLOAT16 = Format(), Format("float16")


def of_drafts(form: Format) -> Format:
    """The format of what only drafts, in a model with this one: int8 where it is fast, since drafts change no text."""
    return Format("int8") if form.name != "int8" and quantized.fast() else form


class PackedLinear(nn.Module):
    """``y = W x + b`` like the ``nn.Linear`` that it replaces, by oneDNN, in the weights' own number format.

    Its weights can no longer be read or moved. A row's result has the same bits whatever other rows are computed, but
    in a ``prompt_pass``, which is faster.
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
        if x.dtype != self.dtype:  # float32 weights, for a check
            return self._unpacked(x)
        if x.numel() == self.in_features:  # a single row
            several = x.reshape(1, -1).expand(LEAST, -1)
            return _onednn(several, self.packed, self.bias, "none", [], "")[:1].view(*x.shape[:-1], -1)
        if x.numel() <= MOST * self.in_features or attention.reads_prompt():
            return cast(Tensor, _onednn(x, self.packed, self.bias, "none", [], ""))
        parts = x.reshape(-1, self.in_features).tensor_split(-(-x.numel() // (MOST * self.in_features)))
        return torch.cat([self(part) for part in parts]).view(*x.shape[:-1], -1)

    def _unpacked(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.packed.to_dense().to(x.dtype), bias)


# Bypasses Python's checks for fake tensors. Missing in builds without oneDNN, which ``works`` detects.
_onednn: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
_onednn = getattr(_onednn, "_op", None)


torch.library.define("specstream::linear", "(Tensor x, Tensor packed, Tensor? bias) -> Tensor")  # for a compiler
torch.library.register_fake("specstream::linear", lambda x, packed, bias: x.new_empty(x.shape[0], packed.shape[0]))


def packed_linear(linear: nn.Linear, half: bool = False) -> nn.Module:
    """A packed layer that replaces a linear one. With ``half`` its weights are rounded to float16."""
    return _packed(linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), half)


def draft_linear(linear: nn.Linear, half: bool = False) -> nn.Module:
    """The same for a layer that only drafts; see ``of_drafts``."""
    if not quantized.fast():
        return packed_linear(linear, half)
    return int8_linear(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())


def _packed(weight: Tensor, bias: Tensor | None, half: bool) -> nn.Module:
    if half:
        return half_linear(weight, bias)
    ours = weight.dtype == torch.bfloat16 and weight.shape[1] % PAIR == 0
    return (NativeLinear if ours and native.multiplies(torch.bfloat16) else PackedLinear)(weight, bias)


class PackedPart(nn.Module):
    """One of several linear layers that share a matmul: its outputs are columns ``start`` .. ``stop`` - 1."""

    def __init__(self, shared: Shared, start: int, stop: int) -> None:
        super().__init__()
        self.shared, self._start, self._stop = shared, start, stop

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, a view."""
        return self.shared.of(x, self._start)[..., self._start : self._stop]


class Shared:
    """The joint matmul of several linear layers. The first layer called with some rows computes it; the others take
    their parts.

    Each part can be taken once: a layer that is called again recomputes it, so rows changed in place are never missed.
    """

    def __init__(self, linear: nn.Module, parts: int) -> None:
        self.linear, self._parts = linear, parts
        self._rows: Tensor | None = None
        self._out: Tensor | None = None
        self._taken: set[int] = set()

    def of(self, x: Tensor, part: int) -> Tensor:
        """The whole result ``[..., all outputs]`` for exactly these rows."""
        if self._rows is not x or part in self._taken:
            self._rows, self._out, self._taken = x, self.linear(x), set()
        out = cast(Tensor, self._out)
        self._taken.add(part)
        if len(self._taken) == self._parts:
            self._rows = self._out = None
        return out


@torch.inference_mode()
def works(half: bool = False, dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has the packed matmul for weights of this ``dtype``, and it is correct."""
    linear, x = nn.Linear(48, 64, dtype=dtype), torch.randn(1, 3, 48, dtype=dtype)
    rounding = 1e-2 if half else max(1e-4, 3 * torch.finfo(dtype).eps)
    try:
        return torch.allclose(packed_linear(linear, half)(x), linear(x), atol=rounding)
    except ABSENT:
        return False


def suits(anatomy: Anatomy, half: bool = False) -> bool:
    """Whether packing helps this model; it doesn't if the processor only emulates its dtype."""
    computed = anatomy.dtype == torch.float32 or (anatomy.dtype == torch.bfloat16 and computes_bfloat16("cpu"))
    return anatomy.device.type == "cpu" and computed and works(half, anatomy.dtype)


def pack(anatomy: Anatomy, form: Format = NATIVE) -> Anatomy:
    """Pack the linear layers of the decoder and the head, in place, if that helps; else change nothing.

    Each norm becomes a single call. Call this last: weights can't be changed afterwards. The head is never in int8.
    """
    if not suits(anatomy, form.half):
        return anatomy
    _pack_layers(anatomy, form)
    for module in anatomy.model.modules():
        _one_call(module)
    if not isinstance(anatomy.head, nn.Linear):
        return anatomy
    head = packed_linear(anatomy.head, form.half)
    anatomy.model.set_output_embeddings(head)
    return replace(anatomy, head=head)


def merged_copies(anatomy: Anatomy, lora: LoRA, form: Format = NATIVE) -> list[nn.Module]:
    """Copies of the layers that a LoRA changes, for the rows it acts on: with LoRA merged, and packed if that helps.

    Call this before ``pack``. The copies take as much memory as the layers themselves.
    """
    own = list(anatomy.layers[lora.first :])
    adapted = range(lora.first, len(anatomy.layers))
    for i in adapted:
        anatomy.layers[i] = copy.deepcopy(own[i - lora.first])
    try:
        lora.merge(anatomy)
        copies = list(anatomy.layers[lora.first :])
        if suits(anatomy, form.half):
            _pack_layers(anatomy, form, lora.first)
            for module in (m for layer in copies for m in layer.modules()):
                _one_call(module)
    finally:
        for i in adapted:
            anatomy.layers[i] = own[i - lora.first]
    return copies


def calibrated(anatomy: Anatomy, samples: Sequence[Tensor]) -> Format:
    """The int8 format for a model, from the inputs of its linear layers on these texts, token ids ``[1, tokens]``.

    Call this before ``pack``. A linear layer is not quantised if int8 changes its outputs by more than ``WORST`` on
    average over ``TRIED`` decoder layers. The choice is the same for all decoder layers, which thus keep one structure.
    """
    if not suits(anatomy):
        return NATIVE
    groups = _groups(anatomy, range(len(anatomy.layers)))
    inputs: dict[tuple[int, str], Tensor] = {}
    errors: dict[str, list[float]] = defaultdict(list)
    tried = range(0, len(anatomy.layers), -(-len(anatomy.layers) // TRIED))
    for owners, rows in zip(groups, _inputs(anatomy, groups, samples), strict=True):
        largest = rows.float().abs().amax(0) if len(rows) else None
        if largest is not None:
            inputs |= {(owner.layer, owner.path): largest for owner in owners}
        if owners[0].layer not in tried:
            continue
        weight, bias = _joined(owners)
        made = int8_linear(weight, bias, largest)
        for owner in owners:
            errors[owner.path].append(quantized.error(made, weight, rows) if len(rows) else float("inf"))
    kept = frozenset(path for path, shares in errors.items() if fmean(shares) > WORST)
    return Format("int8", kept, inputs)


def format_of(layer: nn.Module) -> Format:
    """The format in which a decoder layer is packed, without ``inputs``; "native" also if it is not packed."""
    kinds: dict[str, nn.Module] = {}
    for path, module in layer.named_modules():
        kinds[path] = module.shared.linear if isinstance(module, PackedPart) else module
    if any(_in_float16(m) for m in kinds.values()):
        return FLOAT16
    if not any(isinstance(m, Int8Linear) for m in kinds.values()):
        return NATIVE
    kept = (path for path, m in kinds.items() if isinstance(m, PackedLinear | NativeLinear))
    return Format("int8", kept=frozenset(kept))


def _in_float16(linear: nn.Module) -> bool:
    return isinstance(linear, FbgemmLinear) or (isinstance(linear, NativeLinear) and not linear.in_bfloat16)


@torch.inference_mode()
def _one_call(norm: nn.Module) -> None:
    """Replace a norm that is equivalent to PyTorch's ``rms_norm`` by that call; families use seven operations."""
    weight, own = getattr(norm, "weight", None), vars(norm)
    eps = own.get("variance_epsilon", own.get("eps"))
    if not type(norm).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or eps is None:
        return
    one = partial(_rms_norm, norm, eps)
    x = torch.randn(2, 3, *weight.shape, dtype=weight.dtype)
    rounding = max(1e-5, 2 * torch.finfo(weight.dtype).eps)  # they round at different steps
    with suppress(Exception):  # a foreign module may need other inputs: leave it unchanged
        if torch.allclose(norm(x), one(x), rtol=rounding, atol=rounding / 10):
            setattr(norm, "forward", one)  # noqa: B010


def _rms_norm(norm: nn.Module, eps: float, x: Tensor) -> Tensor:
    weight = cast(Tensor, norm.weight)
    if x.dtype == weight.dtype and native.takes(x.dtype, weight.numel()) and not torch.compiler.is_exporting():
        return native.rms_norm(x, weight, eps)
    return nn.functional.rms_norm(x, weight.shape, weight, eps)


@torch.inference_mode()
def round_weights(anatomy: Anatomy) -> None:
    """Round the weights that ``pack`` packs to float16, in place, so that a stock model has a packed one's values."""
    for module in (m for layer in anatomy.layers for m in layer.modules() if isinstance(m, nn.Linear)):
        module.weight.copy_(module.weight.half())
    if isinstance(anatomy.head, nn.Linear):  # it may be tied to the embedding, which is not rounded
        head = copy.copy(anatomy.head)
        head._parameters = dict(head._parameters, weight=nn.Parameter(head.weight.half().float()))
        anatomy.model.set_output_embeddings(head)


class Owner(NamedTuple):
    """A module and the name of a linear layer in it, whose path in the decoder layer ``layer`` is ``path``."""

    module: nn.Module
    name: str
    layer: int
    path: str

    @property
    def linear(self) -> nn.Linear:
        return cast(nn.Linear, getattr(self.module, self.name))


def _owners(layer: nn.Module, index: int) -> list[Owner]:
    """The linear layers of a decoder layer that packed ones can replace."""
    return [
        Owner(module, name, index, f"{path}.{name}".lstrip("."))
        for path, module in layer.named_modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) and _multiplies(child) and not _reads_weight(type(module).forward, name)
    ]


@torch.inference_mode()
def _multiplies(linear: nn.Linear) -> bool:
    """Whether a layer computes what ``nn.Linear`` does. Some subclasses don't, such as routers to experts."""
    if type(linear).forward is nn.Linear.forward:
        return True
    x = torch.randn(1, 1, linear.in_features, dtype=linear.weight.dtype)
    with suppress(Exception):  # a foreign module may need other inputs: leave it unchanged
        return torch.allclose(linear(x), nn.Linear.forward(linear, x), rtol=1e-2, atol=1e-2)
    return False


@functools.cache
def _reads_weight(forward: Callable[..., Any], name: str) -> bool:
    """Whether the ``forward`` of a module reads the weight of its linear layer ``name``; a packed layer has none."""
    with suppress(OSError, TypeError):  # its source is not there
        return f"self.{name}.weight" in inspect.getsource(forward)
    return False


def _groups(anatomy: Anatomy, layers: Sequence[int]) -> list[list[Owner]]:
    """The linear layers of these decoder layers, grouped if they are in one module and read the same tensor.

    This is found by running one token through the first decoder layer of every structure.
    """
    owners = [_owners(layer, i) for i, layer in enumerate(anatomy.layers)]
    structures = [(type(layer), *(o.path for o in of)) for layer, of in zip(anatomy.layers, owners, strict=True)]
    alike = {i: structures.index(structures[i]) for i in layers}
    shown = [owner for i in sorted(set(alike.values())) for owner in owners[i]]
    read: dict[int, Tensor] = {}  # referenced, so that ids are not reused
    with suppress(_Enough):
        _read_by(anatomy, shown, [torch.zeros(1, 1, dtype=torch.long)], read.__setitem__, max(alike.values()))
    reads = {(o.layer, o.path): id(read[i]) if i in read else -i for i, o in enumerate(shown)}
    together: dict[tuple[int, int], list[Owner]] = defaultdict(list)
    for owner in (owner for i in layers for owner in owners[i]):
        together[id(owner.module), reads[alike[owner.layer], owner.path]].append(owner)
    return list(together.values())


class _Enough(Exception):
    """Ends a pass whose rest is not needed."""


def _inputs(anatomy: Anatomy, groups: Sequence[Sequence[Owner]], samples: Sequence[Tensor]) -> list[Tensor]:
    """The rows ``[n, in]`` that the linear layers of each group read on these texts."""
    rows = [[torch.empty(0, owners[0].linear.in_features, dtype=anatomy.dtype)] for owners in groups]
    firsts = [owners[0] for owners in groups]
    _read_by(anatomy, firsts, samples, lambda index, x: rows[index].append(x.flatten(0, -2).clone()))
    return [torch.cat(parts) for parts in rows]


@torch.inference_mode()
def _read_by(
    anatomy: Anatomy,
    owners: Sequence[Owner],
    samples: Sequence[Tensor],
    take: Callable[[int, Tensor], None],
    last: int | None = None,
) -> None:
    """Run texts through the model, and call ``take`` with the input of each of these linear layers.

    Raises _Enough after the decoder layer ``last``.
    """

    def note(index: int, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            take(index, args[0])

    hooks = [owner.linear.register_forward_pre_hook(partial(note, i)) for i, owner in enumerate(owners)]
    if last is not None:
        hooks.append(anatomy.layers[last].register_forward_hook(_enough))
    try:
        for ids in samples:
            anatomy.model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def _enough(*_: Any) -> None:
    raise _Enough


@torch.inference_mode()
def _pack_layers(anatomy: Anatomy, form: Format, first: int = 0) -> None:
    """Replace the linear layers of the decoder layers from ``first`` on; each group becomes one matmul."""
    for owners in _groups(anatomy, range(first, len(anatomy.layers))):
        weight, bias = _joined(owners)
        if form.name == "int8" and not any(owner.path in form.kept for owner in owners):
            _replace(owners, int8_linear(weight, bias, form.inputs.get((owners[0].layer, owners[0].path))))
        else:
            _replace(owners, _packed(weight, bias, form.half))


def _joined(owners: Sequence[Owner]) -> tuple[Tensor, Tensor | None]:
    """The stacked weight and bias of the linear layers of a group."""
    linears = [owner.linear for owner in owners]
    weight = torch.cat([m.weight.detach() for m in linears])
    if all(m.bias is None for m in linears):
        return weight, None
    biases = [weight.new_zeros(m.out_features) if m.bias is None else m.bias.detach() for m in linears]
    return weight, torch.cat(biases)


def _replace(owners: Sequence[Owner], packed: nn.Module) -> None:
    if len(owners) == 1:
        setattr(owners[0].module, owners[0].name, packed)
        return
    shared, start = Shared(packed, len(owners)), 0
    for owner in owners:
        outputs = owner.linear.out_features
        setattr(owner.module, owner.name, PackedPart(shared, start, start + outputs))
        start += outputs
