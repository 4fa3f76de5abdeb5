"""Properties of trees, masks and attention rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specstream import tree
from specstream.events import Draft
from specstream.model import masks

parents_lists = st.integers(0, 20).flatmap(lambda n: st.tuples(*(st.integers(-1, i - 1) for i in range(n))).map(list))


def ancestors(parents: list[int], node: int) -> set[int]:
    """Rows on the way to a node, the plain way: -1 is the root, row 0."""
    rows = {0}
    while node >= 0:
        rows.add(node + 1)
        node = parents[node]
    return rows


@given(parents_lists, st.integers(0, 6))
def test_every_node_sees_the_prefix_its_ancestors_and_itself(parents: list[int], prefix: int) -> None:
    mask = masks.tree_mask(tree.attention_rows(parents), prefix)[0]
    assert mask.shape == (len(parents) + 1, prefix + len(parents) + 1)
    for row in range(len(parents) + 1):
        seen = set(mask[row].nonzero().flatten().tolist())
        assert seen == set(range(prefix)) | {prefix + r for r in ancestors(parents, row - 1)}


@given(parents_lists, st.integers(0, 5), st.integers(1, 4), st.data())
def test_every_stream_row_sees_its_nodes_view_and_lower_streams(parents, prefix, gamma, data) -> None:
    rows = len(parents) + 1
    nodes = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, unique=True))
    plain = masks.tree_mask(tree.attention_rows(parents), prefix)
    mask = masks.with_streams(plain, torch.tensor([nodes]), gamma)[0]
    keys = prefix + rows
    assert torch.equal(mask[:rows, :keys], plain[0])
    assert not mask[:rows, keys:].any()
    for s, node in enumerate(nodes):
        for j in range(gamma):
            row = mask[rows + s * gamma + j]
            assert torch.equal(row[:keys], plain[0, node])
            assert set(row[keys:].nonzero().flatten().tolist()) == {s * gamma + i for i in range(j + 1)}


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12))
def test_window_is_by_position(window: int, queries: int, prefix: int) -> None:
    mask = masks.causal_mask(queries, prefix)
    positions = torch.arange(prefix, prefix + queries)[None]
    near = masks.windowed(mask, positions, torch.arange(prefix + queries)[None], window)[0]
    assert torch.equal(near.sum(-1), (positions[0] + 1).clamp_max(window))


levels_lists = st.lists(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4).map(lambda p: list(enumerate(sorted(p, reverse=True)))),
    min_size=1,
    max_size=4,
)


@given(levels_lists, st.integers(1, 40), st.floats(0, 1))
def test_best_first_leaves_out_what_is_too_unlikely(levels, budget: int, least: float) -> None:
    """What is drafted is the beginning of the whole tree, up to the first node below the limit."""
    whole, some = (tree.best_first(tree.Levels(levels), budget, limit) for limit in (0.0, least))
    joint: list[float] = []
    for parent, prob in zip(whole.parents, whole.probs, strict=True):
        joint.append(prob * (joint[parent] if parent >= 0 else 1.0))
    count = next((i for i, p in enumerate(joint) if p < least), len(joint))
    assert some == Draft(whole.tokens[:count], whole.parents[:count], whole.probs[:count])


@given(levels_lists, st.integers(1, 40))
def test_best_first_takes_the_likeliest_nodes(levels, budget: int) -> None:
    draft = tree.best_first(tree.Levels(levels), budget)
    every = sorted(
        (
            torch.tensor([p for _, p in path], dtype=torch.float64).prod().item()
            for d in range(1, len(levels) + 1)
            for path in itertools.product(*levels[:d])
        ),
        reverse=True,
    )
    assert len(draft) == min(budget, len(every))
    joint: list[float] = []
    for parent, prob in zip(draft.parents, draft.probs, strict=True):
        joint.append(prob * (joint[parent] if parent >= 0 else 1.0))
    assert sorted(joint, reverse=True) == pytest.approx(every[: len(draft)])
    assert all(p < i for i, p in enumerate(draft.parents))
    assert len(set(zip(draft.parents, draft.tokens, strict=True))) == len(draft)


@given(levels_lists)
def test_full_tree_holds_every_combination(levels) -> None:
    draft = tree.full(tree.Levels(levels))
    want = {tuple(t for t, _ in path) for d in range(1, len(levels) + 1) for path in itertools.product(*levels[:d])}
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        paths.append(((*paths[parent],) if parent >= 0 else ()) + (token,))
    assert set(paths) == want and len(paths) == len(want)


def test_full_size_counts_its_nodes() -> None:
    levels = [[(t, 0.3) for t in range(3)]] * 3
    assert tree.full_size(3, 3) == len(tree.full(tree.Levels(levels))) == 39


def test_a_child_before_its_parent_is_refused() -> None:
    with pytest.raises(ValueError, match="before its parent"):
        tree.attention_rows([0])


def test_children_and_depths() -> None:
    draft = Draft((5, 6, 7, 8), (-1, -1, 0, 2), (1.0,) * 4)
    assert tree.children(draft) == [{5: 0, 6: 1}, {7: 2}, {}, {8: 3}, {}]
    assert draft.depths() == (1, 1, 2, 3)


def test_pruned_nodes_take_what_is_below_them_along() -> None:
    parents = (-1, -1, 0, 0, 1, 2)
    assert tree.pruned(parents, [True] * 6) == frozenset()
    assert tree.pruned(parents, [True, True, False, True, True, True]) == {2, 5}
    assert tree.pruned(parents, [False, True, True, True, True, True]) == {0, 2, 3, 5}
    assert tree.pruned(parents, [False] * 6) == set(range(6))
