"""Verification: the only place where tokens are accepted.

Rule: at each row take the target's own choice. If a child carries that token, go there, else stop; the last choice is
the next root. It is exact for any draft that does not look at the noise, chain or tree, at any temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from specstream import tree
from specstream.events import Draft, Fate
from specstream.sampling import Picker


class Pick(NamedTuple):
    """The target's token at one row, and the node of the draft that carries it (-1: none does)."""

    token: int
    node: int
    row: int


def walk(logits: Tensor, draft: Draft, picker: Picker, prefix: Sequence[int]) -> Iterator[Pick]:
    """The target's tokens along the accepted path, one at a time, down to the first that no child carries.

    ``logits`` ``[rows, vocab]`` are those of the pass (row 0 the root), ``prefix`` the committed ids with the root.
    Lazy: a consumer that stops (EOS, limit) leaves the rest of the path unjudged.
    """
    below = tree.children(draft)
    greedy = logits.argmax(-1).tolist() if picker.plain else None
    ids, row = list(prefix), 0
    while True:
        token = greedy[row] if greedy is not None else picker.pick(logits[row], ids)
        node = below[row].get(token, -1)
        yield Pick(token, node, row)
        if node < 0:
            return
        ids.append(token)
        row = node + 1


def judge(draft: Draft, picks: Sequence[Pick], logprobs: Tensor) -> Draft:
    """The draft with every node's fate and, where its parent was reached, the target's probability of its token.

    ``logprobs`` ``[len(picks), vocab]`` are the target's own log-probabilities at the rows of ``picks``.
    """
    order = {pick.row: i for i, pick in enumerate(picks)}
    taken = {pick.node for pick in picks}
    reached = [(node, order[p + 1]) for node, p in enumerate(draft.parents) if p + 1 in order]
    values = logprobs[[i for _, i in reached], [draft.tokens[node] for node, _ in reached]].exp().tolist()
    probs: list[float | None] = [None] * len(draft)
    fates = [Fate.UNREACHED] * len(draft)
    for (node, _), value in zip(reached, values, strict=True):
        probs[node] = value
        fates[node] = Fate.ACCEPTED if node in taken else Fate.REJECTED
    return replace(draft, fate=tuple(fates), target_probs=tuple(probs))
