"""The prediction's arithmetic on numbers worked out by hand, and the measured curve on the toy."""

from __future__ import annotations

import random

import pytest

from specstream import tree
from specstream.bench import step_cost, tables
from specstream.bench.prediction import (
    Curve,
    Shape,
    Trace,
    break_even,
    chain_tokens,
    cut,
    merit,
    predict,
    shapes,
    trace,
)
from specstream.events import Draft, Fate, Origin, Step, Token
from specstream.params import MOST_NODES, PromptLookup, Sampling, Standard, Streaming
from specstream.testing import toy

LINE = Curve(((1, 1.0), (3, 1.2), (8, 2.2)))
# Two children of the root, one below the first of them, accepted: root's first child, then its child.
TREE = Draft((5, 6, 7), (-1, -1, 0), (0.5, 0.3, 0.4), (Fate.ACCEPTED, Fate.REJECTED, Fate.ACCEPTED))


def step(draft: Draft, tokens: int) -> Step:
    return Step(1, draft, tuple(Token(i, "", Origin.TARGET) for i in range(tokens)), {"verify": 1.0}, 1 + len(draft))


def test_curve_between_and_beyond_its_points() -> None:
    assert [LINE.seconds(n) for n in (1, 2, 3, 5.5, 8, 10, 0)] == pytest.approx([1, 1.1, 1.2, 1.7, 2.2, 2.6, 0.9])
    assert Curve(((4, 2.0),)).seconds(9) == 2


def test_a_trace_knows_depths_ranks_and_the_accepted_path() -> None:
    assert trace(step(TREE, 3)) == Trace(((1, 0), (1, 1), (2, 0)), (0, 2), 3, (0.5, 0.3, 0.2))
    deep = Draft((1, 2, 3, 4), (-1, -1, 1, 1), (0.1,) * 4, (Fate.REJECTED,) * 4)
    assert [rank for _, rank in trace(step(deep, 1)).nodes] == [0, 1, 1, 1]  # below a second child all is of rank 1


@pytest.mark.parametrize(
    ("shape", "nodes", "tokens"),
    [
        (Shape(3), 3, 3),
        (Shape(9), 3, 3),
        (Shape(2), 2, 2),
        (Shape(1), 1, 2),
        (Shape(3, depth=1), 2, 2),
        (Shape(2, width=1), 2, 3),
        (Shape(1, width=1), 1, 2),
        (Shape(9, least=0.3), 2, 2),
    ],
)
def test_smaller_trees_emit_what_is_left_of_the_path(shape: Shape, nodes: int, tokens: int) -> None:
    assert cut(trace(step(TREE, 3)), shape) == (nodes, tokens)


def test_a_step_that_the_end_cut_emits_no_extra_token() -> None:
    ended = trace(step(TREE, 2))  # the second drafted token ended the text
    assert cut(ended, Shape(3)) == (3, 2) and cut(ended, Shape(1)) == (1, 2)


def test_cutting_a_best_first_tree_is_growing_a_smaller_one() -> None:
    rng = random.Random(1)
    for _ in range(20):
        levels = [sorted(((t, rng.random()) for t in range(6)), key=lambda x: -x[1]) for _ in range(4)]
        large = tree.best_first(tree.Levels(levels), 2000)  # all of it
        watched = trace(step(large, 1))
        budget, width, depth = rng.randint(1, 30), rng.randint(1, 6), rng.randint(1, 4)
        small = tree.best_first(tree.Levels([level[:width] for level in levels[:depth]]), budget)
        kept = [
            (large.tokens[i], watched.nodes[i][0])
            for i in range(len(large))
            if watched.nodes[i][0] <= depth and watched.nodes[i][1] < width
        ][:budget]
        assert kept == list(zip(small.tokens, small.depths(), strict=True))


def test_a_budget_left_open_is_predicted_by_its_own_rule() -> None:
    traces = [trace(step(TREE, 3)), trace(step(TREE, 2))]
    open_, fixed = Streaming(), Streaming(budget=5, width=2, depth=3)
    assert step_cost.shape_of(open_, traces) == Shape(MOST_NODES, open_.width, 0, open_.least(2.5))
    assert open_.least(2.5) > 0 and step_cost.shape_of(fixed, traces) == Shape(5, 2, 3)
    assert step_cost.shape_of(PromptLookup(), traces) == Shape(PromptLookup().nodes, 0, PromptLookup().depth)


def test_prediction_is_tokens_over_cost() -> None:
    steps = [trace(step(TREE, 3)), trace(step(Draft((5,), (-1,), (1.0,), (Fate.REJECTED,)), 1))]
    found = predict(LINE, 0.5, steps, Shape(3))
    assert found.tokens_per_step == 2 and found.nodes == 2
    assert found.step_cost == pytest.approx((1.2 + 1.0) / 2 / 0.5)
    assert found.speedup == pytest.approx(2 / 2.2)
    options = [predict(LINE, 0.5, steps, s) for s in shapes((1, 2, 3), (1, 2), (1, 2))]
    assert max(options, key=merit).shape == Shape(2, 1, 2)  # two nodes hold the whole accepted path
    assert len(options) == 12


def test_textbook_forms() -> None:
    assert chain_tokens([0.8] * 4) == pytest.approx((1 - 0.8**5) / 0.2)
    assert chain_tokens([]) == 1 and chain_tokens([0.5, 0.0]) == 1.5
    needed = break_even(4, 2.0)
    assert chain_tokens([needed] * 4) == pytest.approx(2.0)
    assert break_even(4, 5.5) is None and break_even(3, 1.0) == pytest.approx(0, abs=1e-9)


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_the_toys_cost_is_its_pace() -> None:
    engine = toy.load_toy(pace=0.01)  # a pass takes 10 ms, and a hundredth of that more for each row
    cost = step_cost.measure(engine, ["Text: The"], seconds=0, sizes=(0, 4, 40))
    assert [n for n, _ in cost.of(Standard()).points] == [0, 4, 40]
    assert cost.plain_seconds > 0.01
    assert cost.of(PromptLookup()).seconds(40) > cost.of(PromptLookup()).seconds(4)
    assert set(cost.streaming) == set(step_cost.VARIANTS)
    assert all(s.traces and all(len(t.nodes) == 40 for t in s.traces) for s in cost.streaming.values())
    out = step_cost.report(engine, cost)
    assert out["plain"][0]["nodes"] == 0 and out["bytes_per_second"] > 1e8
    lines = list(tables.cost_table(out))
    assert len(lines) == 3 + len(out["plain"])
    assert lines[2].count("|") == 8 and lines[2].startswith("| 0 |") and lines[2].endswith("| - | - | - | - |")


@pytest.mark.parametrize("method", [Streaming(), PromptLookup(shortest=1)])
def test_predicted_tokens_per_step_are_those_of_a_run(method) -> None:
    """Acceptance recorded with a large tree predicts the tokens per step of a small one on the same prompts."""
    engine = toy.load_toy(pace=0)
    prompts = ["Text:", "Text: The Copper Kettle", "Text: Near", "Text: In the city"]
    sampling = Sampling(max_new_tokens=200)
    traces = step_cost.watched(engine, prompts, method, sampling)
    cost = step_cost.measure(engine, prompts, seconds=0, sizes=(0, 2, 8, 32))
    tuned = step_cost.tune(cost, traces, method)
    assert tuned.prediction.speedup >= tuned.given.speedup
    for chosen, predicted in ((tuned.method, tuned.prediction), (method, tuned.given)):
        plain = step_cost.steady(chosen)  # what a prediction is of
        events = [e for p in prompts for e in engine.generate(p, plain, sampling)]
        steps = [e for e in events if isinstance(e, Step) and e.index]
        real = sum(len(s.tokens) for s in steps) / len(steps)
        assert predicted.tokens_per_step == pytest.approx(real, rel=0.1)
        assert predicted.nodes == pytest.approx(sum(len(s.draft) for s in steps) / len(steps), rel=0.1)


def test_the_cheaper_variant_of_streaming_is_chosen() -> None:
    def samples(*seconds: float) -> step_cost.Samples:
        out = step_cost.Samples()
        for nodes, value in enumerate(seconds):
            out.steps[nodes], out.passes[nodes] = [value], [value]
        return out

    def chosen(in_pass: float, deferred: float) -> str:
        streaming = {"in-pass": samples(1, in_pass, in_pass), "deferred": samples(1, deferred, deferred)}
        return step_cost.tune(step_cost.Cost(samples(1), streaming), [trace(step(TREE, 3))], Streaming()).method.streams

    assert chosen(1.5, 1.2) == "deferred" and chosen(1.2, 1.5) == "in-pass" and chosen(1.2, 1.2) == "in-pass"


def test_a_measurement_ends_when_it_is_asked_to() -> None:
    engine, ticks = toy.load_toy(pace=0), []
    asked = (engine, ["Text: The"], 60.0, (0, 2), None, lambda: ticks.append(1))
    with pytest.raises(step_cost.Cancelled):
        step_cost.measure(*asked, stop=lambda: len(ticks) > 3)
    assert len(ticks) == 4
    with pytest.raises(step_cost.Cancelled):
        step_cost.watched(engine, ["Text: The"], Streaming(), Sampling(), lambda: True)


def test_what_can_not_be_tuned() -> None:
    engine = toy.load_toy(pace=0)
    with pytest.raises(ValueError, match="can.t be tuned"):
        step_cost.largest(Standard())
    cost = step_cost.measure(engine, ["Text: The"], seconds=0, sizes=(0, 2))
    with pytest.raises(ValueError, match="Nothing was drafted"):
        step_cost.tune(cost, [Trace((), (), 1, ())], PromptLookup())


def test_prediction_is_of_steps_that_all_draft_by_streams() -> None:
    given = Streaming(pause=2, prune=0.1, budget=7, tree="full", depth=2)
    assert step_cost.steady(given) == Streaming(pause=0, copies="off", prune=0.1, budget=7, tree="full", depth=2)
    assert step_cost.largest(given) == Streaming(
        pause=0, copies="off", budget=max(step_cost.BUDGETS), width=max(step_cost.WIDTHS)
    )
    assert step_cost.steady(PromptLookup(depth=7)) == PromptLookup(depth=7)
