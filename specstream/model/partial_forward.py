"""Extra rows for the layers of a stock model: their masks and positions, and passes that call the layers directly.

A layer is called with the arguments that the model gives it, except for states, masks, positions and rotary tables. So
there is no code per family here.
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

    Positions are limited to the context, since some families look them up in a table.
    """
    steps = torch.arange(1, gamma + 1, device=positions.device)
    return (positions[:, :, None] + steps).flatten(1).clamp_max(context - 1)


class Rotations:
    """Rotary tables at arbitrary positions, by calling the model's own module again."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[nn.Module, dict[str, Any], Any]] = {}

    def note(self, module: nn.Module, args: Any, kwargs: Any, table: Any) -> None:
        """The hook after a rotary module. It holds a reference to the table, so that its id is not reused."""
        self._calls[id(table[0])] = module, bind(module, args, kwargs), table

    def at(self, table: Any, positions: Tensor) -> Any:
        """The table for ``positions`` ``[B, rows]``, by the module that made ``table``."""
        module, call, _ = self._calls[id(table[0])]
        return module.forward(**call | {"position_ids": positions})


class Rows:
    """Rows for some layers: what each sees (``masks`` by layer type) and its position ``[B, rows]``.

    ``keys`` is the number of keys given to attention, if that is more than the masks cover.
    """

    def __init__(self, anatomy: Anatomy, masks: Masks, positions: Tensor, rotations: Rotations, keys: int = 0) -> None:
        self._masks = {t: additive(m, anatomy.dtype, keys) for t, m in masks.items()}
        self._positions, self._rotations = positions, rotations
        self._tables: dict[int, Any] = {}

    def arrange(self, call: dict[str, Any], layer_type: str) -> dict[str, Any]:
        """The arguments of a layer's call, with masks and positions replaced by those of these rows."""
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

    ``whole``: the pass consists only of the embedding, the layers and the tail. Each of these received exactly the
    tensor that its predecessor returned, and no tensors other than those that ``Rows`` arranges.
    """

    OURS = ("hidden_states", "attention_mask", "position_ids", "position_embeddings")

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._calls: dict[int, dict[str, Any]] = {}
        self._rotations = Rotations()
        self.whole = False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A context that records a pass of the decoder."""
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
            # Inspecting the signature of every layer would take milliseconds of a prompt pass.
            by_name = bind(module, args, kwargs) if len(args) > 1 else kwargs
            self._calls[index] = by_name | {"hidden_states": None, "attention_mask": None}

        return hook

    def _of_a_row(self, call: dict[str, Any]) -> bool:
        """Whether a layer gets other tensors that may depend on its rows, which we can't reproduce."""
        others = {name: value for name, value in call.items() if name not in self.OURS}
        return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(others))

    def rows(self, masks: Masks, positions: Tensor, keys: int) -> Rows:
        """Rows for ``run``, with a cache of ``keys`` keys."""
        return Rows(self._anatomy, masks, positions, self._rotations, keys)

    def run(self, states: Tensor, rows: Rows, layers: range, instead: Sequence[nn.Module] = ()) -> Iterator[Tensor]:
        """Yields the states ``[B, rows, hidden]`` after each of ``layers``, given those that enter the first.

        ``instead`` are layers to run in their place: copies with other weights. Afterwards the cache of these layers
        also holds the rows; the caller must drop them.
        """
        types = self._anatomy.layer_types
        chosen = instead or list(self._anatomy.layers)[layers.start : layers.stop]
        for index, layer in zip(layers, chosen, strict=True):
            call = rows.arrange(self._calls[index], types[index]) | {"hidden_states": states}
            hooked = layer._forward_hooks or layer._forward_pre_hooks  # otherwise calling the module is only overhead
            out = layer(**call) if hooked else layer.forward(**call)
            states = out[0] if isinstance(out, tuple) else out
            yield states


@contextmanager
def starting_at(anatomy: Anatomy, layer: int, states: Tensor) -> Iterator[None]:
    """A context in which a forward pass starts at a layer, with ``states`` ``[B, n, hidden]``; layers below do nothing.

    Everything that the model does before its layers and after them runs unchanged.
    """

    def put(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        return (), bind(module, args, kwargs) | {"hidden_states": states}

    def nothing(hidden_states: Any, *_: Any, **__: Any) -> tuple[Any]:
        return (hidden_states,)  # a tuple, as some families expect; its contents are replaced at ``layer``

    skipped = anatomy.layers[:layer]
    hook = anatomy.layers[layer].register_forward_pre_hook(put, with_kwargs=True)
    try:
        for module in skipped:
            module.forward = nothing
        yield
    finally:
        for module in skipped:
            vars(module).pop("forward", None)  # uncovers the class's own method
        hook.remove()


class _Reached(Exception):
    """A forward pass has reached the layer where it should end; ``states`` are that layer's inputs."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("reached")
        self.states = states


def run_below(anatomy: Anatomy, layer: int, **call: Any) -> Tensor:
    """The input states ``[B, n, hidden]`` of a layer, by the model's own forward with the arguments ``call``.

    An exception ends the forward there: what precedes the first layer differs by family (scaled embeddings, learned
    positions), so it can't be called piece by piece.
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
