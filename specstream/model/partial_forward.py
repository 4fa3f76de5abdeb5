"""Rows of our own for the top layers of a stock model: what they see, where they stand, and a pass of them alone.

A layer is called with the arguments that the model gives it, but for its rows' states, masks, positions and rotary
tables. So there is no code per family here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specstream.model.introspection import Anatomy, bind
from specstream.model.masks import Masks, additive


def ahead(positions: Tensor, gamma: int, context: int) -> Tensor:
    """Positions ``[B, S * gamma]`` of the streams of rows at ``positions`` ``[B, S]``: stream j is j positions ahead.

    No position is past the context: some families look positions up in a table.
    """
    steps = torch.arange(1, gamma + 1, device=positions.device)
    return (positions[:, :, None] + steps).flatten(1).clamp_max(context - 1)


class Rotations:
    """Rotary tables at positions of our choice: the model's own module is called again."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[nn.Module, dict[str, Any], Any]] = {}

    def note(self, module: nn.Module, args: Any, kwargs: Any, table: Any) -> None:
        """The hook after a rotary module. The table is held too, so that its id stays its own."""
        self._calls[id(table[0])] = module, bind(module, args, kwargs), table

    def at(self, table: Any, positions: Tensor) -> Any:
        """What the module that made ``table`` gives for ``positions`` ``[B, rows]``."""
        module, call, _ = self._calls[id(table[0])]
        return module.forward(**call | {"position_ids": positions})


class Rows:
    """Rows put through the top layers: what each sees (``masks`` by layer type) and its position ``[B, rows]``.

    ``keys`` is the number of keys that attention is given, where that is more than the masks cover.
    """

    def __init__(self, anatomy: Anatomy, masks: Masks, positions: Tensor, rotations: Rotations, keys: int = 0) -> None:
        self._masks = {t: additive(m, anatomy.dtype, keys) for t, m in masks.items()}
        self._positions, self._rotations = positions, rotations
        self._tables: dict[int, Any] = {}

    def arrange(self, call: dict[str, Any], layer_type: str) -> dict[str, Any]:
        """The arguments of a layer's call, with these rows' masks and positions in place of those it had."""
        call = call | {"attention_mask": self._masks[layer_type]}
        if call.get("position_ids") is not None:
            call["position_ids"] = self._positions
        if (table := call.get("position_embeddings")) is not None:
            if id(table[0]) not in self._tables:
                self._tables[id(table[0])] = self._rotations.at(table, self._positions)
            call["position_embeddings"] = self._tables[id(table[0])]
        return call


class TopLayers:
    """The top ``count`` layers of a model, run alone: once a pass was recorded, with its arguments but other rows.

    ``instead`` are layers to run in their place: copies with other weights.
    """

    def __init__(self, anatomy: Anatomy, count: int, instead: Sequence[nn.Module] = ()) -> None:
        self._anatomy, self._first = anatomy, len(anatomy.layers) - count
        self._layers = instead or anatomy.layers[self._first :]
        self._calls: dict[int, dict[str, Any]] = {}
        self._rotations = Rotations()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While open, a forward pass of the model is recorded."""
        layers = list(enumerate(self._anatomy.layers))[self._first :]
        hooks = [m.register_forward_hook(self._rotations.note, with_kwargs=True) for m in self._anatomy.rotaries]
        hooks += [layer.register_forward_pre_hook(self._note(i), with_kwargs=True) for i, layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._calls[index] = bind(module, args, kwargs) | {"hidden_states": None, "attention_mask": None}

        return hook

    def run(self, states: Tensor, masks: Masks, positions: Tensor, keys: int) -> Tensor:
        """States ``[B, rows, hidden]`` at layer N - count to those after the last layer; the cache holds ``keys`` keys.

        The cache of these layers holds the rows afterwards: the caller drops them.
        """
        rows = Rows(self._anatomy, masks, positions, self._rotations, keys)
        for layer, (index, call) in zip(self._layers, self._calls.items(), strict=True):
            call = rows.arrange(call, self._anatomy.layer_types[index])
            out = layer(**call | {"hidden_states": states})
            states = out[0] if isinstance(out, tuple) else out
        return states


@contextmanager
def starting_at(anatomy: Anatomy, layer: int, states: Tensor) -> Iterator[None]:
    """While open, a forward pass begins at a layer with ``states`` ``[B, n, hidden]``; those below do nothing.

    For what the model does before its layers and between them and its output there is no code here: it runs as it is.
    """

    def put(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        return (), bind(module, args, kwargs) | {"hidden_states": states}

    def nothing(hidden_states: Any, *_: Any, **__: Any) -> tuple[Any]:
        return (hidden_states,)  # a tuple as some families expect it; what is in it is replaced at ``layer``

    skipped = anatomy.layers[:layer]
    hook = anatomy.layers[layer].register_forward_pre_hook(put, with_kwargs=True)
    try:
        for module in skipped:
            module.forward = nothing
        yield
    finally:
        for module in skipped:
            vars(module).pop("forward", None)  # the class's own is seen again
        hook.remove()


class _Reached(Exception):
    """A forward pass has come to the layer where it was to end; ``states`` are what that layer was given."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("reached")
        self.states = states


def run_below(anatomy: Anatomy, layer: int, **call: Any) -> Tensor:
    """States ``[B, n, hidden]`` as they enter a layer, by the model's own forward with the arguments ``call``.

    The forward is left there by an exception: what comes before the first layer differs by family (scaled embeddings,
    learned positions), so it can't be called piece by piece.
    """

    def leave(module: nn.Module, args: Any, kwargs: Any) -> None:
        raise _Reached(bind(module, args, kwargs)["hidden_states"])

    hook = anatomy.layers[layer].register_forward_pre_hook(leave, with_kwargs=True)
    try:
        anatomy.decoder(**call)
    except _Reached as reached:
        return reached.states
    finally:
        hook.remove()
    raise AssertionError("the forward pass went past its layer")
