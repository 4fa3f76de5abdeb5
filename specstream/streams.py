"""Multi-stream attention over the stock layers of a model (Speculative Streaming, section 3.1).

The top ``layers`` decoder layers carry ``gamma`` extra rows for some of the token rows. They are put in and taken off
by hooks that live for one pass, so the model itself is never changed and has no code per family.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specstream.anatomy import Anatomy, bind
from specstream.masks import additive, with_streams


class Streams(nn.Module):
    """The weights that start the streams (equation 3): ``S_j = M + B_j A M + P_j``.

    ``embedding`` P is ``[gamma, hidden]``. ``down`` A ``[rank, hidden]`` and ``up`` B ``[gamma, hidden, rank]`` are the
    low-rank map f_eta, one per stream with a shared inner space; rank 0 is the paper's choice, the identity.
    ``layers`` is N_s, the number of top layers with streams. ``exit_down`` ``[exit_rank, hidden]`` and ``exit_up``
    ``[hidden, exit_rank]`` are the early exit o_theta that prunes drafts; exit_rank 0: none.
    """

    def __init__(self, hidden: int, gamma: int, layers: int, rank: int, exit_rank: int = 0) -> None:
        super().__init__()
        if gamma < 1 or layers < 1 or rank < 0 or exit_rank < 0:
            raise ValueError(
                "gamma and layers must be at least 1 and ranks at least 0, "
                f"not {gamma}, {layers}, {rank} and {exit_rank}."
            )
        self.gamma, self.layers, self.rank, self.exit_rank = gamma, layers, rank, exit_rank
        self.embedding = nn.Parameter(torch.randn(gamma, hidden) * 0.02)
        if rank:
            self.down = nn.Parameter(torch.randn(rank, hidden) * hidden**-0.5)
            self.up = nn.Parameter(torch.zeros(gamma, hidden, rank))
        if exit_rank:
            self.exit_down = nn.Parameter(torch.randn(exit_rank, hidden) * hidden**-0.5)
            self.exit_up = nn.Parameter(torch.zeros(hidden, exit_rank))

    def start(self, main: Tensor) -> Tensor:
        """Stream states ``[B, S, gamma, hidden]`` from main-stream states ``[B, S, hidden]`` at layer N - N_s."""
        out = main[:, :, None] + self.embedding.to(main.dtype)
        if self.rank:
            inner = main @ self.down.to(main.dtype).T  # [B, S, r]
            out = out + torch.einsum("bsr,ghr->bsgh", inner, self.up.to(main.dtype))
        return out

    def exit_states(self, main: Tensor) -> Tensor:
        """States ``[..., hidden]`` for the final norm and the head, from main-stream states ``[..., hidden]`` at layer
        N - N_s: ``o_theta(M) = M + B A M``. B starts at zero, so that training starts from the plain early exit."""
        inner = main @ self.exit_down.to(main.dtype).T
        return main + inner @ self.exit_up.to(main.dtype).T


@dataclass(frozen=True)
class Plan:
    """One pass: what its rows are and what they see.

    ``masks`` holds, per layer type, a boolean ``[B, n, k]`` over the n token rows; ``positions`` is ``[B, n]``;
    ``nodes`` ``[B, S]`` are the rows that carry streams.
    """

    masks: dict[str, Tensor]
    positions: Tensor
    nodes: Tensor


class Carried:
    """What a pass leaves behind: ``states`` ``[B, S, gamma, hidden]`` of the streams after the last layer."""

    states: Tensor


@contextmanager
def carry(anatomy: Anatomy, streams: Streams, plan: Plan) -> Iterator[Carried]:
    """While open, one forward pass of the model carries streams in its top layers.

    The caller passes the model the token rows with their own masks and positions; its output holds the token rows only.
    Key-value caches of the top layers hold token and stream rows afterwards: the caller drops the latter.
    """
    gamma, carried = streams.gamma, plan.nodes.shape[1]
    rows = plan.positions.shape[1]
    first, last = len(anatomy.layers) - streams.layers, len(anatomy.layers) - 1
    types = set(anatomy.layer_types[first:])
    masks = {t: additive(with_streams(plan.masks[t], plan.nodes, gamma), anatomy.dtype) for t in types}
    ahead = torch.arange(1, gamma + 1, device=plan.positions.device)
    beside = plan.positions.gather(1, plan.nodes)[:, :, None] + ahead
    stream_positions = beside.flatten(1).clamp_max(anatomy.context - 1)  # some families look positions up in a table
    positions = torch.cat([plan.positions, stream_positions], 1)
    rotated: dict[int, Any] = {}
    out = Carried()

    def rotate(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        ahead_of_rows = module.forward(**bind(module, args, kwargs) | {"position_ids": stream_positions})
        rotated[id(result[0])] = tuple(torch.cat(pair, -2) for pair in zip(result, ahead_of_rows, strict=True))

    def enter(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
            call = bind(module, args, kwargs)
            states = call["hidden_states"]  # [B, n, h], in the first stream layer; [B, n + S*gamma, h] above
            if index == first:
                main = states.gather(1, plan.nodes[:, :, None].expand(-1, -1, states.shape[-1]))
                call["hidden_states"] = torch.cat([states, streams.start(main).flatten(1, 2)], 1)
            call["attention_mask"] = masks[anatomy.layer_types[index]]
            if call.get("position_ids") is not None:
                call["position_ids"] = positions
            if call.get("position_embeddings") is not None:
                call["position_embeddings"] = rotated[id(call["position_embeddings"][0])]
            return (), call

        return hook

    def leave(_module: nn.Module, _args: Any, result: Any) -> Any:
        states = result[0] if isinstance(result, tuple) else result
        out.states = states[:, rows:].unflatten(1, (carried, gamma))
        kept = states[:, :rows]
        return (kept, *result[1:]) if isinstance(result, tuple) else kept

    hooks = [m.register_forward_hook(rotate, with_kwargs=True) for m in anatomy.rotaries]
    hooks += [anatomy.layers[i].register_forward_pre_hook(enter(i), with_kwargs=True) for i in range(first, last + 1)]
    hooks.append(anatomy.layers[last].register_forward_hook(leave))
    try:
        yield out
    finally:
        for hook in hooks:
            hook.remove()
