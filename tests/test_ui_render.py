"""What the page draws, as pure functions: escaping, colours, tree layout, messages. No gradio, no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specstream.events import Agreement, Draft, Fate, Finished, Lane, Origin, Reason, Started, Step, Token, Verdict
from specstream.info import EngineInfo
from specstream.stats import RunStats, counted, summarize
from ui import theme
from ui.charts import benchmarks, runs
from ui.html import headline as lines
from ui.html import render
from ui.state import feed
from ui.state.view import View, replay, root_text

EVIL = '<img src=x onerror="alert(1)">&'


def token(text: str, depth: int = 0) -> Token:
    return Token(1, text, Origin.DRAFT if depth else Origin.TARGET, depth, depth - 1, -0.5)


def step(index: int, *tokens: Token, draft: Draft | None = None) -> Step:
    return Step(index, draft or Draft(), tokens, {"draft": 0.001, "verify": 0.02, "accept": 0.001, "keep": 0.0}, 1, 0)


CHAIN = Draft((5, 6), (-1, 0), (0.9, 0.4), (Fate.ACCEPTED, Fate.REJECTED), (0.8, 0.1), (" a", "<b>"))


@st.composite
def drafts(draw: st.DrawFn, most: int = 64) -> Draft:
    size = draw(st.integers(1, most))
    parents = tuple(draw(st.integers(-1, i - 1)) for i in range(size))
    fates = tuple(draw(st.sampled_from(list(Fate))) for _ in range(size))
    texts = tuple(draw(st.text(max_size=4)) for _ in range(size))
    return Draft(tuple(range(size)), parents, (0.5,) * size, fates, (None,) * size, texts)


@given(drafts())
def test_tree_rows_keep_nodes_apart_and_parents_amid_their_children(draft: Draft) -> None:
    rows, depths = render.tree_rows(draft), draft.depths()
    by_depth: dict[int, list[float]] = {}
    for row, depth in zip(rows, depths, strict=True):
        by_depth.setdefault(depth, []).append(row)
    for level in by_depth.values():
        level.sort()
        assert all(b - a >= 1 for a, b in zip(level, level[1:], strict=False))
    for node in range(len(draft)):
        children = [rows[i] for i, parent in enumerate(draft.parents) if parent == node]
        if children:
            assert min(children) <= rows[node] <= max(children)
    leaves = sorted(row for node, row in enumerate(rows) if node not in draft.parents)
    assert leaves == [float(i) for i in range(len(leaves))]


@given(drafts(most=20))
def test_edges_never_cross(draft: Draft) -> None:
    rows, depths = render.tree_rows(draft), draft.depths()
    edges = [(depths[i], rows[p], rows[i]) for i, p in enumerate(draft.parents) if p >= 0]
    for depth, start, end in edges:
        for other_depth, other_start, other_end in edges:
            if depth == other_depth and start < other_start:
                assert end < other_end


def test_everything_from_outside_is_escaped() -> None:
    info = EngineInfo(EVIL, EVIL, EVIL, "e2e", "shared", EVIL, EVIL, EVIL, EVIL, 1, 1, 2, 10, notes=(EVIL,))
    pieces = [
        render.status(EVIL),
        lines.headline(lines.Headline(EVIL, EVIL, (EVIL,), (EVIL,), EVIL)),
        render.model_card(info),
        render.sentences([EVIL]),
        render.facts([(EVIL, EVIL)]),
    ]
    for piece in pieces:
        assert "<img" not in piece
        assert "&lt;img" in piece


def test_legend_has_a_colour_and_words_for_every_depth() -> None:
    html = render.legend(3)
    assert [f"d{d}" in html for d in range(5)] == [True, True, True, True, False]
    assert "chosen by the model" in html and "drafted 3 tokens ahead" in html
    assert "5+ tokens ahead" in render.legend(9) and "5+ tokens ahead" not in render.legend(5)


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK])
def test_contrast(palette: dict[str, str]) -> None:
    words = ("text", "muted", "good", "warn", "bad", "accent", "rejected", "unreached")
    for name in words:
        for ground in ("page", "panel"):
            assert theme.contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
    for depth in range(1, theme.DEEPEST + 1):
        assert theme.contrast(palette["text"], palette[f"tint-{depth}"]) >= 4.5
        assert theme.contrast(theme.STRONG[depth], palette[f"tint-{depth}"]) >= 3
    for colour in theme.STRONG.values():
        assert theme.contrast(colour, palette["page"]) >= 3


def test_contrast_ratio_of_known_pairs() -> None:
    assert theme.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert theme.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_speedup_is_a_dash_until_it_is_measured() -> None:
    stats = summarize([step(0, token("a")), step(1, token("b", 1), token("c"), draft=CHAIN)])
    before, after = render.counters(stats, None, None), render.counters(stats, stats, 1.5)
    assert "×" not in before and "measured once standard decoding has run" in before
    assert "1.5×" in after


def test_counters_count_passes_against_one_for_each_token() -> None:
    stats = summarize([step(0, token("a")), step(1, token("b", 1), token("c", 2), token("d")), step(2, token("e"))])
    assert stats.calls_saved == 2
    html = render.counters(stats, None, None)
    assert ">3<" in html and "instead of 5" in html and ">2.0<" in html


def test_acceptance_bars_show_rates_and_dashes() -> None:
    html = render.acceptance(summarize([step(1, token("b", 1), token("c"), draft=CHAIN)]), levels=3)
    assert "width:100%" in html and "0 %" in html and render.NOTHING in html


def test_messages_carry_only_what_is_new_and_the_last_one_everything() -> None:
    live = feed.Feed("run")
    live.add(Lane.METHOD, step(0, token("a")))
    first = live.new()
    live.add(Lane.METHOD, step(1, token("b", 1), token("c"), draft=CHAIN))
    live.add(Lane.BASELINE, step(0, token("a")))
    second, last = live.new(), live.whole()
    assert first["at"] == {"method": 0, "baseline": 0} and len(first["method"]) == 1
    assert second["at"] == {"method": 1, "baseline": 0}
    assert [t[0] for t in second["method"][0]["t"]] == ["b", "c"]
    assert last["method"] == first["method"] + second["method"] and last["at"]["method"] == 0
    assert [first["done"], second["done"], last["done"]] == [False, False, True]
    assert [first["seq"], second["seq"], last["seq"]] == [1, 2, 3]


@given(st.lists(st.text(max_size=6), max_size=8))
def test_messages_keep_every_character_of_the_text(texts: list[str]) -> None:
    live = feed.Feed("run")
    for index, text in enumerate(texts):
        live.add(Lane.METHOD, step(index, token(text)))
    encoded = feed.encode(live.whole())
    assert "<" not in encoded
    assert "".join(t[0] for s in json.loads(encoded)["method"] for t in s["t"]) == "".join(texts)


def test_nodes_say_fate_and_probabilities() -> None:
    assert feed.nodes(CHAIN) == [[" a", -1, 0.9, "a", 0.8, 0.0], ["<b>", 0, 0.4, "r", 0.1, 0.0]]


@given(drafts())
@settings(max_examples=25, deadline=None)
def test_the_plotly_tree_has_a_point_for_every_node(draft: Draft) -> None:
    figure = runs.tree(draft, "<root>")
    points = [trace for trace in figure.data if trace.mode == "markers+text"]
    assert sum(len(trace.x) for trace in points) == len(draft) + 1
    assert not any("<" in label for trace in points for label in trace.text)


def test_charts_of_a_run_without_drafts_say_so() -> None:
    figure = runs.acceptance(summarize([step(0, token("a")), step(1, token("b"))]))
    assert "drafts nothing" in figure.layout.annotations[0].text
    assert runs.tree(Draft(), "a").layout.annotations[0].text == "This step drafted nothing."


def test_time_per_token_is_measured_time_over_tokens() -> None:
    stats = summarize([step(0, token("a")), step(1, token("b"), token("c"))])
    bars = {bar.name: bar.x[0] for bar in runs.phases({Lane.METHOD: stats, Lane.BASELINE: RunStats()}).data}
    assert bars["verify"] == pytest.approx(10.0) and bars["draft"] == pytest.approx(0.5)


def test_per_step_bars_split_accepted_and_own_tokens() -> None:
    steps = [step(0, token("a")), step(1, token("b", 1), token("c")), step(2, token("d"))]
    own, accepted = runs.per_step(steps).data
    assert list(own.x) == [1, 2] and list(own.y) == [1, 1] and list(accepted.y) == [1, 0]


def test_view_words_follow_the_run() -> None:
    view = View(feed.Feed("run"))
    view.add((Lane.METHOD, step(0, token("a"))))
    assert view.words == "Writing" and view.baseline is None
    view.add((Lane.METHOD, Finished(Reason.EOS)))
    view.add((Lane.BASELINE, step(0, token("a"))))
    assert "standard decoding" in view.words and view.baseline is not None and view.speedup is None
    view.add(Verdict(Agreement.IDENTICAL, 1, "Same.", speedup=1.25))
    view.close()
    assert view.speedup == 1.25 and view.words.startswith("Done: the model ended the text, 1 token")


def test_replay_is_the_live_view_again() -> None:
    events = [step(0, token("a")), step(1, token("b", 1), token("c"), draft=CHAIN), Finished(Reason.STOPPED)]
    view = replay("r1", "Streaming", {Lane.METHOD: events}, None)
    assert view.steps == events[:2] and view.stats[Lane.METHOD].tokens == 3
    assert "stopped" in view.words
    assert root_text(view.steps, 1) == "a" and root_text(view.steps, 0) == ""


def test_pure_modules_need_neither_gradio_nor_torch() -> None:
    code = (
        "import sys, ui.html.render, ui.state.feed, ui.theme, ui.state.view\n"
        "assert not {'gradio', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, ui.charts.runs; assert not {'gradio', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_chart_draws_where_plotly_puts_its_buttons() -> None:
    steps = [step(0, token("a")), step(1, token("b", 1), draft=CHAIN)]
    made = (runs.per_step(steps), runs.tree(CHAIN, "a"), runs.race({"one": [(0.1, 1)]}))
    for figure in (*made, benchmarks.on_page(runs.per_step(steps))):
        assert figure.layout.modebar.orientation == "v" and figure.layout.margin.r >= runs.BAR_ROOM
        assert theme.contrast(figure.layout.modebar.color, theme.LIGHT["page"]) > 3


@pytest.mark.parametrize(
    "model, name",
    [
        ("smollm2-135m", "smollm2-135m"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/home/someone/a/very/long/path/to/models/my-model/", "my-model"),
        ("~/models/mine", "mine"),
        ("./mine", "mine"),
        ("C:\\models\\mine", "mine"),
    ],
)
def test_a_folder_is_named_by_its_last_part(model: str, name: str) -> None:
    assert render.model_name(model) == name


def test_numbers_and_nouns_agree() -> None:
    assert [counted(n, "token") for n in (0, 1, 2, 1200)] == ["0 tokens", "1 token", "2 tokens", "1,200 tokens"]
    one = View(feed.Feed("live"))
    one.add((Lane.METHOD, Step(0, Draft(), (Token(1, "a", Origin.TARGET),), {"verify": 0.1}, 1)))
    one.add((Lane.METHOD, Finished(Reason.LENGTH)))
    one.close()
    assert one.words.endswith(", 1 token")


def test_standard_decoding_is_not_said_to_be_missing() -> None:
    stats = summarize([Started("standard", 3)])
    assert "this is standard decoding" in render.counters(stats, None, None)


def test_a_time_is_the_visitors_or_says_that_it_is_utc() -> None:
    utc = "2026-12-01T16:04:09.123+00:00"
    assert render.minute(utc, "Asia/Tokyo") == "2026-12-02 01:04"
    for unknown in ("", "Nowhere/At all", "../etc/passwd", "/etc/localtime"):
        assert render.minute(utc, unknown) == "2026-12-01 16:04 UTC"
    assert render.when(utc) == '<time datetime="2026-12-01T16:04:09Z">2026-12-01 16:04 UTC</time>'
    assert render.when("2026-12-01") == "2026-12-01" and render.when("<b>T") != "<b>T"
