"""C++ functions for decoding on a CPU, which a compiler builds once for the processor at hand.

They are matmuls of a few rows in bfloat16, or in float32 with float16 weights, which take little longer than reading
the weights; PyTorch's own take two to three times as long. Also attention, where loops that a compiler makes of it wait
for one sum after the other, and a step's log-probabilities. ``functions.cpp`` has them. Without a compiler everything
works, but slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import platform
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from specstream.hub import download
from specstream.native import compiler

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("functions.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-pthread", "-shared", "-fPIC")
LIMIT = 120  # time limit of a build in seconds

torch.library.define("specstream::packed_linear", "(Tensor x, Tensor packed, Tensor? bias, SymInt outputs) -> Tensor")
torch.library.register_fake(
    "specstream::packed_linear", lambda x, packed, bias, outputs: x.new_empty(x.shape[0], outputs)
)
torch.library.define(
    "specstream::byte_linear",
    "(Tensor x, Tensor packed, Tensor smooth, Tensor scale, Tensor offset, Tensor? bias, SymInt outputs) -> Tensor",
)
torch.library.register_fake(
    "specstream::byte_linear", lambda x, packed, smooth, scale, offset, bias, outputs: x.new_empty(x.shape[0], outputs)
)
torch.library.define(
    "specstream::attend",
    "(Tensor query, Tensor keys, Tensor values, Tensor mask, float scale, float softcap, Tensor? sinks) -> Tensor",
)
torch.library.register_fake(
    "specstream::attend",
    lambda query, keys, values, *_: query.new_empty(query.shape[2], query.shape[1] * values.shape[3]),
)
_HANDLE = "AtenTensorHandle"
# How compiled layers call the functions; see functions.cpp.
SHIMS = {
    torch.ops.specstream.packed_linear.default: [
        f"AOTITorchError aoti_torch_cpu_packed_linear({_HANDLE}, {_HANDLE}, {_HANDLE}*, int64_t, {_HANDLE}*)"
    ],
    torch.ops.specstream.byte_linear.default: [
        f"AOTITorchError aoti_torch_cpu_byte_linear({', '.join([_HANDLE] * 5)}, {_HANDLE}*, int64_t, {_HANDLE}*)"
    ],
    torch.ops.specstream.attend.default: [
        f"AOTITorchError aoti_torch_cpu_attend({', '.join([_HANDLE] * 4)}, double, double, {_HANDLE}*, {_HANDLE}*)"
    ],
}


def library(build: bool = True) -> ctypes.CDLL | None:
    """The functions, from now on also ``loaded()``; None if they can't or mustn't be built here, or only exist with
    ``build``."""
    return loaded() or (_library() if compiler.allowed() and (build or _file().is_file()) else None)


def loaded() -> ctypes.CDLL | None:
    """The functions if this process has called ``library``, so that they don't change in the middle of a run."""
    return _library() if _library.cache_info().currsize else None


def usable(logits: Tensor) -> ctypes.CDLL | None:
    """The ``loaded`` functions if those that take logits can be used for these."""
    suits = logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.is_contiguous()
    return loaded() if suits else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    file = _file()
    try:
        if file.is_file():
            with suppress(OSError):  # a damaged file, which is replaced
                return _open(file)
        _build(file)
        return _open(file)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("functions in C++ could not be built: %s", getattr(error, "stderr", None) or error)
        return None


def _open(file: Path) -> ctypes.CDLL:
    """The functions of a library. Raises OSError for a damaged file."""
    found = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)  # global: compiled layers call its functions by name
    pointer, size, real, yes = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_bool
    found.specstream_linear.argtypes = [yes, yes, pointer, size, size, pointer, pointer, size, pointer]
    found.specstream_linear_in_bytes.argtypes = [yes, yes, pointer, size, size, *[pointer] * 5, size, pointer]
    found.specstream_linear_in_bytes.restype = None
    found.specstream_attend.argtypes = [yes, *[pointer] * 5, ctypes.POINTER(size), real, real, pointer]
    found.specstream_linear.restype = found.specstream_attend.restype = None
    found.specstream_rms_norm.argtypes = [yes, pointer, size, size, pointer, real, pointer]
    found.specstream_rms_norm.restype = None
    found.specstream_log_totals.argtypes = [pointer, ctypes.POINTER(size), size, size, pointer]
    found.specstream_highest_k.argtypes = [pointer, size, size, size, pointer, pointer]
    found.specstream_log_totals.restype = found.specstream_highest_k.restype = None
    found.specstream_weigh.argtypes = [pointer, *[size] * 4, *[pointer] * 3, size, *[pointer] * 4]
    found.specstream_weigh.restype = None
    found.specstream_panel.restype = found.specstream_lanes.restype = found.specstream_rows.restype = size
    found.specstream_has_bfloat16.restype = found.specstream_has_bytes.restype = yes
    return found


def multiplies(dtype: torch.dtype) -> bool:
    """Whether there is a matmul for weights of this dtype here; builds the functions if they don't exist."""
    found = library()
    if found is None:
        return False
    if dtype == torch.int8:
        return bool(found.specstream_has_bytes())
    return dtype == torch.float16 or (dtype == torch.bfloat16 and bool(found.specstream_has_bfloat16()))


def in_panels(weight: Tensor, step: int) -> Tensor:
    """A weight ``[out, in]`` in the layout of the matmuls, ``[panels, in / step, outputs of a panel, step]``, filled up
    with zeros. ``step`` inputs are multiplied by one instruction."""
    padded = to_panels(weight)
    return padded.view(-1, panel(), weight.shape[1] // step, step).transpose(1, 2).contiguous()


def to_panels(outputs: Tensor) -> Tensor:
    """A tensor ``[out, ...]`` filled up with zeros to whole panels."""
    size = -(-len(outputs) // panel()) * panel()
    padded = outputs.new_zeros(size, *outputs.shape[1:])
    padded[: len(outputs)] = outputs
    return padded


def panel() -> int:
    """The number of outputs whose weights lie together; the functions must exist."""
    found = library()
    assert found is not None
    return int(found.specstream_panel())


def rows() -> int:
    """The number of rows of a matmul that are computed at a time, at little extra cost; 0 without the functions."""
    found = library()
    return int(found.specstream_rows()) if found else 0


def takes(dtype: torch.dtype, *sizes: int) -> bool:
    """Whether this process has loaded attention and norm for tensors of this dtype. ``sizes`` are the numbers of keys
    and the dimension of values, or the size of what is normalised."""
    found = loaded()
    if found is None or any(size % found.specstream_lanes() for size in sizes):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(found.specstream_has_bfloat16()))


@torch.library.impl("specstream::attend", "CPU")
def _attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float, sinks: Tensor | None
) -> Tensor:
    """Attention of ``query`` ``[1, heads, rows, dim]`` to ``keys`` ``[1, shared, dim, keys]`` and ``values``
    ``[1, shared, keys, value_dim]``: ``[rows, heads * value_dim]``. All are float32 or all bfloat16, but ``sinks``
    ``[heads]``, which are float32; ``softcap`` 0 is none."""
    found = library()
    assert found is not None
    given = [t.contiguous() for t in (query, keys, values, mask)]
    _, heads, rows, dim = query.shape
    sizes = (ctypes.c_int64 * 6)(heads, keys.shape[1], rows, dim, values.shape[3], keys.shape[3])
    sunk = None if sinks is None else sinks.contiguous()
    out = query.new_empty(rows, heads * values.shape[3])
    pointers = [*(t.data_ptr() for t in given), None if sunk is None else sunk.data_ptr()]
    found.specstream_attend(query.dtype == torch.bfloat16, *pointers, sizes, scale, softcap, out.data_ptr())
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimension of ``x``; ``takes`` must allow its size."""
    found = loaded()
    assert found is not None and x.dtype == weight.dtype
    x, size = x.contiguous(), weight.numel()
    out = torch.empty_like(x)
    found.specstream_rms_norm(
        x.dtype == torch.bfloat16, x.data_ptr(), x.numel() // size, size, weight.data_ptr(), eps, out.data_ptr()
    )
    return out


@functools.cache
def _file() -> Path:
    """The file of the built library for this processor and version."""
    told = [SOURCE.read_text(encoding="utf-8"), *FLAGS, platform.machine(), torch.__version__, _processor()]
    return download.home() / "compiled" / f"native-{hashlib.sha256(repr(told).encode()).hexdigest()[:20]}.so"


def _processor() -> str:
    """The capabilities of the processor, on which -march=native depends."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        return "".join(line for line in first if line.startswith(("flags", "model")))
    return platform.processor()


def _build(file: Path) -> None:
    """Compile the library. Raises OSError or SubprocessError if that is impossible."""
    installed = Path(torch.__file__).parent
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as made:
        built = Path(made) / file.name
        words = [*compiler.command().split(), *FLAGS, f"-I{installed / 'include'}", str(SOURCE), "-o", str(built)]
        words += [f"-L{installed / 'lib'}", "-ltorch_cpu"]
        compiler.run(words, LIMIT)
        built.replace(file)
