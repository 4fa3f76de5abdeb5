"""Rows of our own for the layers of a stock model: what they see, where they stand, and passes that call the layers
alone.

A layer is called with the arguments that the model gives it, but for its rows' states, masks, positions and rotary
tables. So there is no code per family here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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
    """Rows put through some layers: what each sees (``masks`` by layer type) and its position ``[B, rows]``.

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


class RecordedCalls:
    """How a model calls its layers, recorded in one pass of a run, to call them again for other rows.

    ``whole`` tells whether the layers, with the embedding before and the tail after them, are all that the pass was:
    each was given the very tensor that the one before it returned, and no tensors but those that ``Rows`` arranges.
    """

    OURS = ("hidden_states", "attention_mask", "position_ids", "position_embeddings")

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._calls: dict[int, dict[str, Any]] = {}
        self._rotations = Rotations()
        self.whole = False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While open, a pass of the decoder is recorded."""
        anatomy = self._anatomy
        chain = [anatomy.model.get_input_embeddings(), *anatomy.layers, *anatomy.tail]
        given: list[Any] = []
        returned: list[Any] = []

        def enters(_module: nn.Module, args: Any, kwargs: Any) -> None:
            given.append(args[0] if args else kwargs.get("hidden_states"))

        def leaves(_module: nn.Module, _args: Any, out: Any) -> None:
            returned.append(out[0] if isinstance(out, tuple) else out)

        hooks = [m.register_forward_hook(self._rotations.note, with_kwargs=True) for m in anatomy.rotaries]
        hooks += [
            layer.register_forward_pre_hook(self._note(i), with_kwargs=True) for i, layer in enumerate(anatomy.layers)
        ]
        hooks += [m.register_forward_pre_hook(enters, with_kwargs=True) for m in chain[1:]]
        hooks += [m.register_forward_hook(leaves) for m in chain]
        hooks.append(anatomy.decoder.register_forward_hook(lambda _m, _args, out: given.append(out[0])))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        linked = len(given) == len(returned) == len(chain) and all(map(operator.is_, given, returned))
        self.whole = linked and not any(map(self._of_a_row, self._calls.values()))

    def _note(self, index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._calls[index] = bind(module, args, kwargs) | {"hidden_states": None, "attention_mask": None}

        return hook

    def _of_a_row(self, call: dict[str, Any]) -> bool:
        """Whether a layer is given tensors that may be other ones for other rows, which we don't know how to make."""
        others = {name: value for name, value in call.items() if name not in self.OURS}
        return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(others))

    def rows(self, masks: Masks, positions: Tensor, keys: int) -> Rows:
        """Rows for ``run``, of which the cache holds ``keys`` keys."""
        return Rows(self._anatomy, masks, positions, self._rotations, keys)

    def run(self, states: Tensor, rows: Rows, layers: range, instead: Sequence[nn.Module] = ()) -> Iterator[Tensor]:
        """States ``[B, rows, hidden]`` after each of ``layers``, of those that enter the first one.

        ``instead`` are layers to run in their place: copies with other weights. The cache of these layers holds the
        rows afterwards: the caller drops them.
        """
        types = self._anatomy.layer_types
        for index, layer in zip(layers, instead or self._anatomy.layers[layers.start : layers.stop], strict=True):
            out = layer(**rows.arrange(self._calls[index], types[index]) | {"hidden_states": states})
            states = out[0] if isinstance(out, tuple) else out
            yield states


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
