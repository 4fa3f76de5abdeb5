"""The denominator of a softmax, and the highest logits: all that a step needs of a large vocabulary.

On a CPU by functions in C++, in a third of PyTorch's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specstream import native


def log_total(logits: Tensor, rows: Sequence[int] | None = None) -> Tensor:
    """Log-sum-exp ``[rows]`` of some rows of logits ``[any, vocab]``, all if ``rows`` is None; NaN if a logit is NaN.

    A row's result has the same bits whatever other rows there are. Without the functions in C++ by numpy, which has
    less overhead than PyTorch.
    """
    rows = range(len(logits)) if rows is None else rows
    if built := native.usable(logits):
        out, chosen = logits.new_empty(len(rows)), (c_int64 * len(rows))(*rows)
        built.specstream_log_totals(logits.data_ptr(), chosen, len(rows), logits.shape[-1], out.data_ptr())
        return out
    if logits.device.type == "cpu":
        values = logits.numpy()
        return torch.from_numpy(np.stack([_log_total(values[row]) for row in rows]))
    highest = [logits[row].amax() for row in rows]
    totals = [(logits[row] - top).exp_().sum().log_() + top for row, top in zip(rows, highest, strict=True)]
    return torch.stack(totals)


def _log_total(row: Any) -> Any:
    largest = row.max()
    powers = row - largest
    np.exp(powers, out=powers)
    return np.log(powers.sum()) + largest


def highest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest logits of each row ``[rows, vocab]``, the highest first, and their indices, both
    ``[rows, count]``; fewer if there are not as many."""
    count = min(count, logits.shape[-1])
    if not (built := native.usable(logits)):
        top = logits.topk(count, -1)
        return top.values, top.indices
    rows, size = logits.shape
    values, indices = logits.new_empty(rows, count), logits.new_empty(rows, count, dtype=torch.long)
    built.specstream_highest_k(logits.data_ptr(), rows, size, count, indices.data_ptr(), values.data_ptr())
    return values, indices
