"""A tree from one distribution per depth, as streams and Medusa heads draft it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from specstream import tree
from specstream.decoding.drafters.copies import DEEPEST, Copies
from specstream.decoding.interfaces import Drafter, Synchronized
from specstream.decoding.softmax import highest, log_total
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

    def take_step(self) -> bool:
        """Begin a step. Returns whether it is in a pause, which it shortens by one step."""
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
    """Grows a tree from the ``source``'s ``logits`` ``[depths, drafted]`` of the last accepted row, with n-gram copies
    among them. In a pause copies alone are drafted, which cost no pass.

    ``ids`` ``[drafted]`` are the token ids of the logits; None: all. ``text`` are the committed tokens; the list grows
    during the run.

    Raises ValueError at once if the settings ask for a full tree that is too large.
    """

    def __init__(
        self,
        source: Synchronized,
        logits: Callable[[int], Tensor],
        ids: Tensor | None,
        deepest: int,
        params: LevelTree,
        text: Sequence[int],
    ) -> None:
        self._source, self._ids, self._text = source, ids, text
        self._logits, self._params = logits, params
        self._depth = min(params.depth or deepest, deepest)
        self._row = 0
        self._draft = Draft()
        self._copies = Copies(text) if params.copies == "on" and params.tree == "best-first" else None
        self._paused = False
        self._pauses = Pauses(params.pause)
        size = tree.full_size(params.width, self._depth)
        if params.tree == "full" and size > tree.FULL_TREE_LIMIT:
            raise ValueError(
                f"A full tree of width {params.width} and depth {self._depth} has {size} nodes, more than "
                f"{tree.FULL_TREE_LIMIT}: choose a smaller width or depth, or the best-first tree."
            )

    def propose(self, room: int) -> Draft:
        self._draft = self._grown(room) if room > 0 else Draft()
        return self._draft

    def observe(self, row: int) -> None:
        self._row = row
        if self._copies:
            self._copies.observe()
        if len(self._draft) and not self._paused:
            self._pauses.saw(1 + (self._draft.depths()[row - 1] if row else 0))
        self._draft = Draft()  # recorded: the next row may belong to a draft that is not from here

    def _grown(self, room: int) -> Draft:
        self._paused = self._pauses.take_step()
        found: Candidates = Levels(()) if self._paused else self._asked(min(self._depth, room))
        if self._params.tree == "full":
            return tree.full(found)
        if self._copies:
            found = self._copies.beside(found, min(self._params.depth or DEEPEST, room))
        draft = tree.best_first(found, self._params.nodes, self._params.least(self._pauses.mean))
        if not self._copies:
            return draft
        return replace(draft, copied=tuple(map(self._copies.is_copy, tree.paths(draft))))

    def _asked(self, depth: int) -> Candidates:
        """The candidates that streams or heads give, in a pass of their own."""
        with self.passing(self._source.synchronize):
            logits = self._logits(self._row)
        return self._candidates(logits[:depth])

    def _candidates(self, logits: Tensor) -> Candidates:
        return Levels(likeliest(logits, self._params.width, self._ids))


def likeliest(logits: Tensor, width: int, ids: Tensor | None = None) -> list[Level]:
    """The ``width`` likeliest tokens with their probabilities, for every row of logits ``[rows, drafted]``.

    ``ids`` ``[drafted]`` are the token ids of the logits; None: the whole vocabulary.
    """
    values, indices = highest(logits, width)
    probs = (values - log_total(logits)[:, None]).exp()
    found = indices if ids is None else ids[indices]
    return [
        list(zip(tokens, values, strict=True)) for tokens, values in zip(found.tolist(), probs.tolist(), strict=True)
    ]
