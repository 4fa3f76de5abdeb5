"""Draft trees: growing them, their attention rows and paths. Standard library only.

In a pass, row 0 is the root (the newest committed token) and row i + 1 is node i of the Draft.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol

from specstream.events import Draft

FULL_TREE_LIMIT = 400

Level = Sequence[tuple[int, float]]  # the candidates of one depth: (token, probability), likeliest first
Path = tuple[int, ...]  # tokens from the root, which is left out, down


class Candidates(Protocol):
    """The candidate tokens at each of ``len()`` depths."""

    def __len__(self) -> int: ...

    def after(self, path: Path) -> Level:
        """The candidates after the tokens on the path from the root down; the root's own children after ()."""
        ...


class Levels:
    """Candidates that do not depend on the parent token."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self._levels = levels

    def __len__(self) -> int:
        return len(self._levels)

    def after(self, path: Path) -> Level:
        return self._levels[len(path)]


def attention_rows(parents: Sequence[int]) -> list[list[int]]:
    """For every row of a pass, the rows it attends to: its ancestors from the root on, and itself."""
    rows = [[0]]
    for node, parent in enumerate(parents):
        if parent >= node:
            raise ValueError(f"node {node} comes before its parent {parent}")
        rows.append([*rows[parent + 1], node + 1])
    return rows


def best_first(candidates: Candidates, budget: int, least: float = 0.0) -> Draft:
    """The ``budget`` likeliest nodes by joint probability (the product of the probabilities on the path), without those
    below ``least``. Not from the paper, which uses full trees.

    The candidates form a k-ary tree, which is grown lazily.
    """
    tokens: list[int] = []
    parents: list[int] = []
    probs: list[float] = []
    # (-joint, depth, rank, parent, its joint, siblings, their path)
    heap: list[tuple[float, int, int, int, float, Level, Path]] = []

    def offer(rank: int, parent: int, above: float, level: Level, path: Path) -> None:
        if rank < len(level):
            heapq.heappush(heap, (-above * level[rank][1], len(path), rank, parent, above, level, path))

    if len(candidates):
        offer(0, -1, 1.0, candidates.after(()), ())
    while heap and len(tokens) < budget:
        joint, depth, rank, parent, above, level, path = heapq.heappop(heap)
        if -joint < least:
            break  # the heap returns the likeliest first
        token, prob = level[rank]
        tokens.append(token)
        parents.append(parent)
        probs.append(prob)
        offer(rank + 1, parent, above, level, path)
        if depth + 1 < len(candidates) and len(tokens) < budget:
            below = (*path, token)
            offer(0, len(tokens) - 1, -joint, candidates.after(below), below)
    return Draft(tuple(tokens), tuple(parents), tuple(probs))


def caterpillar(levels: Sequence[Level], budget: int) -> Draft:
    """The ``budget`` likeliest nodes, by joint probability, of a chain with alternatives.

    All candidates of a depth are children of the likeliest token of the depth above.
    """
    nodes: list[tuple[float, int, int]] = []  # (-joint, depth, rank)
    above = 1.0
    for depth, level in enumerate(levels):
        nodes += [(-above * prob, depth, rank) for rank, (_, prob) in enumerate(level)]
        above *= level[0][1]
    chosen = sorted(nodes)[:budget]  # a node is never likelier than its parent, so parents come first
    places = {depth: place for place, (_, depth, rank) in enumerate(chosen) if rank == 0}
    return Draft(
        tuple(levels[depth][rank][0] for _, depth, rank in chosen),
        tuple(places.get(depth - 1, -1) for _, depth, _ in chosen),
        tuple(levels[depth][rank][1] for _, depth, rank in chosen),
    )


def full(candidates: Candidates) -> Draft:
    """Every combination, as in Speculative Streaming (Bhendawade et al. 2024, section 3.2.2): each node of a depth has
    all candidates of the next depth as children."""
    tokens: list[int] = []
    parents: list[int] = []
    probs: list[float] = []
    above: list[tuple[int, Path]] = [(-1, ())]
    for _ in range(len(candidates)):
        here = []
        for parent, path in above:
            for token, prob in candidates.after(path):
                here.append((len(tokens), (*path, token)))
                tokens.append(token)
                parents.append(parent)
                probs.append(prob)
        above = here
    return Draft(tuple(tokens), tuple(parents), tuple(probs))


def full_size(width: int, depth: int) -> int:
    """The number of nodes of a full tree, without the root."""
    return sum(width**d for d in range(1, depth + 1))


def paths(draft: Draft) -> list[Path]:
    """The path from the root down to every node, the node included."""
    out: list[Path] = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        out.append((*(out[parent] if parent >= 0 else ()), token))
    return out


def children(draft: Draft) -> list[dict[int, int]]:
    """For every row of the pass, its children as token: node. Siblings never share a token."""
    out: list[dict[int, int]] = [{} for _ in range(len(draft) + 1)]
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        out[parent + 1][token] = node
    return out


def ranks(draft: Draft) -> tuple[int, ...]:
    """The rank of every node among its siblings by drafted probability, 1 the likeliest."""
    out = [0] * len(draft)
    for siblings in children(draft):
        for rank, node in enumerate(sorted(sorted(siblings.values()), key=lambda n: -draft.probs[n]), 1):
            out[node] = rank
    return tuple(out)


def widest_on_path(draft: Draft) -> tuple[int, ...]:
    """For every node, the largest rank on its path: the width of the narrowest tree that contains it."""
    out: list[int] = []
    for parent, rank in zip(draft.parents, ranks(draft), strict=True):
        out.append(rank if parent < 0 else max(out[parent], rank))
    return tuple(out)


def pruned(parents: Sequence[int], likely: Sequence[bool]) -> frozenset[int]:
    """The nodes that are not ``likely`` after their parent, and their descendants (the paper, section 3.2.3)."""
    out: set[int] = set()
    for node, parent in enumerate(parents):
        if parent in out or not likely[node]:
            out.add(node)
    return frozenset(out)
