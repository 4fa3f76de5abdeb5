"""Time of all linear layers of one pass of SmolLM2 135M, by matmul implementation and number of rows.

python -m scripts.matmuls [--repeats 15]

Random weights of its shapes, separate for every layer, so that they are read from memory as in a model. The
implementations take turns. Those that this processor lacks are left out.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import click
import torch
from torch import Tensor, nn

from specstream import native
from specstream.bench.provenance import heading
from specstream.model import quantized
from specstream.model.cpu_linear import PackedLinear, packed_linear
from specstream.model.native_linear import FbgemmLinear, NativeLinear
from specstream.model.quantized import NativeInt8, OneDnnInt8

LAYERS = 30
SHAPES = [(960, 576, LAYERS), (576, 576, LAYERS), (3072, 576, LAYERS), (576, 1536, LAYERS), (49152, 576, 1)]
ROWS = (1, 2, 4, 6, 8, 16, 32)
Matmul = Callable[[Tensor], object]


def eight_bits(linear: nn.Linear) -> Matmul:
    """PyTorch's matmul of bfloat16 rows and int8 weights, with one scale per output."""
    scale = linear.weight.abs().amax(1) / 127
    weight = (linear.weight / scale[:, None]).round().to(torch.int8)
    return lambda x: torch._weight_int8pack_mm(x[0], weight, scale.bfloat16())


def matmul_of_bytes(linear: nn.Linear) -> Matmul:
    """The matmul of our int8 format without quantising its rows, which compiled layers fuse with other work."""
    made = OneDnnInt8(linear.weight)
    return lambda x: made._matmul(x[0].to(torch.uint8))


KINDS: dict[str, tuple[torch.dtype, Callable[[nn.Linear], Matmul]]] = {
    "float32, PyTorch": (torch.float32, lambda linear: linear),
    "float32, oneDNN packed": (torch.float32, packed_linear),
    "float16, FBGEMM packed": (torch.float32, lambda linear: FbgemmLinear(linear.weight)),
    "float16, our C++": (torch.float32, lambda linear: NativeLinear(linear.weight)),
    "bfloat16, PyTorch": (torch.bfloat16, lambda linear: linear.bfloat16()),
    "bfloat16, oneDNN packed": (torch.bfloat16, lambda linear: PackedLinear(linear.weight.bfloat16())),
    "bfloat16, our C++": (torch.bfloat16, lambda linear: NativeLinear(linear.weight.bfloat16())),
    "int8 weights, bfloat16 rows": (torch.bfloat16, eight_bits),
    "int8, oneDNN packed, with rounding": (torch.bfloat16, lambda linear: OneDnnInt8(linear.weight)),
    "int8, oneDNN packed, matmul alone": (torch.bfloat16, matmul_of_bytes),
    "int8, our C++": (torch.bfloat16, lambda linear: NativeInt8(linear.weight)),
}


@torch.inference_mode()
def works(name: str) -> bool:
    """Whether this processor, and this build of PyTorch, has an implementation."""
    dtype, make = KINDS[name]
    if name.startswith("int8, oneDNN") and not quantized.works():  # there is one, but its sums overflow
        return False
    ours = {"float16, our C++": torch.float16, "bfloat16, our C++": torch.bfloat16, "int8, our C++": torch.int8}
    if name in ours and not native.multiplies(ours[name]):
        return False
    try:
        make(nn.Linear(64, 32, bias=False))(torch.randn(1, 3, 64).to(dtype))
    except (RuntimeError, NotImplementedError):
        return False
    return True


@torch.inference_mode()
def milliseconds(names: Sequence[str], repeats: int) -> dict[tuple[str, int], float]:
    """Milliseconds by implementation and number of rows: medians for each shape, summed over a pass."""
    total: dict[tuple[str, int], float] = defaultdict(float)
    for out, width, count in SHAPES:
        made = {name: [KINDS[name][1](nn.Linear(width, out, bias=False)) for _ in range(count)] for name in names}
        for rows in ROWS:
            seconds = defaultdict(list)
            for _ in range(repeats):
                for name, matmuls in made.items():
                    x = torch.randn(1, rows, width, dtype=KINDS[name][0])
                    started = time.perf_counter()
                    for matmul in matmuls:
                        matmul(x)
                    seconds[name].append(time.perf_counter() - started)
            for name, times in seconds.items():
                total[name, rows] += 1000 * statistics.median(times)
    return total


def table(total: dict[tuple[str, int], float]) -> Iterator[str]:
    yield f"| matmul, ms by rows | {' | '.join(map(str, ROWS))} |"
    yield "|---" * (1 + len(ROWS)) + "|"
    for name in dict.fromkeys(name for name, _ in total):
        yield f"| {name} | {' | '.join(f'{total[name, rows]:.1f}' for rows in ROWS)} |"


@click.command(help=__doc__.splitlines()[0])
@click.option("--repeats", default=15, show_default=True)
def main(repeats: int) -> None:
    print(heading(f"{torch.get_num_threads()} threads"), end="\n\n")
    names = [name for name in KINDS if works(name)]
    print("\n".join(table(milliseconds(names, repeats))))
    if lacking := [name for name in KINDS if name not in names]:
        print(f"\nNot on this processor: {'; '.join(lacking)}.")


if __name__ == "__main__":
    main()
