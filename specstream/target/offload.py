"""A model larger than its device: layers that don't fit stay in main memory or on disk until they are called.

accelerate moves them. Everything is computed on one device, so texts equal those of the model loaded whole.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping

import torch
from accelerate import dispatch_model, infer_auto_device_map
from torch import nn

from specstream.adapters.heads import Heads
from specstream.adapters.weights import Adapter
from specstream.model.introspection import Anatomy

Place = int | str  # a GPU's number, "cpu" or "disk"


def offload(parts: Anatomy, main: str, adapter: Adapter | None, beside: Heads) -> Anatomy:
    """Distribute a model in main memory, with its drafting parts on the device ``main``. Its weights must be final."""
    spread_out(parts, main)
    for drafting in (adapter, *vars(beside).values()):
        if isinstance(drafting, nn.Module):
            drafting.to(main)
    return parts


def spread_out(parts: Anatomy, main: str, room: Mapping[Place, int | str] | None = None) -> dict[str, Place]:
    """Assign every layer to a place, filling the device ``main`` first. Returns the places by module.

    ``room`` is the capacity of each place, in bytes or as text such as "6GB"; None: as accelerate finds it. Modules
    other than layers stay on the device: embeddings and the head are read at every step, also by drafts.
    """
    model, first = parts.model, torch.device(main)
    model.tie_weights()
    found = infer_auto_device_map(
        model,
        max_memory=dict(room) if room else None,
        no_split_module_classes=[type(parts.layers[0]).__name__],
        dtype=parts.dtype,
    )
    names = {id(module): name for name, module in model.named_modules()}
    layers = [names[id(layer)] for layer in parts.layers]
    home: Place = first.index or 0 if first.type == "cuda" else first.type
    places = {name: _place_of(name, found, home) for name in layers} | {n: home for n in _others(model, layers)}
    folder = tempfile.mkdtemp(prefix="specstream-offload-") if "disk" in places.values() else None
    if folder:
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)  # of the same size as the model's layers
    dispatch_model(model, places, main_device=home, offload_dir=folder, skip_keys="past_key_values", force_hooks=True)
    return places


def _place_of(name: str, found: Mapping[str, Place], home: Place) -> Place:
    while name and name not in found:
        name = name.rpartition(".")[0]
    return found.get(name, found.get("", home))


def _others(model: nn.Module, layers: list[str]) -> list[str]:
    """The largest modules, and single weights, that contain no layer."""
    out: list[str] = []

    def walk(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if full in layers:
                continue
            if any(layer.startswith(f"{full}.") for layer in layers):
                walk(f"{full}.", child)
            else:
                out.append(full)

    walk("", model)
    return out
