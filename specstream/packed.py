"""Linear maps with their weights packed once for oneDNN, on a CPU in float32.

PyTorch's default product is slow for the one to thirty rows of a decoding pass. Both kinds of decoding gain; the
figures are in the log of experiments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from specstream.anatomy import Anatomy

ROWS = 16  # rows that the layout is chosen for; it serves other numbers as well


class PackedLinear(nn.Module):
    """``y = W x + b`` like the ``nn.Linear`` that it replaces. Its weights can no longer be read or moved."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], ""))


@torch.inference_mode()
def works() -> bool:
    """Whether this build of PyTorch has the packed product and computes it rightly."""
    linear, x = nn.Linear(48, 64), torch.randn(1, 3, 48)
    try:
        return torch.allclose(PackedLinear(linear)(x), linear(x), atol=1e-4)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def suits(anatomy: Anatomy) -> bool:
    """Whether packing helps this model."""
    return anatomy.device.type == "cpu" and anatomy.dtype == torch.float32 and works()


def pack(anatomy: Anatomy) -> Anatomy:
    """Pack every linear map of the layers and the head, in place, where that helps; else change nothing.

    To be called last: weights can't be changed afterwards.
    """
    if not suits(anatomy):
        return anatomy
    for layer in anatomy.layers:
        _replace(layer)
    if not isinstance(anatomy.head, nn.Linear):
        return anatomy
    head = PackedLinear(anatomy.head)
    anatomy.model.set_output_embeddings(head)
    return replace(anatomy, head=head)


def _replace(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        if isinstance(child, nn.Linear):
            setattr(parent, name, PackedLinear(child))
        else:
            _replace(child)
