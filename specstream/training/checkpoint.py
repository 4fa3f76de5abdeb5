"""Checkpoints from which training resumes: JSON and safetensors, so that an untrusted folder can't run code.

They contain no generator state: all random numbers of training are keyed by seed, epoch and batch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specstream.adapters.card import CARD, AdapterError, Card, read_card
from specstream.data.datasets import DataError

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
KEPT = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW keeps for a parameter
PICKLES = ("*.bin", "*.pkl", "*.pt")  # what earlier versions wrote


class Damaged(ValueError):
    """A file of a checkpoint can't be used; the message is its name."""


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write the weights of ``model``, the state of ``optimizer`` for each of its parameters, and plain values."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in model.named_parameters()]
    kept = optimizer.state_dict()["state"]
    save_file(_plain(model.state_dict()), folder / WEIGHTS)
    save_file(
        _plain({f"{key}:{names[index]}": value for index, of in kept.items() for key, value in of.items()}),
        folder / OPTIMIZER,
    )
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def card_of(folder: Path) -> Card:
    """The card of a checkpoint. Raises DataError."""
    try:
        return read_card(folder)
    except AdapterError:
        raise _unusable(folder, CARD) from None


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, like: dict[str, Any]) -> dict[str, Any]:
    """Load ``model`` and ``optimizer``, and return the plain values, with defaults from ``like``.

    Raises DataError, before anything is changed, if ``save`` did not write the files.
    """
    try:
        state = _read_state(folder, like)
        weights, kept = (_read(folder, name) for name in (WEIGHTS, OPTIMIZER))
        own = model.state_dict()
        if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in own.items()}:
            raise Damaged(WEIGHTS)
        moments = _by_parameter(model, kept)
    except Damaged as error:
        raise _unusable(folder, str(error)) from None
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def _unusable(folder: Path, name: str) -> DataError:
    why = f"damaged ({name} is missing, truncated or from another training run)"
    if not (folder / STATE).exists() and any(file for form in PICKLES for file in folder.glob(form)):
        why = "from an earlier version, which used pickles; these are never loaded"
    return DataError(f"The checkpoint {folder} is {why}: give --start {folder.parent} instead of --resume.")


def _read_state(folder: Path, like: dict[str, Any]) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise Damaged(STATE) from None
    if not isinstance(state, dict) or not all(_fits(state.get(name, own), own) for name, own in like.items()):
        raise Damaged(STATE)
    return like | state


def _fits(value: Any, like: Any) -> bool:
    """Whether a plain value has the structure of another. Numbers are finite, and below 0 only if the other one is."""
    if isinstance(like, dict):
        return isinstance(value, dict) and value.keys() == like.keys() and all(_fits(value[k], like[k]) for k in like)
    if isinstance(like, int | float):
        kind = int | float if isinstance(like, float) else int
        return isinstance(value, kind) and (value == like or min(like, 0) <= value < math.inf)
    return isinstance(value, type(like))


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(folder / name)
    except (SafetensorError, OSError, ValueError):
        raise Damaged(name) from None
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise Damaged(name)
    return tensors


def _by_parameter(model: nn.Module, kept: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by parameter index. Moments have the shape of their parameter."""
    parameters = {name: (index, p.shape) for index, (name, p) in enumerate(model.named_parameters())}
    out: dict[int, dict[str, Tensor]] = {}
    for key, tensor in kept.items():
        kind, _, name = key.partition(":")
        if name not in parameters or tensor.shape != (torch.Size() if kind == "step" else parameters[name][1]):
            raise Damaged(OPTIMIZER)
        out.setdefault(parameters[name][0], {})[kind] = tensor
    if any(of.keys() != KEPT for of in out.values()):
        raise Damaged(OPTIMIZER)
    return out
