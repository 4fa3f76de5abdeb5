"""What the page computes from logged steps, against plain counting; the recorded run; the race and its file."""

from __future__ import annotations

import json

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specstream.events import Agreement, Draft, Fate, Finished, Lane, Origin, Reason, Step, Token, Verdict
from specstream.stats import step_cost, summarize
from ui.charts import runs
from ui.components import race
from ui.html import insights
from ui.jobs.comparisons import Entry
from ui.jobs.engine_host import Engines
from ui.state import recording
from ui.tabs import compare, playground

EVIL = "</script><img src=x onerror=alert(1)>"


@st.composite
def judged_steps(draw: st.DrawFn) -> Step:
    """A random tree, a random accepted path through it, and the tokens that follow."""
    size = draw(st.integers(0, 14))
    parents = tuple(draw(st.integers(-1, i - 1)) for i in range(size))
    probs = tuple(draw(st.permutations([(i + 1) / 20 for i in range(size)])))
    path: list[int] = []
    while below := [n for n, parent in enumerate(parents) if parent == (path[-1] if path else -1)]:
        if draw(st.booleans()):
            break
        path.append(draw(st.sampled_from(below)))
    places = {-1, *path}
    fates = tuple(
        Fate.ACCEPTED if n in path else Fate.REJECTED if parents[n] in places else Fate.UNREACHED for n in range(size)
    )
    tokens = tuple(Token(1, "a", Origin.DRAFT, d, n) for d, n in enumerate(path, 1)) + (Token(2, "b", Origin.TARGET),)
    draft = Draft(tuple(range(size)), parents, probs, fates, (None,) * size, ("x",) * size)
    return Step(1, draft, tokens, {"verify": 0.1}, 1 + size)


def path_to(draft: Draft, node: int) -> list[int]:
    out = []
    while node >= 0:
        out.append(node)
        node = draft.parents[node]
    return out[::-1]


def rank(draft: Draft, node: int) -> int:
    same = [n for n, parent in enumerate(draft.parents) if parent == draft.parents[node]]
    return 1 + sum(draft.probs[other] > draft.probs[node] for other in same)


@given(st.lists(judged_steps(), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 14))
def test_a_smaller_tree_is_counted_node_by_node(steps: list[Step], depth: int, width: int, budget: int) -> None:
    tokens = rows = 0
    for step in steps:
        draft, accepted, held = step.draft, 0, 0
        for node in range(len(draft)):
            path = path_to(draft, node)
            if len(path) <= depth and all(rank(draft, n) <= width for n in path) and held < budget:
                held += 1
                accepted += draft.fate[node] is Fate.ACCEPTED
        rows += held
        tokens += accepted + 1
    found = insights.smaller(steps, depth, width, budget)
    assert found.tokens_per_step == pytest.approx(tokens / len(steps))
    assert found.rows_per_step == pytest.approx(rows / len(steps) + 1)


@given(st.lists(judged_steps(), min_size=1, max_size=5))
def test_the_whole_tree_is_what_was_measured(steps: list[Step]) -> None:
    found = insights.smaller(steps, 99, 99)
    assert found.tokens_per_step == pytest.approx(sum(len(s.tokens) for s in steps) / len(steps))
    assert found.rows_per_step == pytest.approx(sum(s.rows for s in steps) / len(steps))


@given(st.lists(judged_steps(), min_size=1, max_size=5))
def test_the_ranks_of_a_depth_add_up_to_its_acceptance(steps: list[Step]) -> None:
    stats, found = summarize(steps), insights.acceptance_map(steps)
    for depth, rate in zip(sorted(stats.reached_depth), stats.acceptance_by_depth, strict=True):
        ranks = {r for d, r in found.hits if d == depth}
        assert sum(found.rate(depth, r) for r in ranks) == pytest.approx(rate)


def lane(*seconds: float, tokens: int = 1) -> list[Step]:
    """A prompt pass and steps of these times."""
    token, draft = Token(1, "a", Origin.TARGET), Draft((1,), (-1,), (0.5,), (Fate.REJECTED,), (0.1,), ("x",))
    return [
        Step(i, draft if i else Draft(), (token,) * (tokens if i else 1), {"verify": s}, 1)
        for i, s in enumerate(seconds)
    ]


def ideal(method: list[Step], standard: list[Step]) -> str:
    return insights.panel(method, {Lane.METHOD: summarize(method), Lane.BASELINE: summarize(standard)}, 1.9)


def test_step_cost_is_a_ratio_of_means_without_the_prompt_pass() -> None:
    assert step_cost([summarize(lane(5, 1, 2, 3))], [summarize(lane(9, 2, 6))]) == pytest.approx(2)
    assert step_cost([summarize(lane(5))], [summarize(lane(9, 2))]) is None


def test_the_ideal_of_a_run_is_never_below_what_its_steps_brought() -> None:
    """One slow step of standard decoding counts in the ideal as it counts in what is measured."""
    html = ideal(lane(1, 3, 3, tokens=2), lane(1, 1, 1, 1, 5))
    assert "1.3×" in html and "must yield 1.50 tokens" in html  # (8 s / 4 tokens) / (6 s / 4 tokens)


def test_a_step_cheaper_than_a_standard_one_is_noise() -> None:
    html = ideal(lane(1, 0.5, 0.5, tokens=2), lane(1, 1, 1, 1, 1))
    assert "too much to tell" in html and "break even" not in html and "at the measured cost" not in html


def test_a_run_without_drafts_has_no_insights() -> None:
    step = Step(1, Draft(), (Token(1, "a", Origin.TARGET),), {"verify": 0.1}, 1)
    assert insights.panel([step], {lane: summarize([step]) for lane in Lane}, None) == ""


def test_what_plays_on_arrival_is_in_the_box_and_the_first_example() -> None:
    recorded, first = recording.load().values, playground.shown_examples()[0]
    assert [recorded[name] for name in ("prompt", "task", "label")] == [first["prompt"], first["task"], first["label"]]
    with gr.Blocks():
        tab = playground.layout(Engines({"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}))
        assert tab.prompt.value == compare.layout().prompt.value == first["prompt"]
        assert tab.task.value == first["task"] and tab.examples[0].value == first["shows"]
    assert not set("[]{}") & set(first["prompt"])  # plain words: a stranger takes anything else for code


def test_the_recorded_run_is_whole() -> None:
    recorded = recording.load()
    view = recorded.view()
    assert view.feed.note.startswith("Recording: ") and "Nothing is computed now" in view.feed.note
    assert view.verdict and view.verdict.agreement is Agreement.IDENTICAL and view.speedup
    assert [t.id for s in view.steps for t in s.tokens] == [t.id for s in view.plain for t in s.tokens]
    assert sum(fate is Fate.ACCEPTED for step in view.steps for fate in step.draft.fate) > 5
    assert view.stats[Lane.METHOD].reason is Reason.EOS
    assert recording.FILE.stat().st_size < 100_000


def entry(method: str, seconds: list[float], texts: list[str], verdict: Verdict | None = None, tail: str = "") -> Entry:
    steps = [
        Step(i, Draft(), (Token(i, text, Origin.TARGET),), {"verify": s}, 1)
        for i, (s, text) in enumerate(zip(seconds, texts, strict=True))
    ]
    return Entry(method, (*steps, Finished(Reason.LENGTH, tail=tail)), verdict, "01RUN" + method.upper())


SLOW = entry("standard", [0.1, 0.2, 0.3], ["a", "b", "c"], tail="!")
FAST = entry("streaming", [0.1, 0.05, 0.05], ["a", "x", EVIL], Verdict(Agreement.TIE, 1, "A tie.", 1, 0.0, 3.0))


def test_the_race_runs_on_measured_times_and_marks_the_first_difference() -> None:
    lanes = json.loads(race.message([SLOW, FAST]))["lanes"]
    assert [[end for end, _ in lane["steps"]] for lane in lanes] == [[100, 300, 600], [100, 150, 200]]
    assert [lane["place"] for lane in lanes] == ["second", "first"] and [lane["total"] for lane in lanes] == [600, 200]
    assert lanes[0]["steps"][-1][1] == [["c!", 0]] and lanes[1]["steps"][-1][1] == [[EVIL, 0]]
    assert [lane["differs"] for lane in lanes] == [None, 1] and "equally likely" in lanes[1]["words"]
    said = race.headline([SLOW, FAST])
    assert (said.tone, said.main) == ("bad", "Fastest: Speculative Streaming, 3.0× faster")
    assert said.parts == ("0 of 1 wrote the same text", "3 passes instead of 3")


def test_the_table_has_measured_numbers_and_links_to_the_log() -> None:
    html = race.table([SLOW, FAST], "http://host/")
    assert "3.0×" in html and "Nearly the same text at token 2" in html and "http://host/?run=01RUNSTREAMING" in html
    assert race.curve(SLOW) == [
        (0.0, 0), (0.1, 0), (0.1, 1), (pytest.approx(0.3), 1), (pytest.approx(0.3), 2), (pytest.approx(0.6), 2),
        (pytest.approx(0.6), 3),
    ]  # fmt: skip
    assert [list(line.y)[-1] for line in runs.race({e.label: race.curve(e) for e in (SLOW, FAST)}).data] == [3, 3]
