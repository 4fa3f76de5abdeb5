"""How it works: pictures drawn only from the recorded run, their captions, the glossary."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browsing import MARKS, serious, served, visit  # sets the environment of gradio

# isort: split
from playwright.sync_api import Browser, expect

from specstream.events import Draft, Fate, Lane
from specstream.info import top_layers
from specstream.tree import attention_rows
from ui.components import walkthrough
from ui.html import howto_pictures
from ui.html.terms import explained
from ui.state import recording
from ui.state.feed import Feed
from ui.state.recording import Recording
from ui.state.view import View
from ui.tabs import howto
from ui.tabs.howto import Story

EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture
def values() -> dict[str, Any]:
    return copy.deepcopy(recording.load().values)


def tale(values: dict[str, Any]) -> Story:
    return howto.story(Recording(values))


def shown(values: dict[str, Any]) -> str:
    return howto.html(tale(values))


def test_there_are_five_pictures_each_with_words_for_those_who_do_not_see_them(values: dict[str, Any]) -> None:
    five = howto.lessons(tale(values))
    assert len(five) == 5 and all(lesson.title and 2 <= len(lesson.words) <= 3 for lesson in five)
    labels = re.findall(r'<svg [^>]*role="img" aria-label="([^"]{40,})"', howto.html(tale(values)))
    assert len(labels) == howto.html(tale(values)).count("<svg") == 5


def test_the_recording_knows_its_layers(values: dict[str, Any]) -> None:
    info = tale(values).info
    assert info.layers > info.stream_layers > 0 and info.gamma > 0
    assert f"{top_layers(info.stream_layers)} of {info.layers}" in shown(values)


def test_every_number_of_the_last_lesson_is_computed_from_the_run(values: dict[str, Any]) -> None:
    before = tale(values)
    ours = before.stats[Lane.METHOD]
    words = " ".join([*howto.lessons(before)[4].words, *howto.limits(before)])
    assert f"{ours.tokens} tokens took {ours.steps + 1} passes" in words
    assert f"{ours.tokens_per_step:.2f} tokens per step" in words and before.where in words
    for event in values["lanes"]["method"]:
        if event["kind"] == "step":
            event["seconds"] = {"draft": 1.0, "verify": 2.0, "accept": 0.5, "keep": 0.5}
    for event in values["lanes"]["baseline"]:
        if event["kind"] == "step":
            event["seconds"] = {"verify": 0.5}
    values["verdict"]["speedup"] = 7.77
    after = " ".join([*howto.lessons(tale(values))[4].words, *howto.limits(tale(values))])
    assert "a step cost 8.00 standard steps" in after and "7.8 times the speed" in after and "took 50 %" in after
    assert "pass 1: 500 ms" in shown(values)


def test_tokens_and_probabilities_are_those_of_the_steps(values: dict[str, Any]) -> None:
    story = tale(values)
    draft = story.steps[story.telling].draft
    html = shown(values)
    for text, prob in zip(draft.texts, draft.probs, strict=True):
        assert howto_pictures.label(text) in html and f"{prob:.2f}" in html
    for event in values["lanes"]["method"]:
        if event["kind"] == "step" and event["index"] == story.telling:
            event["draft"]["texts"] = ["walrus"] * len(draft)
            event["draft"]["probs"] = [0.123] * len(draft)
    assert "walrus" in shown(values) and "0.12" in shown(values) and "walrus" not in html


def test_the_telling_step_branches_and_ends_with_the_models_own_token(values: dict[str, Any]) -> None:
    story = tale(values)
    step = story.steps[story.telling]
    assert step.tokens[-1].depth == 0 and Fate.ACCEPTED in step.draft.fate and Fate.REJECTED in step.draft.fate
    assert len({parent for parent in step.draft.parents if parent >= 0}) < len(step.draft) - 1  # not a chain
    assert "".join(story.before(story.telling)) == "".join(
        t.text for s in story.steps[: story.telling] for t in s.tokens
    )


DRAFT = Draft(
    (1, 2, 3, 4), (-1, 0, -1, 1), (0.5, 0.4, 0.3, 0.2),
    (Fate.ACCEPTED, Fate.REJECTED, Fate.REJECTED, Fate.UNREACHED), (0.9, 0.1, 0.2, None), ("one", "two", "three", "4"),
)  # fmt: skip


def test_the_mask_is_that_of_the_pass() -> None:
    rows = attention_rows(DRAFT.parents)
    svg = howto_pictures.mask("root", DRAFT)
    assert svg.count("✓") == sum(map(len, rows)) and "row 4 sees 0, 1, 2, 4" in svg


def test_chips_do_not_overlap_and_the_own_token_hangs_below_the_path() -> None:
    at, _, width, _ = howto_pictures._places([*DRAFT.parents, 0])
    for i, (x, y) in enumerate(at):
        assert howto_pictures.CHIP / 2 <= x <= width - howto_pictures.CHIP / 2
        assert all(abs(x - u) >= howto_pictures.CHIP or y != v for u, v in at[:i])
    assert howto_pictures._path_end(DRAFT) == 0 and howto_pictures._path_end(Draft()) == -1


def test_streams_show_the_likeliest_guess_of_each_depth() -> None:
    assert howto_pictures.best_at_depths(DRAFT, 4) == [("one", 0.5), ("two", 0.4), ("4", 0.2), None]


def test_a_run_without_drafts_is_drawn_too(values: dict[str, Any]) -> None:
    for event in values["lanes"]["method"]:
        if event["kind"] == "step":
            event["draft"] = {name: [] for name in event["draft"]}
            event["tokens"] = [token | {"origin": "target", "depth": 0, "node": -1} for token in event["tokens"]]
    assert shown(values).count("<svg") == 5


def test_what_a_model_wrote_is_escaped(values: dict[str, Any]) -> None:
    for lane in values["lanes"].values():
        for event in lane:
            if event["kind"] == "step":
                event["tokens"] = [token | {"text": EVIL} for token in event["tokens"]]
                event["draft"]["texts"] = [EVIL for _ in event["draft"]["texts"]]
    assert "<img" not in shown(values) and "&lt;img" in shown(values)


def test_a_term_is_explained_where_it_comes_first() -> None:
    known: set[str] = set()
    html = explained("A pass, two passes <b> and Streams", known)
    assert html.count("<dfn") == 2 and "&lt;b&gt;" in html and known == {"pass", "stream"}
    assert explained("A pass", known) == "A pass"


def test_the_step_to_walk_through_accepts_and_rejects() -> None:
    view = recording.load().view()
    index = walkthrough.telling(view.steps)
    assert index is not None
    fates = view.steps[index].draft.fate
    assert Fate.ACCEPTED in fates and Fate.REJECTED in fates
    found = json.loads(walkthrough.message(view, "told"))
    assert len(found["nodes"]) == len(fates) and 0 < found["rate"] < 1 and found["cost"] >= 1
    assert found["before"].endswith(found["root"])
    assert walkthrough.message(View(Feed("")), "told") == "" and walkthrough.telling([]) is None


def test_the_sliders_begin_with_what_the_run_came_to() -> None:
    view = recording.load().view()
    found = json.loads(walkthrough.message(view, "told"))
    tokens = sum(found["rate"] ** n for n in range(found["depth"] + 1))
    assert tokens == pytest.approx(view.stats[Lane.METHOD].tokens_per_step, abs=0.1)
    assert walkthrough.even_rate(1.0, 5) == pytest.approx(0, abs=1e-3)
    assert walkthrough.even_rate(6.0, 5) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "words"),
    [(" the", "the"), ("", "(end)"), ("<|im_end|>", "(end)"), ("\n", "⏎"), (" ", "␣"), ("<b>", "<b>")],
)
def test_labels_of_tokens(text: str, words: str) -> None:
    assert howto_pictures.label(text) == words


def test_the_glossary_is_the_page_about_metrics_word_for_word() -> None:
    sections = howto.glossary()
    assert len(sections) > 3 and sections[0][0] == "One run"
    told = "\n".join(f"{title}\n{body}" for title, body in sections)
    source = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", howto.METRICS.read_text(encoding="utf-8"))
    source = source.split(f"## {howto.IN_THE_CODE}")[0]
    missing = [line for line in source.splitlines()[1:] if line.removeprefix("## ") not in told]
    assert missing == [] and "](" not in told and ".py" not in told


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(None) as address:
        yield address


class TestInABrowser:
    pytestmark = MARKS

    @pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light")])
    def test_the_tab(self, browser: Browser, url: str, width: int, theme: str) -> None:
        with visit(browser, url, "How it works", width, theme) as page:
            howto_pictures = page.locator(".ss-lesson svg[role=img]")
            expect(howto_pictures.last).to_be_visible()
            sizes = howto_pictures.evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
            assert len(sizes) == 5 and all(250 < size < width for size in sizes)
            look = page.locator(".ss-lesson").first.evaluate("e => getComputedStyle(e).counterIncrement")
            assert look == "lesson 1"  # numbered, not all of them 0
            letters = "all => Math.min(...all.map(e => e.getBoundingClientRect().height))"
            assert page.locator(".ss-lesson svg text:not(:empty)").evaluate_all(letters) > 9  # readable on a phone
            walk = page.locator(".ss-walkthrough").first
            for words in ("Grow a tree", "Check in one pass", "Keep what is right"):
                walk.get_by_role("button", name="Next").click()
                expect(walk.get_by_role("button", name=words)).to_have_attribute("aria-current", "step")
            expect(walk.locator(".ss-kept")).to_contain_text("from one pass")
            page.get_by_role("slider", name="A guess is right").fill("100")
            page.get_by_role("slider", name="It guesses").fill("3")
            page.get_by_role("slider", name="A pass that checks").fill("2")
            expect(page.locator(".ss-gain")).to_have_text(
                "A pass yields 4.0 tokens: 2.0× faster than standard decoding."
            )
            page.get_by_role("button", name="Use my last run").click()
            expect(page.locator(".ss-told")).to_contain_text("From your last run")
            paper = page.get_by_role("link", name="arXiv 2402.11131")
            assert paper.get_attribute("href") == howto.PAPER
            for title, _ in howto.glossary()[1:]:
                page.get_by_role("button", name=title).click()
            expect(page.get_by_text("mean acceptance length").first).to_be_visible()
            expect(page.get_by_text("geometric mean of the prompts' speed-ups").first).to_be_visible()
            assert serious(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
