"""Verification: the only place where tokens are accepted.

Rule: at each row take the target's own choice. If a child carries that token, move there, else stop; the last choice is
the next root. The tokens are those of standard decoding whatever was drafted, chain or tree, at any temperature.
For sampled drafts, the picker chooses by the ratio rule (``specstream.decoding.sampling``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from torch import Tensor

from specstream import tree
from specstream.decoding.sampling import Picker
from specstream.decoding.softmax import log_total
from specstream.events import Draft, Fate


class Pick(NamedTuple):
    """The target's token at one row, and the node of the draft that carries it (-1: none).

    ``scored`` is the index of the row in the logits, which have no rows for pruned nodes.
    """

    token: int
    node: int
    row: int
    scored: int


def walk(
    logits: Tensor, draft: Draft, picker: Picker, prefix: Sequence[int], pruned: Collection[int] = ()
) -> Iterator[Pick]:
    """The target's tokens along the accepted path, one at a time, down to the first that no child carries.

    ``logits`` ``[rows, vocab]`` are those of the pass (row 0 is the root) without its ``pruned`` nodes; ``prefix`` are
    the committed ids including the root, copied before the first token, so that the consumer may append to them. Lazy:
    if the consumer stops (EOS, limit), the rest of the path is not evaluated.
    """
    below = tree.children(draft)
    scored = (row for row in range(len(draft) + 1) if row - 1 not in pruned)
    indices = {row: index for index, row in enumerate(scored)}
    greedy = _likeliest(logits) if picker.plain else None
    ids, row = list(prefix), 0
    while True:
        index = indices[row]
        token = greedy(index) if greedy else picker.pick(logits[index], ids)
        node = below[row].get(token, -1)
        node = -1 if node in pruned else node
        yield Pick(token, node, row, index)
        if node < 0:
            return
        ids.append(token)
        row = node + 1


def _likeliest(logits: Tensor) -> Callable[[int], int]:
    """A function that returns the argmax of a row of ``logits`` ``[rows, vocab]``, the first if there are several.

    On a CPU by numpy, which takes a fifth of PyTorch's time, and only for requested rows; elsewhere for all rows at
    once, since every result means waiting for the device.
    """
    if logits.device.type != "cpu":
        return cast(list[int], logits.argmax(-1).tolist()).__getitem__
    values = logits.numpy()
    return lambda row: int(values[row].argmax())


class Scores(NamedTuple):
    """The target's logits ``[rows, vocab]``, the row of each pick, and the logarithm of its sum of exponentials
    ``[picks]``. Arrays on a CPU, tensors elsewhere."""

    logits: Any
    rows: list[int]
    totals: Any

    @classmethod
    def of(cls, logits: Tensor, picks: Sequence[Pick]) -> Scores:
        rows = [pick.scored for pick in picks]
        totals = log_total(logits, rows)
        if logits.device.type != "cpu":
            return cls(logits, rows, totals)
        return cls(logits.numpy(), rows, totals.numpy())

    def finite(self) -> bool:
        """Whether no logit of these rows is NaN."""
        return not any(map(math.isnan, self.totals.tolist()))

    def logprobs(self, picks: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of tokens, each at the row of the pick with the given index."""
        index = list(picks)
        if not index:
            return []
        found = self.logits[[self.rows[i] for i in index], list(tokens)] - self.totals[index]
        return cast(list[float], found.tolist())


def judge(draft: Draft, picks: Sequence[Pick], scores: Scores, pruned: Collection[int] = ()) -> Draft:
    """The draft with every node's fate and, if its parent was reached, the target's probability of its token."""
    order = {pick.row: i for i, pick in enumerate(picks)}
    taken = {pick.node for pick in picks}
    reached = [(node, order[p + 1]) for node, p in enumerate(draft.parents) if p + 1 in order]
    values = scores.logprobs([i for _, i in reached], [draft.tokens[node] for node, _ in reached])
    probs: list[float | None] = [None] * len(draft)
    fates = [Fate.PRUNED if node in pruned else Fate.UNREACHED for node in range(len(draft))]
    for (node, _), value in zip(reached, values, strict=True):
        probs[node] = math.exp(value)
        if node not in pruned:
            fates[node] = Fate.ACCEPTED if node in taken else Fate.REJECTED
    return replace(draft, fate=tuple(fates), target_probs=tuple(probs))
