"""The pair map: its candidates against a slow reference, trees of them, and an unchanged output."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specstream import native, tree
from specstream.adapters import weights
from specstream.adapters.card import AdapterError
from specstream.params import Sampling, Streaming
from specstream.streams.pair_map import Pairs
from tests import tiny
from tests.test_golden import PROMPT

WIDTH = 3


def some_pairs(pool: int, ids: bool) -> tuple[Pairs, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """A random map that weighs ``pool`` times WIDTH tokens, logits of four depths, their tokens and embeddings."""
    torch.manual_seed(pool)
    pairs = Pairs(6, 5, 4)
    pairs.POOL = pool
    for weight in pairs.parameters():
        torch.nn.init.normal_(weight)
    chosen = torch.tensor([3, 5, 7, 11, 13, 17, 19]) if ids else None
    return pairs, torch.randn(4, 7 if ids else 20), chosen, torch.randn(20, 6)


def slowly(pairs, logits, ids, root: int, table, pool: int) -> list[dict[int, dict[int, float]]]:
    """For every depth and token above: the probability of each candidate, by the definition."""
    out, above = [], [root]
    for depth, row in enumerate(logits):
        probs = row.softmax(-1)
        places = probs.argsort(descending=True)[:pool]
        names = places.tolist() if ids is None else ids[places].tolist()
        found = {}
        for x in above:
            a = table[x] / table[x].norm() @ pairs.before
            weights = []
            for y, place in zip(names, places, strict=True):
                b = table[y] / table[y].norm() @ pairs.after
                weights.append(float(probs[place]) * math.exp(float(pairs.weight[depth] * a @ b)))
            mass = float(probs[places].sum())
            found[x] = {y: mass * w / sum(weights) for y, w in zip(names, weights, strict=True)}
        out.append(found)
        above = names
    return out


def path_to(depth: int, above: int | None) -> tuple[int, ...]:
    """A path of so many tokens, the last of which is ``above``."""
    return (0,) * (depth - 1) + (above,) if above is not None and depth else ()


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("pool", [2, 20])
@pytest.mark.parametrize("fixed", ["", "numpy", "native"])
@torch.no_grad()
def test_candidates_are_weighed_by_the_token_above(
    pool: int, ids: bool, fixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, logits, chosen, table = some_pairs(pool, ids)
    if fixed:
        pairs.fix(table, chosen)
    built = native.library() if fixed == "native" else None
    if fixed == "native" and built is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(native, "loaded", lambda: built)
    for depths in (1, 4):
        want = slowly(pairs, logits[:depths], chosen, 9, table, pool * WIDTH)
        found = pairs.weighed(logits[:depths], chosen, 9, table, WIDTH)
        assert len(found) == depths
        for depth, level in enumerate(want):
            for above, probs in level.items():
                best = sorted(probs.items(), key=lambda item: -item[1])[:WIDTH]
                got = found.after(path_to(depth, above))
                assert [t for t, _ in got] == [t for t, _ in best]
                assert [p for _, p in got] == pytest.approx([p for _, p in best], rel=1e-4)


@torch.no_grad()
def test_a_new_map_changes_no_draft() -> None:
    pairs, logits, chosen, table = some_pairs(7, True)
    torch.nn.init.zeros_(pairs.after)
    plain = logits.softmax(-1).topk(WIDTH)
    found = pairs.weighed(logits, chosen, 0, table, WIDTH)
    for depth, above in ((0, None), (1, chosen[2].item()), (3, chosen[6].item())):
        tokens, probs = zip(*found.after(path_to(depth, above)), strict=True)
        assert list(tokens) == chosen[plain.indices[depth]].tolist()
        assert probs == pytest.approx(plain.values[depth].tolist(), rel=1e-5)


@torch.no_grad()
def test_after_a_token_that_no_stream_thought_of_the_streams_own_probabilities_hold() -> None:
    pairs, logits, chosen, table = some_pairs(7, True)
    plain = logits.softmax(-1).topk(WIDTH)
    unknown = next(token for token in range(len(table)) if token not in chosen.tolist())
    tokens, probs = zip(*pairs.weighed(logits, chosen, 0, table, WIDTH).after((unknown,)), strict=True)
    assert list(tokens) == chosen[plain.indices[1]].tolist()
    assert probs == pytest.approx(plain.values[1].tolist(), rel=1e-5)


@torch.no_grad()
def test_best_first_takes_the_likeliest_paths_and_a_smaller_tree_is_its_beginning() -> None:
    pairs, logits, _, table = some_pairs(6, False)
    found = pairs.weighed(logits, None, 2, table, WIDTH)
    every: list[tuple[float, tuple[int, ...]]] = []

    def walk(path: tuple[int, ...], joint: float) -> None:
        if len(path) < len(found):
            for token, prob in found.after(path):
                every.append((joint * prob, (*path, token)))
                walk((*path, token), joint * prob)

    walk((), 1.0)
    every.sort(reverse=True)
    whole = tree.full(found)
    assert len(whole) == len(every) == tree.full_size(WIDTH, 4)
    for budget in (1, 7, 30):
        draft = tree.best_first(found, budget)
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        assert paths == [path for _, path in every[:budget]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_weighed_drafts_leave_the_text_alone(family: str, temperature: float) -> None:
    anatomy, adapter = tiny.model_with_adapter(family, mode="lossless", pair_rank=8)
    torch.nn.init.normal_(adapter.pairs.after)
    sampling = Sampling(max_new_tokens=24, temperature=temperature, seed=5)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    drafts = {}
    for streams in ("in-pass", "deferred"):
        for pairs in ("on", "off"):
            params = Streaming(streams=streams, pairs=pairs, budget=12, copies="on" if streams == "deferred" else "off")
            steps = tiny.finish(tiny.streaming_run(anatomy, adapter, PROMPT, sampling, params))
            assert tiny.ids_of(steps) == want
            drafts[streams, pairs] = [step.draft.tokens for step in steps]
    assert drafts["in-pass", "on"] != drafts["in-pass", "off"]


def test_a_drafted_token_follows_the_one_above() -> None:
    """A map that knows one pair for certain: wherever x is drafted and y can follow, y is its first child."""
    anatomy, adapter = tiny.model_with_adapter("llama", mode="lossless", pair_rank=tiny.VOCAB)
    table = torch.nn.functional.normalize(anatomy.model.get_input_embeddings().weight.detach())
    pairs, inverse = adapter.pairs, torch.linalg.pinv(table)
    after = torch.randperm(tiny.VOCAB, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # x's row times its successor's column is the largest there is
        pairs.before.copy_(inverse)
        pairs.after.copy_(50 * inverse[:, after])
        pairs.weight.fill_(1)
        pairs.POOL = tiny.VOCAB
    params = Streaming(budget=12, width=2, streams="in-pass", copies="off")
    first, *steps = tiny.finish(tiny.streaming_run(anatomy, adapter, PROMPT, Sampling(max_new_tokens=20), params))
    right = drafted = 0
    newest = first.tokens[-1].id
    for step in steps:
        draft = step.draft
        seen: set[int] = set()
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            above = draft.tokens[parent] if parent >= 0 else newest
            if parent not in seen:
                drafted, right = drafted + 1, right + int(token == after[above])
            seen.add(parent)
        newest = step.tokens[-1].id
    assert drafted > 20 and right > 0.5 * drafted  # 64 dimensions can't tell 120 tokens apart for certain


def test_an_adapter_with_a_pair_map_is_saved_and_loaded(tmp_path: Path) -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", mode="lossless", pair_rank=5)
    weights.save(adapter, tmp_path, adapter.card)
    again = weights.load(tmp_path, anatomy)
    assert again.card == adapter.card and again.card.pair_rank == 5
    torch.testing.assert_close(again.pairs.before, adapter.pairs.before, atol=1e-3, rtol=1e-3)
    without = weights.Adapter(anatomy, replace(adapter.card, pair_rank=0))
    assert again.drafting_count() == without.drafting_count() + 2 * 64 * 5 + adapter.card.gamma
    with pytest.raises(AdapterError, match="pair_rank"):
        replace(adapter.card, pair_rank=-1)
