"""Multi-stream attention over the stock layers of a model (Speculative Streaming, Bhendawade et al. 2024, 3.1 and 3.2).

The top ``layers`` decoder layers carry ``gamma`` extra rows for some of the token rows, and may drop token rows. Hooks
that live for one pass insert and remove the rows, so the model itself is never changed and there is no code per family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from specstream.model.introspection import Anatomy, bind
from specstream.model.lora import LoRA
from specstream.model.masks import Masks, with_streams
from specstream.model.partial_forward import Rotations, Rows, ahead

NO_VALUES = "Value rotation needs a model with a value projection of its own (v_proj) in every layer: use embeddings."


class Streams(nn.Module):
    """The weights that initialise the streams (equation 3): ``S_j = M + B_j A M + P_j``.

    ``embedding`` P is ``[gamma, hidden]``. ``down`` A ``[rank, hidden]`` and ``up`` B ``[gamma, hidden, rank]`` are the
    low-rank layer f_eta, one per stream with a shared inner space; rank 0 is the paper's choice, the identity.
    ``layers`` is N_s, the number of top layers with streams. ``exit_down`` ``[exit_rank, hidden]`` and ``exit_up``
    ``[hidden, exit_rank]`` are the early exit o_theta that prunes drafts; exit_rank 0: none. With ``rotation`` above 0,
    in radians, there is no P: the values of stream j are turned by j times that angle instead (equation 7).
    """

    def __init__(
        self, hidden: int, gamma: int, layers: int, rank: int, exit_rank: int = 0, rotation: float = 0.0
    ) -> None:
        super().__init__()
        if gamma < 1 or layers < 1 or rank < 0 or exit_rank < 0:
            raise ValueError(
                "gamma and layers must be at least 1 and ranks at least 0, "
                f"not {gamma}, {layers}, {rank} and {exit_rank}."
            )
        self.gamma, self.layers, self.rank, self.exit_rank = gamma, layers, rank, exit_rank
        self.rotation = rotation
        if not rotation:
            self.embedding = nn.Parameter(torch.randn(gamma, hidden) * 0.02)
        if rank:
            self.down = nn.Parameter(torch.randn(rank, hidden) * hidden**-0.5)
            self.up = nn.Parameter(torch.zeros(gamma, hidden, rank))
        self._packed: tuple[nn.Module, nn.Module] | None = None
        if exit_rank:
            self.exit_down = nn.Parameter(torch.randn(exit_rank, hidden) * hidden**-0.5)
            self.exit_up = nn.Parameter(torch.zeros(hidden, exit_rank))

    def start(self, main: Tensor) -> Tensor:
        """Stream states ``[B, S, gamma, hidden]`` from main-stream states ``[B, S, hidden]`` at layer N - N_s."""
        out = main[:, :, None].expand(-1, -1, self.gamma, -1)
        if not self.rotation:
            out = out + self.embedding.to(main.dtype)
        if self.rank:
            out = out + self._low_rank(main).unflatten(-1, (self.gamma, -1))
        return out

    def _low_rank(self, main: Tensor) -> Tensor:
        """``B_j A M`` ``[B, S, gamma * hidden]``; all B as one matrix, since a matmul per stream would copy it each
        time."""
        if self._packed is not None:
            down, up = self._packed
            return cast(Tensor, up(down(main)))
        inner = nn.functional.linear(main, self.down.to(main.dtype))  # [B, S, r]
        return nn.functional.linear(inner, self.up.to(main.dtype).flatten(0, 1))

    def pack(self, layout: Callable[[nn.Linear], nn.Module]) -> None:
        """Pack the low-rank layer with ``layout``; the weights can't change afterwards."""
        if self.rank:
            self._packed = layout(_linear(self.down)), layout(_linear(self.up.flatten(0, 1)))

    @contextmanager
    def turned(self, layers: Iterable[nn.Module], first_row: int) -> Iterator[None]:
        """A context in which these layers rotate the values of the rows from ``first_row`` on, all of them stream rows
        (equation 7).

        Raises ValueError for a model without a value projection in every layer.
        """
        hooks = []
        for layer in layers if self.rotation else ():
            values = [m for n, m in layer.named_modules() if n.endswith("v_proj")]
            if len(values) != 1:
                raise ValueError(NO_VALUES)
            hooks.append(values[0].register_forward_hook(self._turn(first_row)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _turn(self, first_row: int) -> Any:
        def hook(_module: nn.Module, _args: Any, values: Tensor) -> Tensor:
            streams = values[:, first_row:]
            steps = torch.arange(streams.shape[1], device=values.device) % self.gamma + 1
            angles = self.rotation * steps[:, None, None].float()
            real, imaginary = streams.float().unflatten(-1, (-1, 2)).unbind(-1)
            cos, sin = angles.cos().squeeze(-1), angles.sin().squeeze(-1)
            both = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
            return torch.cat([values[:, :first_row], both.flatten(-2).to(values.dtype)], 1)

        return hook

    def exit_states(self, main: Tensor) -> Tensor:
        """States ``[..., hidden]`` for the final norm and the head, from main-stream states ``[..., hidden]`` at layer
        N - N_s: ``o_theta(M) = M + B A M``. B starts at zero, so that training starts from the untrained early exit."""
        inner = main @ self.exit_down.to(main.dtype).T
        return main + inner @ self.exit_up.to(main.dtype).T


def _linear(weight: Tensor) -> nn.Linear:
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    out.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return out


@dataclass(frozen=True)
class PassLayout:
    """The plan of one pass: its rows and what they see.

    ``masks`` holds, per layer type, a boolean ``[B, n, k]`` over the n token rows; ``positions`` is ``[B, n]``;
    ``nodes`` ``[B, S]`` are the rows that carry streams. ``keys`` as in ``Rows``.
    """

    masks: Masks
    positions: Tensor
    nodes: Tensor
    keys: int = 0

    def narrowed(self, rows: Sequence[int]) -> PassLayout:
        """The plan of only these rows, all of which carry streams."""
        device, n = self.positions.device, self.positions.shape[1]
        index = torch.tensor(rows, device=device)

        def narrow(mask: Tensor) -> Tensor:
            before = mask.shape[2] - n
            keys = torch.cat([torch.arange(before, device=device), before + index])
            return mask[:, index][:, :, keys]

        nodes = torch.arange(len(rows), device=device).expand(len(self.nodes), -1)
        return PassLayout({t: narrow(m) for t, m in self.masks.items()}, self.positions[:, index], nodes, self.keys)


class Carried:
    """The results of a pass besides its output.

    ``rows`` are the token rows that went through the top layers, None for all. ``main`` ``[B, S, hidden]`` are the
    main-stream states at layer N - N_s of the rows that carry streams; ``states`` ``[B, S, gamma, hidden]`` are the
    streams after the last layer, if the pass carried any.
    """

    main: Tensor
    states: Tensor
    rows: list[int] | None = None

    def index(self, row: int) -> int:
        """The index of a token row among the rows that went through the top layers."""
        return row if self.rows is None else self.rows.index(row)


@contextmanager
def carry(
    anatomy: Anatomy,
    streams: Streams,
    plan: PassLayout,
    lora: LoRA | None = None,
    survivors: Callable[[Tensor], list[int]] | None = None,
    attach: bool = True,
) -> Iterator[Carried]:
    """A context in which one forward pass of the model carries streams in its top layers.

    The caller passes the model the token rows with their own masks and positions; the output holds only token rows.
    Afterwards the caches of the top layers hold token and stream rows; the caller must drop the latter.

    ``lora`` acts on the stream rows. ``survivors`` chooses, from the token rows' states at layer N - N_s
    ``[B, n, hidden]``, the rows that continue: all of these carry streams, and the others are zero in the output. With
    ``attach`` False the pass carries no streams and only records the states from which they would start.
    """
    work = _Pass(anatomy, streams, plan, lora, survivors, attach)
    top = range(len(anatomy.layers) - streams.layers, len(anatomy.layers))
    hooks = [m.register_forward_hook(work.rotations.note, with_kwargs=True) for m in anatomy.rotaries]
    hooks += [anatomy.layers[i].register_forward_pre_hook(work.enter(i, top[0]), with_kwargs=True) for i in top]
    hooks.append(anatomy.layers[-1].register_forward_hook(work.leave))
    try:
        yield work.out
    finally:
        for hook in hooks:
            hook.remove()
        work.adapted.close()


class _Pass:
    """The hooks of one pass and their shared state."""

    def __init__(
        self,
        anatomy: Anatomy,
        streams: Streams,
        plan: PassLayout,
        lora: LoRA | None,
        survivors: Callable[[Tensor], list[int]] | None,
        attach: bool,
    ) -> None:
        types = set(anatomy.layer_types[len(anatomy.layers) - streams.layers :])
        self.plan = replace(plan, masks={t: plan.masks[t] for t in types})
        self.anatomy, self.streams, self.lora = anatomy, streams, lora
        self.survivors, self.attach = survivors, attach
        self.out = Carried()
        self.adapted = ExitStack()
        self.rotations = Rotations()
        self._top = anatomy.layers[len(anatomy.layers) - streams.layers :]
        self.rows: Rows | None = None  # of the top layers, if they differ from those of the layers below

    def enter(self, index: int, first: int) -> Any:
        """The hook before layer ``index``."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]] | None:
            if index > first and self.rows is None:
                return None
            call = bind(module, args, kwargs)
            if index == first:
                call["hidden_states"] = self._begin(call["hidden_states"])
            return ((), self.rows.arrange(call, self.anatomy.layer_types[index])) if self.rows else None

        return hook

    def _begin(self, states: Tensor) -> Tensor:
        """From token states ``[B, n, h]`` to the rows of the top layers: the survivors, followed by their streams."""
        plan = self._pruned(states)
        main = states if self.out.rows is None else states[:, self.out.rows]
        self.out.main = _gathered(main, plan.nodes)
        if self.attach:
            rows = torch.cat([main, self.streams.start(self.out.main).flatten(1, 2)], 1)
            if self.lora:
                self.adapted.enter_context(self.lora.attached(self.anatomy, main.shape[1], rows.shape[1]))
            self.adapted.enter_context(self.streams.turned(self._top, main.shape[1]))
        else:
            rows = main
        if self.attach or self.out.rows is not None:
            self.rows = self._rows(plan)
        return rows

    def _pruned(self, states: Tensor) -> PassLayout:
        rows = self.survivors(states) if self.survivors else None
        if rows is None or len(rows) == states.shape[1]:
            return self.plan
        self.out.rows = rows
        return self.plan.narrowed(rows)

    def _rows(self, plan: PassLayout) -> Rows:
        if not self.attach:
            return Rows(self.anatomy, plan.masks, plan.positions, self.rotations, plan.keys)
        gamma = self.streams.gamma
        masks = {t: with_streams(m, plan.nodes, gamma) for t, m in plan.masks.items()}
        beside = ahead(plan.positions.gather(1, plan.nodes), gamma, self.anatomy.context)
        return Rows(self.anatomy, masks, torch.cat([plan.positions, beside], 1), self.rotations)

    def leave(self, _module: nn.Module, _args: Any, result: Any) -> Any:
        """The hook after the last layer: it removes the streams and restores dropped rows as zeros, because some
        families reshape their output to the shape of their input."""
        states = result[0] if isinstance(result, tuple) else result
        n = self.plan.positions.shape[1] if self.out.rows is None else len(self.out.rows)
        if self.attach:
            self.out.states = states[:, n:].unflatten(1, (self.out.main.shape[1], self.streams.gamma))
        kept = states[:, :n]
        if self.out.rows is not None:
            kept = kept.new_zeros(*self.plan.positions.shape, kept.shape[2])
            kept[:, self.out.rows] = states[:, :n]
        return (kept, *result[1:]) if isinstance(result, tuple) else kept


def _gathered(states: Tensor, rows: Tensor) -> Tensor:
    return states.gather(1, rows[:, :, None].expand(-1, -1, states.shape[-1]))
