"""N-gram copies in a draft tree, beside what streams or heads draft: our own addition, not from the papers.

Wherever the text, with a drafted path after it, ends in tokens that occurred before, the token that followed them there
is a candidate too. Prompt lookup (``prompt_lookup``) drafts copies alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from specstream.decoding.drafters.prompt_lookup import Occurrences
from specstream.tree import Candidates, Level, Path

LONGEST = 6  # tokens of a match: longer ones are no better
DEEPEST = 16  # tokens of a path with copies
# The logit of a copy's share: what it gains by each token of the match, and loses by the probability of the likeliest
# other token, which is taken to be UNKNOWN where nothing is drafted. Chosen on prompts of the bundled tasks.
MATCHED, CONTRADICTED, UNKNOWN = 0.5, 6.0, 0.25
RATE = 0.3  # how fast the logits follow the hits and misses of a run


class Copied(NamedTuple):
    """A copied ``token``, the copy's ``share``, and the probability that streams or heads give the token."""

    token: int
    share: float
    drafted: float

    @property
    def of_copy(self) -> float:
        """Of the token's probability, the part that it owes to the copy."""
        return self.share / (self.share + (1 - self.share) * self.drafted)


class Copies:
    """The copies of one run, and how far to trust them.

    The next token is taken to be the copied one with a probability, the ``share``, and else what streams or heads say.
    The share rises with the length of the match and falls with the probability of another token. Its logit is
    corrected by the run's own hits and misses, one step of gradient ascent on the likelihood of each compared token.
    ``ids`` are the committed tokens; the list grows during the run.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._seen = Occurrences(ids, range(1, LONGEST + 1))
        self._learned = 0.0  # the correction of the logits
        self._start = len(ids)
        self._copied: dict[Path, Copied] = {}  # of the next tree, by the path before it

    def beside(self, drafted: Candidates, room: int) -> Candidates:
        """The candidates of the next tree, at most ``room`` deep: those drafted, with copies among them."""
        self._seen.update()
        self._start, self._copied = len(self._ids), {}
        return Beside(drafted, self, min(room, DEEPEST))

    def observe(self) -> None:
        """Learn from the tokens that were committed since the last tree."""
        written = tuple(self._ids[self._start :])
        for depth, token in enumerate(written):
            if copied := self._copied.get(written[:depth]):
                hit = copied.of_copy if token == copied.token else 0.0
                self._learned += RATE * (hit - copied.share)
        self._copied = {}

    def mixed(self, path: Path, level: Level | None) -> Level:
        """The candidates after a path, the likeliest first: those of ``level`` (None: too deep to be drafted) and the
        copied token. A token that both propose is one candidate."""
        match, token = self._next(path)
        if not match:
            return level or ()
        others = {other: prob for other, prob in level or () if other != token}
        contradicted = max(others.values(), default=0.0) if level is not None else UNKNOWN
        logit = self._learned + MATCHED * match - CONTRADICTED * contradicted
        copied = Copied(token, 1 / (1 + math.exp(-logit)), dict(level or ()).get(token, 0.0))
        self._copied[path] = copied
        mix = [(other, (1 - copied.share) * prob) for other, prob in others.items()]
        mix.append((token, copied.share + (1 - copied.share) * copied.drafted))
        return sorted(mix, key=lambda candidate: -candidate[1])

    def is_copy(self, path: Path) -> bool:
        """Whether the last token of a path owes more of its probability to the copy than to streams or heads."""
        copied = self._copied.get(path[:-1])
        return copied is not None and copied.token == path[-1] and copied.of_copy > 0.5

    def _next(self, path: Path) -> tuple[int, int]:
        """The length of the longest match of the end of text and path, and the token that followed its newest
        occurrence in the text; 0, -1 if there is none."""
        end = (*self._ids[-LONGEST:], *path)
        for size in range(min(LONGEST, len(end)), 0, -1):
            if at := self._seen.newest(end[-size:]):
                return size, self._ids[at]
        return 0, -1


class Beside:
    """Candidates ``drafted`` by streams or heads, with ``copies`` among them, ``depth`` deep."""

    def __init__(self, drafted: Candidates, copies: Copies, depth: int) -> None:
        self._drafted, self._copies, self._depth = drafted, copies, depth

    def __len__(self) -> int:
        return self._depth

    def after(self, path: Path) -> Level:
        """As in ``tree.Candidates``."""
        return self._copies.mixed(path, self._drafted.after(path) if len(path) < len(self._drafted) else None)
