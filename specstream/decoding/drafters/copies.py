"""Copies inside a drafted tree: what followed the end of the text before stands beside what the streams propose."""

from __future__ import annotations

from collections.abc import Sequence

from specstream.decoding.drafters.prompt_lookup import Occurrences
from specstream.tree import Candidates, Level

LONGEST = 8  # tokens of a match that are told apart: a longer one counts as this long
DEEPEST = 16
# How often the token after a match of 2, 3, ... tokens was right, counted on answers of chat models, and for how many
# tries this counts beside those of the run.
USUAL = (0.35, 0.5, 0.6, 0.65, 0.7, 0.75, 0.85)
WEIGHT = 6.0


class Copy:
    """What followed the longest earlier match of a text's end, and how likely each of its tokens is.

    The shares are learned in the run by the length of the match: nothing of another run is in them.
    """

    def __init__(self, ids: Sequence[int], shortest: int) -> None:
        self._ids, self._shortest = ids, shortest
        self._seen = Occurrences(ids, range(shortest, shortest + 1))
        self._hits = {length: WEIGHT * USUAL[length - 2] for length in range(2, LONGEST + 1)}
        self._tries = dict.fromkeys(self._hits, WEIGHT)
        self._judged = len(ids)  # every position below it has been compared with its copy
        self._from = self._length = 0
        self.tokens: tuple[int, ...] = ()

    def update(self, depth: int) -> None:
        """Compare the last copy with what came, and look for the next one, ``depth`` tokens long."""
        self._judge()
        self._seen.update()
        end = len(self._ids)
        found = max(((self._match(at), at) for at in self._seen.of_end(self._shortest)), default=None)
        self._judged, self.tokens = end, ()
        if found:
            self._length, at = found
            self.tokens = tuple(self._ids[at + i % (end - at)] for i in range(min(depth, DEEPEST)))

    def share(self, depth: int) -> float:
        """How likely the copy's token of a depth is, where all before it were right."""
        length = self._bucket(depth)
        return self._hits[length] / self._tries[length]

    def _bucket(self, depth: int) -> int:
        return max(2, min(self._length + depth, LONGEST))

    def _judge(self) -> None:
        for depth, token in enumerate(self.tokens[: len(self._ids) - self._judged]):
            length, right = self._bucket(depth), self._ids[self._judged + depth] == token
            self._tries[length] += 1
            self._hits[length] += right
            if not right:
                return

    def _match(self, at: int) -> int:
        """How many tokens before a position are those at the end of the text, up to LONGEST."""
        length = self._shortest
        while length < LONGEST and at > length and self._ids[at - 1 - length] == self._ids[-1 - length]:
            length += 1
        return length


class WithCopy:
    """Candidates with a copy among them: along it, its token has its share and the others what is left."""

    def __init__(self, candidates: Candidates, copy: Copy) -> None:
        self._candidates, self._copy = candidates, copy

    def __len__(self) -> int:
        return max(len(self._candidates), len(self._copy.tokens))

    def after(self, path: tuple[int, ...]) -> Level:
        """As of tree.Candidates."""
        depth = len(path)
        own = self._candidates.after(path) if depth < len(self._candidates) else ()
        if depth >= len(self._copy.tokens) or path != self._copy.tokens[:depth]:
            return own
        copied, share = self._copy.tokens[depth], self._copy.share(depth)
        rest = {token: (1 - share) * prob for token, prob in own}
        rest[copied] = share + rest.get(copied, 0.0)
        return sorted(rest.items(), key=lambda pair: -pair[1])
