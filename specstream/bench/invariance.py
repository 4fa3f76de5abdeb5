"""Which operations are batch-invariant on the machine at hand: they give a row the same bits whatever rows are computed
with it.

Rows are computed together and in smaller groups; keys are moved to other cache indices, with masked keys in between.
Sizes are those of SmolLM2 135M.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specstream import native
from specstream.bench.provenance import heading as machine_heading
from specstream.model import attention, cpu_linear
from specstream.model.cpu_linear import LEAST
from specstream.model.hardware import ABSENT, computes_bfloat16
from specstream.model.kv_cache import BLOCK
from specstream.model.native_linear import FbgemmLinear, NativeLinear
from specstream.target.model_target import TILE

ROWS = 64
SEVERAL = (2, 4, 6, 7, 16, 33, 48, 64)
PRODUCTS = ((960, 576), (3072, 576), (576, 1536), (4096, 576))  # outputs and inputs; the LM head is truncated
WIDTHS, ODD = (576, 1536), (97,)  # widths of the model's states; one that is no multiple of a SIMD vector
HEADS, SHARED, DIM, KEYS = 9, 3, 64, 96
SAMPLES = 12  # for operations with few outputs: only one number in 30,000 may differ
LAST = 16  # keys at the end of the text, between which keys of other drafts may be
BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
UNLIKE = "Some operations that the engine uses here are not batch-invariant:"

ByRows = Callable[[Tensor], Tensor]  # [rows, in] to [rows, out]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, mask to [rows, out]


@dataclass(frozen=True)
class Tally:
    """How many numbers were compared, and how many of them differed."""

    compared: int = 0
    different: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.compared + other.compared, self.different + other.different)


@dataclass(frozen=True)
class Operation:
    """An operation to check. ``used`` says where the engine uses it on this machine, "" if nowhere."""

    name: str
    used: str
    count: Callable[[], Tally]


@dataclass(frozen=True)
class Finding:
    """The result for an operation; ``compared`` is 0 if this build or device does not have it."""

    operation: str
    used: str
    compared: int
    different: int

    @property
    def exact(self) -> bool | None:
        """Whether all bits were the same; None if nothing could be compared."""
        return self.different == 0 if self.compared else None


def findings(device: str = "cpu") -> Iterator[Finding]:
    """Check all operations on "cpu", "cuda" or "mps", one after another."""
    for operation in (*_linears(device), *_row_by_row(device), *_attentions(device)):
        yield _found(operation)


def verdict(found: Iterable[Finding]) -> str:
    """A sentence that says whether all operations used by the engine are exact."""
    inexact = [f.operation for f in found if f.used and not f.exact]
    if not inexact:
        return "All operations that the engine uses here are batch-invariant."
    return f"{UNLIKE} {'; '.join(inexact)}."


def heading(device: str) -> str:
    """The machine, library versions and threads."""
    return machine_heading(device, f"torch {torch.__version__}", f"{torch.get_num_threads()} threads")


def table(found: Iterable[Finding]) -> Iterator[str]:
    """Lines of a Markdown table, one per operation."""
    yield "| operation | batch-invariant | numbers compared | different | in the engine |"
    yield "|---|---|---|---|---|"
    for f in found:
        word = {True: "yes", False: "**no**", None: "not here"}[f.exact]
        yield f"| {f.operation} | {word} | {f.compared:,} | {f.different:,} | {f.used or 'not used'} |"


def report(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as plain values, for JSON."""
    return [asdict(f) | {"exact": f.exact} for f in found]


@torch.inference_mode()
def _found(operation: Operation) -> Finding:
    try:
        seen = operation.count()
    except ABSENT:
        seen = Tally()
    return Finding(operation.name, operation.used, seen.compared, seen.different)


# ---- rows computed together ------------------------------------------------------------------------------------------


def by_rows(operation: ByRows, rows: Tensor, counts: Sequence[int]) -> Tally:
    """Compare ``rows`` ``[n, in]`` computed all at once with the same rows in groups of ``counts``."""
    seen, whole = Tally(), operation(rows)
    for count in counts:
        for start in range(0, len(rows) - count + 1, count):
            part = slice(start, start + count)
            seen += _different(operation(rows[part]), whole[part])
    return seen


def _linears(device: str) -> Iterator[Operation]:
    if device == "cpu":
        if ours := native.multiplies(BFLOAT16):
            words = "matmuls in bfloat16"
            yield _linear("our bfloat16 matmul, 1 to 64 rows", words, NativeLinear, BFLOAT16, device, (1, *SEVERAL))
        yield from _packed(BFLOAT16, not ours and computes_bfloat16("cpu") and cpu_linear.works(dtype=BFLOAT16))
        yield from _packed(FLOAT32, cpu_linear.works())
        used = "matmuls in float16" if cpu_linear.works(half=True) else ""
        built = native.multiplies(FLOAT16)
        for make, by, possible in ((NativeLinear, "our", built), (FbgemmLinear, "FBGEMM", cpu_linear.works(half=True))):
            words = used if built == (make is NativeLinear) else ""
            if possible:
                yield _linear(f"{by} float16 matmul, 1 to 64 rows", words, make, FLOAT32, device, (1, *SEVERAL))
    for dtype in (BFLOAT16, FLOAT16, FLOAT32) if device != "cpu" else (BFLOAT16, FLOAT32):
        name = f"PyTorch's {_name(dtype)} matmul"
        yield _linear(f"{name}, 2 to 64 rows", "", _pytorch, dtype, device, SEVERAL)
        if device != "cpu":
            tiles = f"{name}, multiples of {TILE} rows"
            yield _linear(tiles, f"matmuls in {_name(dtype)}", _pytorch, dtype, device, _passes(device))


def _packed(dtype: torch.dtype, used: bool) -> Iterator[Operation]:
    name, where = f"oneDNN {_name(dtype)} matmul", f"matmuls in {_name(dtype)}" if used else ""
    yield _linear(f"{name}, 1 row", "", _onednn, dtype, "cpu", (1,))
    yield _linear(f"{name}, 2 to 64 rows", "", _onednn, dtype, "cpu", SEVERAL)
    limited = f"{name}, {LEAST} to {cpu_linear.MOST} rows at a time"
    yield _linear(limited, where, cpu_linear.PackedLinear, dtype, "cpu", (1, *SEVERAL))


def _linear(
    name: str, used: str, make: Callable[[Tensor], ByRows], dtype: torch.dtype, device: str, counts: Sequence[int]
) -> Operation:
    def count() -> Tally:
        seen = Tally()
        for out, width in PRODUCTS:
            weight = (_random(out, width) / width**0.5).to(device, dtype)
            seen += by_rows(make(weight), _random(ROWS, width).to(device, dtype), counts)
        return seen

    return Operation(name, used, count)


def _onednn(weight: Tensor) -> ByRows:
    """Without the limits of ``PackedLinear``, which multiplies neither a single row nor very many at a time."""
    layout = torch.ops.mkldnn._reorder_linear_weight(weight, cpu_linear.ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, layout, None, "none", [], "")


def _pytorch(weight: Tensor) -> ByRows:
    return partial(functional.linear, weight=weight)


def _passes(device: str) -> tuple[int, ...]:
    """The numbers of rows that a pass may have."""
    return tuple(n for n in SEVERAL if (n >= LEAST if device == "cpu" else n % TILE == 0))


def _row_by_row(device: str) -> Iterator[Operation]:
    for dtype in _formats(device):
        for name, operation in (("RMS norm", _norm), ("SiLU", functional.silu), ("rotary embedding", _rotated)):
            yield Operation(
                f"{name}, {_name(dtype)}", "layers", partial(_elementwise, operation, dtype, device, WIDTHS)
            )
        odd = partial(_elementwise, functional.silu, dtype, device, ODD)
        yield Operation(f"SiLU, {_name(dtype)}, rows of {ODD[0]} numbers", "", odd)


def _elementwise(operation: ByRows, dtype: torch.dtype, device: str, widths: Sequence[int]) -> Tally:
    inputs = (_random(ROWS, width).to(device, dtype) for width in widths)
    return sum((by_rows(operation, x, (1, *SEVERAL)) for x in inputs), Tally())


def _norm(x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], x.new_full(x.shape[-1:], 1.5), 1e-5)


def _rotated(rows: Tensor) -> Tensor:
    """Each row consists of its state and the cosines and sines of its position."""
    x, cos, sin = rows[:, : rows.shape[-1] // 6 * 6].chunk(3, -1)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def _formats(device: str) -> tuple[torch.dtype, ...]:
    """Number formats of the states: on a CPU, float16 weights are used with float32 arithmetic."""
    return (BFLOAT16, FLOAT32) if device == "cpu" else (BFLOAT16, FLOAT16, FLOAT32)


# ---- attention -------------------------------------------------------------------------------------------------------


def by_places(operation: Attention, inputs: Sequence[Tensor]) -> Tally:
    """Compare adjacent keys with the same keys spread apart, masked keys in between."""
    query, key, value = inputs
    together = operation(query, key, value, _seen(KEYS, torch.arange(KEYS), query))
    seen = Tally()
    for gap in (1, 2, 7, 32):
        places = torch.arange(KEYS) + gap * (torch.arange(KEYS) - (KEYS - LAST)).clamp_min(0)
        room = -(-(int(places[-1]) + 1) // BLOCK) * BLOCK
        keys, values = (_spread(x, places, room) for x in (key, value))
        seen += _different(operation(query, keys, values, _seen(room, places, query)), together)
    return seen


def _spread(x: Tensor, places: Tensor, room: int) -> Tensor:
    """``x`` at the indices ``places`` of a random tensor ``[1, SHARED, room, DIM]``."""
    whole = _random(1, SHARED, room, DIM).to(x)
    whole[:, :, places] = x
    return whole


def _beside(operation: Attention, counts: Sequence[int], inputs: Sequence[Tensor]) -> Tally:
    """Compare rows computed together with smaller groups; all attend to the same keys."""
    query, key, value = inputs
    mask = _seen(KEYS, torch.arange(KEYS), query)

    def by_query(rows: Tensor) -> Tensor:
        return operation(rows.unflatten(1, (HEADS, DIM)).transpose(0, 1)[None], key, value, mask[:, :, : len(rows)])

    return by_rows(by_query, query[0].transpose(0, 1).flatten(1), counts)


def _seen(keys: int, places: Tensor, like: Tensor) -> Tensor:
    """An additive mask ``[1, 1, rows, keys]``: every row attends only to the indices ``places``."""
    mask = torch.full((keys,), torch.finfo(like.dtype).min)
    mask[places] = 0
    return mask.to(like).expand(1, 1, ROWS, keys)


def _attentions(device: str) -> Iterator[Operation]:
    for dtype in _formats(device):
        name = _name(dtype)
        yield from _attention(f"scaled_dot_product_attention, {name}", "", _stock, dtype, device, (1, *SEVERAL))
        yield from _attention(f"our attention, {name}", "layers", _ours, dtype, device, _passes(device))
    used = {(FLOAT64, _scores), (FLOAT64, _weighted)} if device != "mps" else {(FLOAT32, _scores), (FLOAT32, _weighted)}
    used |= {(BFLOAT16, _scores)} if device == "cpu" else set()
    for kind in (BFLOAT16, FLOAT32, FLOAT64):
        for name, operation in (("queries times keys", _scores), ("weights times values", _weighted)):
            words = f"{_name(kind)} matmul, {name}{', rounded to float32' * (kind == FLOAT64)}"
            where = "inside our attention" if (kind, operation) in used else ""
            inputs = BFLOAT16 if kind == BFLOAT16 else FLOAT32
            yield from _attention(words, where, partial(operation, kind), inputs, device, _passes(device))


def _attention(
    name: str, used: str, operation: Attention, dtype: torch.dtype, device: str, counts: Sequence[int]
) -> Iterator[Operation]:
    def over(check: Callable[[Sequence[Tensor]], Tally], samples: int) -> Tally:
        return sum((check(_inputs(dtype, device, seed)) for seed in range(samples)), Tally())

    yield Operation(f"{name}: other rows beside it", used, lambda: over(partial(_beside, operation, counts), 1))
    yield Operation(f"{name}: keys at other cache indices", used, lambda: over(partial(by_places, operation), SAMPLES))


def _inputs(dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    """Queries, keys and values."""
    heads = ((HEADS, ROWS), (SHARED, KEYS), (SHARED, KEYS))
    return [_random(1, *shape, DIM, seed=3 * seed + i).to(device, dtype) for i, shape in enumerate(heads)]


def _ours(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    out, _ = attention.attend(nn.Identity(), query, key, value, mask)
    return out[0].flatten(1)


def _stock(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    out = functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def _scores(kind: torch.dtype, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Scores of the keys that are not masked."""
    scores = torch.matmul(_grouped(query).to(kind), key.to(kind).transpose(-1, -2)).float()
    return _by_row(scores[..., mask[0, 0, 0] == 0], query)


def _weighted(kind: torch.dtype, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Weighted values, with weights that are computed without a sum and are zero for masked keys."""
    weights = (_grouped(query)[..., :1] * key[..., :1].transpose(-1, -2)).abs() * (mask[0, 0, 0] == 0)
    return _by_row(torch.matmul(weights.to(kind), value.to(kind)).float(), query)


def _grouped(query: Tensor) -> Tensor:
    """``[1, SHARED, group * rows, DIM]``: heads that share keys, grouped."""
    return query.unflatten(1, (SHARED, -1)).flatten(2, 3)


def _by_row(out: Tensor, query: Tensor) -> Tensor:
    return out.unflatten(2, (-1, query.shape[2])).permute(0, 3, 1, 2, 4)[0].flatten(1)


# ---- shared ----------------------------------------------------------------------------------------------------------


def _different(got: Tensor, want: Tensor) -> Tally:
    return Tally(got.numel(), int((got != want).sum()))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
