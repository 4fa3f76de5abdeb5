"""A tree from one distribution per depth, as streams and Medusa heads draft it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from specstream import tree
from specstream.decoding.interfaces import Drafter, Synchronized
from specstream.decoding.softmax import log_total
from specstream.events import Draft
from specstream.params import LevelTree
from specstream.tree import Candidates, Level, Levels


class Pauses:
    """Pauses drafting when ``mean``, the running mean of tokens per step, falls ``below`` a limit: drafts don't pay.

    A pause doubles each time that the next step with a draft gains nothing either. It depends on accepted tokens only,
    never on a clock, so a run can be repeated.
    """

    SHARE = 0.2  # weight of the newest step in the mean
    FIRST, LONGEST = 4, 32  # steps of a pause
    START = 2.6  # the mean before anything is seen

    def __init__(self, below: float) -> None:
        self._below, self.mean = below, max(2 * below, self.START)
        self._left, self._length = 0, self.FIRST

    def due(self) -> bool:
        """Whether the next step is in a pause."""
        self._left -= 1
        return self._left >= 0

    def saw(self, tokens: int) -> None:
        """Record a step with a draft that emitted ``tokens`` tokens."""
        self.mean += self.SHARE * (tokens - self.mean)
        if self.mean >= self._below:
            self._length = self.FIRST
            return
        self._left, self._length = self._length, min(2 * self._length, self.LONGEST)
        self.mean = self._below  # one good step is enough to continue


class LevelDrafter(Drafter):
    """Grows a tree from the ``source``'s ``logits`` ``[depths, drafted]`` of the last accepted row.

    ``ids`` ``[drafted]`` are the token ids of the logits; None: all.

    Raises ValueError at once if the settings ask for a full tree that is too large.
    """

    def __init__(
        self,
        source: Synchronized,
        logits: Callable[[int], Tensor],
        ids: Tensor | None,
        deepest: int,
        params: LevelTree,
    ) -> None:
        self._source, self._ids = source, ids
        self._logits, self._params = logits, params
        self._depth = min(params.depth or deepest, deepest)
        self._row = 0
        self._draft = Draft()
        self._pauses = Pauses(params.pause)
        size = tree.full_size(params.width, self._depth)
        if params.tree == "full" and size > tree.FULL_TREE_LIMIT:
            raise ValueError(
                f"A full tree of width {params.width} and depth {self._depth} has {size} nodes, more than "
                f"{tree.FULL_TREE_LIMIT}: choose a smaller width or depth, or the best-first tree."
            )

    def propose(self, room: int) -> Draft:
        depth = min(self._depth, room)
        self._draft = Draft() if depth < 1 or self._pauses.due() else self._grown(depth)
        return self._draft

    def observe(self, row: int) -> None:
        self._row = row
        if len(self._draft):
            self._pauses.saw(1 + (self._draft.depths()[row - 1] if row else 0))
            self._draft = Draft()  # recorded: the next row may belong to another drafter's draft, if several take turns

    def _grown(self, depth: int) -> Draft:
        with self.passing(self._source.synchronize):
            logits = self._logits(self._row)
        found = self._candidates(logits[:depth])
        if self._params.tree == "full":
            return tree.full(found)
        return tree.best_first(found, self._params.nodes, self._params.least(self._pauses.mean))

    def _candidates(self, logits: Tensor) -> Candidates:
        return Levels(likeliest(logits, self._params.width, self._ids))


def likeliest(logits: Tensor, width: int, ids: Tensor | None = None) -> list[Level]:
    """The ``width`` likeliest tokens with their probabilities, for every row of logits ``[rows, drafted]``.

    ``ids`` ``[drafted]`` are the token ids of the logits; None: the whole vocabulary.
    """
    top = logits.topk(min(width, logits.shape[-1]), -1)
    probs = (top.values - log_total(logits)).exp()
    found = top.indices if ids is None else ids[top.indices]
    return [
        list(zip(tokens, values, strict=True)) for tokens, values in zip(found.tolist(), probs.tolist(), strict=True)
    ]
