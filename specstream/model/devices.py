"""Chooses the device, the number format and the number of drafted nodes, each with a reason for the user.

torch is imported inside the functions, so that importing this module is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specstream.hub.download import ModelError
from specstream.model.hardware import computes_bfloat16, has_tiles
from specstream.params import MOST_NODES, NODES, NODES_IN_TILES

if TYPE_CHECKING:
    import torch


OFFLOAD = "offload"  # the choice of a device that may be too small for the model


def choose_device(name: str = "auto") -> tuple[str, str]:
    """The device ("cpu", "cuda" or "mps") for the user's choice, and the reason. Raises ModelError."""
    import torch

    if name == OFFLOAD:
        device, found = choose_device()
        beside = "on disk" if device == "cpu" else "in main memory and on disk"
        return device, f"{found}; layers that don't fit wait {beside}"

    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        if have["cuda"]:
            return "cuda", f"a CUDA GPU was found ({torch.cuda.get_device_name()})"
        return ("mps", "an Apple GPU was found") if have["mps"] else ("cpu", "no GPU was found")
    if name not in have:
        raise ModelError(f"There is no device {name!r}: choose auto, cpu, cuda, mps or offload.")
    if not have[name]:
        kind = {"cuda": "CUDA GPU", "mps": "Apple GPU"}[name]
        raise ModelError(f"PyTorch finds no {kind} on this machine: choose device auto or cpu.")
    return name, "you chose it"


def choose_dtype(name: str, device: str) -> tuple[torch.dtype, str]:
    """The dtype for the user's choice on a device, and the reason. Raises ModelError."""
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in kinds:
        return kinds[name], "you chose it"
    if name == "int8":
        return _beside_int8(device)
    if name != "auto":
        raise ModelError(f"There is no dtype {name!r}: choose auto, float32, bfloat16, float16 or int8.")
    if device == "mps":
        return torch.float16, "Apple GPUs are fastest in float16"
    if computes_bfloat16(device):
        return torch.bfloat16, "the hardware computes in bfloat16"
    kind = torch.float16 if packs(torch.float16, device) else torch.float32
    return kind, "the hardware has no bfloat16 arithmetic"


def _beside_int8(device: str) -> tuple[torch.dtype, str]:
    """The dtype of what int8 does not quantise, and the reason. Raises ModelError if int8 is not available."""
    import torch

    from specstream.model import quantized

    if device != "cpu" or not quantized.works():
        where = "this processor" if device == "cpu" else f"the device {device}"
        raise ModelError(f"int8 is for processors with VNNI instructions, not for {where}: choose auto.")
    words = (
        "you chose it: weights and activations in 8 bits, another model than in 16 bits: its own standard decoding is "
        "the reference"
    )
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32, words


def training_precision(device: str) -> str:
    """The number format of training's matmuls, by accelerate's name: "bf16", "fp16" or "no" (float32)."""
    if computes_bfloat16(device):
        return "bf16"
    return "fp16" if device == "cuda" else "no"


def loaded_in(kind: torch.dtype, device: str) -> tuple[torch.dtype, bool]:
    """The dtype in which to load weights, and whether to pack them in float16 afterwards."""
    import torch

    half = packs(kind, device)
    return (torch.float32 if half else kind), half


def packs(kind: torch.dtype, device: str) -> bool:
    """Whether weights of this dtype are loaded in float32 and packed in float16, with float32 arithmetic.

    This applies to float16 on a CPU, if PyTorch has that matmul: it reads half as many bytes.
    """
    import torch

    from specstream.model import cpu_linear

    return device == "cpu" and kind == torch.float16 and cpu_linear.works(half=True)


def cheap_nodes(kind: torch.dtype, packed: bool, half: bool = False) -> tuple[int, str]:
    """How many drafted nodes a pass verifies at little extra cost, and the reason; 0: as many as are likely enough.

    ``kind`` is the model's dtype, ``packed`` whether its weights are packed for a CPU, ``half`` whether in float16.
    """
    import torch

    from specstream import native

    if half and native.rows() <= MOST_NODES:
        return NODES, "with weights in float16 the processor multiplies six rows at a time"
    if packed and kind == torch.bfloat16 and has_tiles():
        return NODES_IN_TILES, "the processor multiplies sixteen rows of bfloat16 at a time (AMX)"
    return 0, "every drafted token costs a little, so it is drafted only if it is likely enough"
