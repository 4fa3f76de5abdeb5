"""The capabilities of the hardware at hand."""

from __future__ import annotations

# Raised by a build of PyTorch, or a device, that lacks an operation.
ABSENT = (AttributeError, RuntimeError, NotImplementedError, TypeError)


def computes_bfloat16(device: str) -> bool:
    """Has "cuda" or "cpu" bfloat16 instructions? Without them PyTorch emulates the type, slower than float32."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    have = torch.cpu.get_capabilities() if device == "cpu" else {}
    return any(have.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is Arm's


def has_tiles() -> bool:
    """Does the processor multiply tiles of sixteen rows in bfloat16 (AMX)?"""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
