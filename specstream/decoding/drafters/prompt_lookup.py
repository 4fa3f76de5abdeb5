"""Prompt lookup (Saxena 2023): n-gram copies of what followed the last tokens where they occurred before in the text.

The original drafts a single continuation; several continuations in one tree are our extension.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

from specstream.decoding.interfaces import Drafter
from specstream.events import Draft
from specstream.params import PromptLookup

LOOKED_AT = 32  # most earlier occurrences of an n-gram that a draft uses, newest first


class Occurrences:
    """The positions after each n-gram of a growing text. The index grows with the text; nothing is scanned twice."""

    def __init__(self, ids: Sequence[int], sizes: range) -> None:
        self._ids, self._sizes = ids, sizes
        self._after: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._done = 0  # every position below this is indexed

    def update(self) -> None:
        """Index positions that are new since the last call, except the last n-gram, which nothing follows yet."""
        for at in range(self._done, len(self._ids)):
            for size in self._sizes:
                if size <= at:
                    self._after[tuple(self._ids[at - size : at])].append(at)
        self._done = len(self._ids)

    def newest(self, end: tuple[int, ...]) -> int | None:
        """The position after the newest occurrence of the n-gram ``end``; None if there is none."""
        found = self._after.get(end)
        return found[-1] if found else None

    def of_end(self, size: int) -> Iterator[int]:
        """Positions after earlier occurrences of the last ``size`` tokens, newest first."""
        if len(self._ids) > size:
            yield from islice(reversed(self._after.get(tuple(self._ids[-size:]), ())), LOOKED_AT)


class PromptLookupDrafter(Drafter):
    """Drafts from the text alone, without a model. ``ids`` are the committed tokens; the list grows during the run."""

    def __init__(self, ids: Sequence[int], params: PromptLookup) -> None:
        self._ids, self._params = ids, params
        self._seen = Occurrences(ids, range(params.shortest, params.longest + 1))

    def propose(self, room: int) -> Draft:
        self._seen.update()
        depth = min(self._params.depth, room)
        if depth < 1:
            return Draft()
        paths: list[tuple[int, ...]] = []
        for size in range(self._params.longest, self._params.shortest - 1, -1):
            paths += [self._continuation(at, depth) for at in self._seen.of_end(size)]
            if len(set(paths)) >= self._params.candidates:
                break
        chosen = list(dict.fromkeys(paths))[: self._params.candidates]
        return merged(chosen, paths, self._params.nodes)

    def observe(self, row: int) -> None:
        """Nothing to do: accepted tokens are in the text."""

    def _continuation(self, at: int, depth: int) -> tuple[int, ...]:
        """The ``depth`` tokens from a position on; if the text ends before that, the available ones are repeated."""
        period = len(self._ids) - at
        return tuple(self._ids[at + i % period] for i in range(depth))


def merged(paths: Sequence[tuple[int, ...]], votes: Sequence[tuple[int, ...]], budget: int) -> Draft:
    """The paths as a tree of at most ``budget`` nodes, with common prefixes merged, the first path first.

    A node's probability is the share of its parent's votes that it gets.
    """
    nodes: dict[tuple[int, ...], int] = {}  # by the path of tokens from the root to the node
    for path in paths:
        for length in range(1, len(path) + 1):
            if len(nodes) < budget or path[:length] in nodes:
                nodes.setdefault(path[:length], len(nodes))
            else:
                break
    counts = {n: sum(v[: len(n)] == n for v in votes) for n in ((), *nodes)}
    return Draft(
        tuple(n[-1] for n in nodes),
        tuple(nodes.get(n[:-1], -1) for n in nodes),
        tuple(counts[n] / counts[n[:-1]] for n in nodes),
        copied=(True,) * len(nodes),
    )
