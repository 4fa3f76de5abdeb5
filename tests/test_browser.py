"""The page in a real browser, on the toy engine, as a visitor sees and uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from scripts.ports import free_port
from specstream.events import Agreement, Draft, Fate, Finished, Lane, Origin, Reason, Started, Step, Token, Verdict
from specstream.params import METHODS
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from tests.browsing import MARKS, load, noted, open_tab, serious, serious_in_both_themes, unfold, visit, window
from tests.conftest import Pace
from ui import app
from ui.components import share
from ui.export import gallery
from ui.export.page import run_page
from ui.html.render import STARTED
from ui.jobs.engine_host import Engines
from ui.jobs.job import Job
from ui.state import recording

PROMPT = "name[The Salted Fig], food[Italian]"
# The two buttons of a race, and its state after each: a short race would be over between two looks.
RACE_AND_SHOW_THE_END = """() => ["Replay race", "Skip to end"].map((words) => {
  [...document.querySelectorAll(".ss-race button")].find((button) => button.innerText === words).click();
  return document.querySelector(".ss-race").dataset.state;
})"""
EVIL = '<img src=x onerror="document.title=1"> food[<b>Thai</b>]'

pytestmark = MARKS


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    choice = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
    engines = Engines(choice, lambda progress, **chosen: load_toy(pace=0.005))
    engines.load()
    runlog = RunLog(tmp_path_factory.mktemp("log") / "runs.db")
    log_markup(runlog)
    log_end_of_text(runlog)
    log_chain(runlog)
    page = app.build(engines, runlog)
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    yield page.local_url
    page.close()


def log_markup(runlog: RunLog) -> None:
    """A logged run whose prompt, text, tree and verdict are markup, as a model could write it."""
    recorder = runlog.start(load_toy().info, f"wrote markup {EVIL}", "raw", "streaming", {})
    draft = Draft((1,), (-1,), (0.5,), (Fate.ACCEPTED,), (0.5,), (EVIL,))
    recorder.add(Lane.METHOD, Started("streaming", 1))
    recorder.add(Lane.METHOD, Step(0, draft, (Token(1, EVIL, Origin.DRAFT, 1, 0),), {"verify": 0.1}, 1))
    recorder.add(Lane.METHOD, Finished(Reason.EOS))
    recorder.verdict(Verdict(Agreement.MISMATCH, 1, EVIL))
    recorder.close()


def log_end_of_text(runlog: RunLog) -> None:
    """A logged run that accepted an end of text with more nodes drafted below it."""
    recorder = runlog.start(load_toy().info, "ends inside its tree", "raw", "streaming", {})
    fates = (Fate.ACCEPTED, Fate.UNREACHED, Fate.REJECTED, Fate.UNREACHED, Fate.UNREACHED)
    texts = ("end", "child", "no", "kid", "grandchild")
    draft = Draft((1, 2, 3, 4, 5), (-1, 0, -1, 2, 1), (0.5,) * 5, fates, (0.5, None, 0.5, None, None), texts)
    recorder.add(Lane.METHOD, Started("streaming", 1))
    recorder.add(Lane.METHOD, Step(0, Draft(), (Token(9, "One", Origin.TARGET),), {"verify": 0.1}, 1))
    recorder.add(Lane.METHOD, Step(1, draft, (Token(1, "end", Origin.DRAFT, 1, 0),), {"verify": 0.1}, 5))
    recorder.add(Lane.METHOD, Finished(Reason.EOS))
    recorder.close()


def log_chain(runlog: RunLog) -> None:
    """A logged run whose only draft is a chain of twelve words, the last of them rejected."""
    words = ("Door", "serves", "Thai", "food", "and", "is", "located", "near", "the", "harbour", "bridge,", ":")
    fates = (Fate.ACCEPTED,) * 11 + (Fate.REJECTED,)
    draft = Draft(tuple(range(12)), tuple(range(-1, 11)), (0.9,) * 12, fates, (0.9,) * 12, words)
    tokens = [Token(i, word, Origin.DRAFT, i + 1, i) for i, word in enumerate(words[:-1])]
    recorder = runlog.start(load_toy().info, "a chain of twelve", "raw", "streaming", {})
    recorder.add(Lane.METHOD, Started("streaming", 1))
    recorder.add(Lane.METHOD, Step(0, Draft(), (Token(20, "Blue", Origin.TARGET),), {"verify": 0.1}, 1))
    recorder.add(Lane.METHOD, Step(1, draft, (*tokens, Token(21, ".", Origin.TARGET)), {"verify": 0.1}, 13))
    recorder.add(Lane.METHOD, Finished(Reason.EOS))
    recorder.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visit(browser, url, "Playground") as page:
        yield page


def open_settings(page: Page, more: bool = False) -> None:
    """Unfold the settings of the Playground if they are folded."""
    if not page.get_by_label("Max new tokens").first.is_visible():
        unfold(page, "Model:")
    if more:
        unfold(page, "More settings")


def generate(page: Page, prompt: str = PROMPT, tokens: int = 60) -> None:
    page.get_by_label("Prompt", exact=True).first.fill(prompt)
    open_settings(page)
    page.get_by_label("Max new tokens").first.fill(str(tokens))
    page.get_by_role("button", name="Run", exact=True).click()
    expect(player(page).locator(".ss-badge")).to_be_hidden()  # no recording any more


def player(page: Page) -> Any:
    return page.locator(".ss-player").first


def wait_until_done(page: Page) -> None:
    """The run has ended, and both texts have been replayed."""
    expect(player(page)).to_have_attribute("data-state", "done")
    expect(player(page)).not_to_have_class(re.compile("ss-playing"))


def strip(page: Page) -> Any:
    return player(page).get_by_role("slider", name="Step")


def test_generate_and_walk_back(page: Page) -> None:
    generate(page)
    expect(player(page).locator(".ss-node.accepted").first).to_be_visible()  # the tree, while it runs
    wait_until_done(page)
    text = player(page).locator(".ss-method").inner_text()
    assert text and player(page).locator(".ss-baseline").inner_text() == text
    assert player(page).locator(".ss-later").count() == 0
    drafted = player(page).locator(".ss-method .ss-tok.d1")
    own = player(page).locator(".ss-method .ss-tok.d0")
    assert drafted.count() > 3 and own.count() > 3
    colours = [spot.first.evaluate("e => getComputedStyle(e).backgroundColor") for spot in (drafted, own)]
    assert colours[0] != colours[1]
    expect(page.get_by_text("same text ✓")).to_be_visible()
    expect(page.locator(".ss-headline strong").first).to_have_text(re.compile(r"\d\.\d× faster|standard decoding"))
    now = player(page).locator(".ss-step.ss-now")
    assert now.locator(".ss-tok.d1").count() == 1  # it opens at a step that kept guesses, with the text whole
    assert player(page).locator(".ss-aloud").inner_text().split() == ["Finished.", *text.split()]
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    walk_back(page, text)
    measure_again(page)


def measure_again(page: Page) -> None:
    """Further measurements of the same run: their median and range, and the text stays."""
    page.get_by_role("button", name="Measure again").click()
    expect(page.locator(".ss-headline").first).to_contain_text("Median of 5 measurements")
    expect(page.get_by_text("Measured 5 times")).to_be_visible()
    unfold(page, "Numbers")
    tile = page.locator(".ss-tile", has_text="Speed-up").first
    expect(tile).to_contain_text("median of 5 measurements")
    said = str(page.locator(".ss-headline strong").first.text_content())
    if shown := re.match(r"\d+\.\d×", said):
        expect(tile.locator(".ss-value")).to_have_text(shown[0])
    expect(page.get_by_text("including the prompt, median of 5").first).to_be_attached()
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible()


def walk_back(page: Page, text: str) -> None:
    """The strip shows the tree of an earlier step and the text up to it."""
    slider = strip(page)
    last = int(slider.get_attribute("aria-valuemax") or 0)
    assert last > 3 and slider.locator("i").count() == last + 1
    slider.focus()
    page.keyboard.press("Home")
    expect(player(page).locator(".ss-where")).to_have_text(f"step 0 of {last}")
    expect(player(page).locator(".ss-caption")).to_contain_text("reads the prompt")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(player(page).locator(".ss-tree-title")).to_contain_text("step 2")
    marked = player(page).locator(".ss-step.ss-now").inner_text()
    shown = "".join(player(page).locator(".ss-method .ss-step:not(.ss-later)").all_inner_texts())
    assert shown.endswith(marked) and text.startswith(shown) and len(shown) < len(text)
    accepted = player(page).locator(".ss-node.accepted").count()
    assert player(page).locator(".ss-step.ss-now .ss-tok").count() == accepted + 1
    player(page).get_by_role("button", name="Previous step").click()
    expect(player(page).locator(".ss-where")).to_have_text(f"step 1 of {last}")
    slider.locator("i").nth(3).click()
    expect(slider).to_have_attribute("aria-valuetext", re.compile(f"^step 3 of {last}: "))


def test_a_copied_token_says_so(page: Page) -> None:
    generate(page, prompt="name[The Mill], name[The Mill], name[The")
    wait_until_done(page)
    strip(page).focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(player(page).locator(".ss-caption")).to_contain_text("copied from the text before")
    expect(player(page).locator(".ss-detail")).to_contain_text("copied")
    expect(player(page).locator(".ss-node.copied").first).to_be_visible()


def test_numbers_are_folded_away(page: Page) -> None:
    generate(page)
    wait_until_done(page)
    expect(page.get_by_text("Wasted work")).to_be_hidden()
    unfold(page, "Numbers")
    for words in ("Tokens per second", "Wasted work", "standard"):
        expect(page.get_by_text(words, exact=True).locator("visible=true").first).to_be_visible()


def press_stop(page: Page) -> None:
    """A click without retries: one that the page redraws is retried, and would find "Run" on the same button."""
    page.get_by_role("button", name="Stop", exact=True).dispatch_event("click")


def endless(page: Page, pace: Pace, prompt: str = PROMPT) -> None:
    """A run that takes a quarter of an hour unless it is stopped."""
    pace.factor = 40
    open_settings(page, more=True)
    page.get_by_label("Ignore end of text").first.check()
    generate(page, prompt, tokens=4000)
    expect(player(page).locator(".ss-method .ss-tok").nth(5)).to_be_visible()


def test_stop_ends_the_run_at_once_and_the_next_one_works(page: Page, pace: Pace) -> None:
    endless(page, pace)
    press_stop(page)
    expect(page.get_by_text("Done: stopped by you")).to_be_visible()
    tokens = player(page).locator(".ss-method .ss-tok").count()
    assert 5 < tokens < 4000
    pace.factor = 1
    generate(page, tokens=20)
    expect(page.get_by_text("Done: the token limit was reached, 20 tokens")).to_be_visible()
    wait_until_done(page)


def test_a_closed_page_stops_its_run(
    page: Page, browser: Browser, url: str, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = window(browser)
    load(other, url)
    endless(other, pace)
    generate(page, tokens=20)
    expect(page.get_by_text("Waiting for the model: 1 ahead of you")).to_be_visible()
    monkeypatch.setattr(Job, "grace", 1)
    other.close()
    pace.factor = 1
    wait_until_done(page)
    expect(page.get_by_text("20 tokens").first).to_be_visible()


def test_labels_of_a_large_tree_do_not_overlap(page: Page) -> None:
    open_settings(page, more=True)
    page.get_by_label("Tree budget").locator("visible=true").first.fill("64")
    page.get_by_label("Width k").locator("visible=true").fill("8")
    generate(page, tokens=30)
    wait_until_done(page)
    strip(page).press("End")
    for _ in range(3):
        player(page).get_by_role("button", name="Previous step").click()
    boxes = (
        player(page).locator(".ss-node rect").evaluate_all("all => all.map(e => e.getBoundingClientRect().toJSON())")
    )
    assert len(boxes) == 65  # the root and 64 nodes
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            beside = one["right"] <= other["left"] or other["right"] <= one["left"]
            assert beside or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]
    edge = "e.parentNode.querySelector('rect').getBBox().width"
    spill = f"all => all.filter(e => e.getBBox().x < 0 || e.getBBox().x + e.getBBox().width > {edge} + 8).length"
    assert player(page).locator(".ss-node text").evaluate_all(spill) == 0


def test_a_long_chain_is_read_without_scrolling_aside(page: Page) -> None:
    open_sessions(page)
    page.get_by_label("Search").fill("a chain of twelve")
    expect(page.get_by_text("Runs 1 to 1 of 1")).to_be_visible()
    page.locator(".ss-runs button").filter(has_text="a chain of twelve").first.click()
    tree = page.locator("#opened-run .ss-tree")
    expect(tree.locator(".ss-node")).to_have_count(13)
    assert tree.evaluate("t => t.clientWidth < 640 && t.scrollWidth <= t.clientWidth && t.scrollLeft === 0")
    letters = "all => Math.min(...all.map(e => e.getBoundingClientRect().height))"
    assert tree.locator(".ss-node text:not(.ss-prob)").evaluate_all(letters) > 11
    rejected = tree.locator(".ss-node.rejected")  # its cross is beside the text, which stays as it is
    expect(rejected.locator(".ss-cross")).to_have_count(1)
    line = rejected.locator("text").first.evaluate("e => getComputedStyle(e).textDecorationLine")
    assert line == "none"


def test_markup_in_the_prompt_and_the_text_stays_text(page: Page) -> None:
    generate(page, prompt=EVIL, tokens=30)
    wait_until_done(page)
    open_sessions(page)
    page.get_by_label("Search").fill("wrote markup")
    expect(page.get_by_text("Runs 1 to 1 of 1")).to_be_visible()
    page.locator(".ss-runs button").filter(has_text="onerror").first.click()
    logged = page.locator(".ss-player").nth(1)
    expect(logged).to_have_attribute("data-state", "done")
    assert logged.locator(".ss-method").inner_text() == EVIL
    logged.locator(".ss-node.accepted").hover()
    expect(logged.locator(".ss-tip")).to_contain_text(EVIL)
    logged.locator(".ss-method .ss-tok").hover()
    expect(logged.locator(".ss-tip")).to_contain_text(EVIL)
    assert logged.locator(".ss-detail code").text_content() == EVIL  # folded
    expect(page.locator(".ss-headline").filter(has_text=EVIL)).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == app.TITLE


def test_refused_settings_and_prompts_are_told_in_the_page(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).first.fill("   ")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".ss-status.ss-bad")).to_have_text(re.compile("The prompt is empty"))
    page.get_by_label("Prompt", exact=True).first.fill("x" * 100_000)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".ss-status.ss-bad")).to_have_text(re.compile(r"The prompt has [\d,]+ (characters|tokens)"))
    open_settings(page)
    for label, words in (
        ("Tree budget", "from 0 to 64, not 500"),
        ("Max new tokens", "not 99999"),
        ("Temperature", "not 9"),
    ):
        field = page.get_by_label(label, exact=True).locator("visible=true").first
        before, wrong = field.input_value(), words.rsplit(" ", 1)[1]
        field.fill(wrong)
        field.blur()
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".ss-status.ss-bad")).to_have_text(re.compile(words))
        expect(field).to_have_value(wrong)  # what was typed is not changed silently
        field.fill(before)
    generate(page, tokens=20)
    wait_until_done(page)


def open_sessions(page: Page) -> None:
    open_tab(page, "Sessions")
    expect(page.locator("#runs")).to_be_visible()


def test_the_logged_session_opens_and_can_be_walked(page: Page, tmp_path: Path) -> None:
    generate(page, prompt="name[Walrus Corner], food[French]")
    wait_until_done(page)
    text = player(page).locator(".ss-method").inner_text()
    page.reload()
    open_sessions(page)
    page.get_by_label("Search").fill("walrus")
    expect(page.get_by_text("Runs 1 to 1 of 1")).to_be_visible()
    page.locator(".ss-runs button").filter(has_text="Walrus Corner").first.click()
    logged = page.locator(".ss-player").nth(1)
    expect(logged).to_have_attribute("data-state", "done")
    hides_its_helpers(page)
    assert logged.locator(".ss-method").inner_text() == text
    logged.get_by_role("slider", name="Step").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(logged.locator(".ss-tree-title")).to_contain_text("step 1")
    for button, ending in (("This run as JSON lines", ".jsonl"), ("Its steps as CSV", ".csv")):
        with page.expect_download() as download:
            page.get_by_role("link", name=button).or_(page.get_by_role("button", name=button)).first.click()
        assert download.value.suggested_filename.endswith(ending)
    unfold(page, "Download these runs")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the database").click()
    copy = tmp_path / "copy.db"
    download.value.save_as(copy)
    assert RunLog(copy).count(search="walrus") == 1


def test_the_recording_plays_by_itself_and_rests_under_the_pointer(page: Page) -> None:
    expect(player(page).locator(".ss-badge")).to_have_text(re.compile("^Recording: .*Nothing is computed now"))
    expect(player(page)).to_have_class(re.compile("ss-playing"))
    counts = player(page).locator(".ss-count")
    expect(counts.first).to_have_text(re.compile(r"^\d+ pass(es)?, \d\.\d s$"))
    player(page).locator(".ss-texts").hover()
    page.wait_for_timeout(300)
    resting = counts.all_inner_texts()
    page.wait_for_timeout(700)
    assert counts.all_inner_texts() == resting
    player(page).get_by_role("button", name="Pause").click()
    expect(player(page)).not_to_have_class(re.compile("ss-playing"))
    player(page).get_by_label("Speed").select_option("2")
    strip(page).press("End")
    player(page).get_by_role("button", name="Play").click()
    expect(player(page).get_by_role("button", name="Play")).to_be_visible()
    assert strip(page).get_attribute("aria-valuenow") == strip(page).get_attribute("aria-valuemax")
    assert player(page).locator(".ss-later").count() == 0


def test_the_recording_stands_still_where_less_motion_is_asked_for(browser: Browser, url: str) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(url)
    expect(player(page).locator(".ss-node.accepted").first).to_be_visible()
    assert player(page).locator(".ss-node.rejected").count() > 0  # a step worth showing
    expect(player(page)).not_to_have_class(re.compile("ss-playing"))
    context.close()


def test_the_recording_needs_no_model(browser: Browser) -> None:
    def never(progress: Any, **choice: str) -> Any:
        raise ValueError("There is no model here.")

    engines = Engines({"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}, never)
    engines.load()
    served = app.build(engines, None)
    served.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    page = window(browser)
    load(page, served.local_url)
    expect(page.get_by_text("There is no model here.")).to_be_visible()
    expect(page.locator(".ss-node.accepted").first).to_be_visible()
    expect(page.locator(".ss-headline strong").first).to_have_text(re.compile(r"\d\.\d× faster"))
    page.close()
    served.close()


def test_a_token_and_its_node_are_one_thing(page: Page) -> None:
    generate(page)
    wait_until_done(page)
    token = player(page).locator(".ss-method .ss-tok.d1").nth(2)
    token.click()
    step = token.evaluate("e => e.parentNode.dataset.index")
    expect(player(page).locator(".ss-where")).to_have_text(re.compile(f"^step {step} of"))
    expect(player(page).locator(".ss-node.accepted.d1.ss-chosen")).to_have_count(1)
    expect(player(page).locator(".ss-detail tr.accepted.ss-chosen")).to_have_count(1)
    expect(token).to_have_class(re.compile("ss-chosen"))
    rejected = player(page).locator(".ss-node.rejected").first
    if rejected.count():
        rejected.click()
        expect(player(page).locator(".ss-detail tr.ss-chosen")).to_contain_text("the model chose")
    node = player(page).locator(".ss-node.accepted").last
    node.hover()
    expect(player(page).locator(".ss-tip")).to_contain_text("drafted with")
    node.click()
    expect(player(page).locator(".ss-method .ss-tok.ss-chosen")).to_have_count(1)


def test_what_was_drafted_below_the_end_of_the_text_is_told_so(page: Page, url: str) -> None:
    open_sessions(page)
    page.get_by_label("Search").fill("ends inside its tree")
    expect(page.get_by_text("Runs 1 to 1 of 1")).to_be_visible()
    page.locator(".ss-runs button").filter(has_text="ends inside").first.click()
    detail = page.locator(".ss-player").nth(1).locator(".ss-detail")
    for child in ("child", "grandchild"):
        row = detail.locator("tr", has_text=re.compile(f"^{child}"))
        expect(row).to_contain_text("not checked: the text ended before it")
    expect(detail.locator("tr", has_text="kid")).to_contain_text("not checked: its parent “no” was rejected")
    words = "5 tokens drafted, 1 accepted. The text ends there, so the model adds none of its own: 1 token in one pass"
    expect(page.locator(".ss-player").nth(1).locator(".ss-caption")).to_contain_text(words)


def test_a_link_to_a_run_shows_it_at_once(page: Page, browser: Browser, url: str) -> None:
    open_sessions(page)
    page.get_by_label("Search").fill("ends inside its tree")
    expect(page.get_by_text("Runs 1 to 1 of 1")).to_be_visible()
    page.locator(".ss-runs button").filter(has_text="ends inside").first.click()
    run = page.locator("#opened-run .ss-facts dd").first.inner_text().split(",")[0]
    with visit(browser, url, "Sessions", query=f"&run={run}") as linked:
        shown = linked.locator("#opened-run")
        expect(shown.locator(".ss-player").first).to_be_in_viewport()
        for words in ("ends inside its tree", "toy, adapter toy"):
            expect(shown.get_by_text(words).first).to_be_in_viewport()


def test_the_recordings_pace_is_not_that_of_the_next_run(page: Page) -> None:
    pace = player(page).get_by_label("Speed")
    expect(pace).to_have_value(re.compile(r"0\.(5|25|125)"))  # slow enough to be seen, however quick the recording
    generate(page, tokens=20)
    wait_until_done(page)
    expect(pace).to_have_value("1")
    pace.select_option("0.5")
    generate(page, tokens=20)
    wait_until_done(page)
    expect(pace).to_have_value("0.5")  # the visitor's own choice stays


def test_a_tree_in_focus_keeps_its_arrows_and_nodes_and_tokens_are_reached_by_keys(page: Page) -> None:
    where, tree = player(page).locator(".ss-where"), player(page).locator(".ss-tree")
    strip(page).press("End")
    strip(page).press("ArrowLeft")
    strip(page).press("ArrowLeft")
    now = where.text_content() or ""
    player(page).get_by_role("button", name="Zoom in").click(click_count=6)
    tree.focus()
    tree.evaluate("t => t.scrollLeft = 0")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.ss-tree').scrollLeft > 0")
    page.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('aria-label')"
    first = page.evaluate(focused)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) != first and page.evaluate(focused)
    page.keyboard.press("Enter")
    expect(tree.locator(".ss-node.ss-chosen")).to_have_count(1)
    player(page).locator(".ss-method").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(player(page).locator(".ss-tip")).to_contain_text("model's probability")
    expect(where).to_have_text(now)


def test_zoom_changes_the_size_and_fit_shows_the_whole_tree(page: Page) -> None:
    size = "document.querySelector('.ss-tree svg').getBoundingClientRect().width"
    strip(page).press("End")  # autoplay ends: the next step's tree would have another size
    before = page.evaluate(size)
    player(page).get_by_role("button", name="Zoom in").click()
    larger = page.evaluate(size)
    player(page).get_by_role("button", name="Zoom out").click()
    assert larger == pytest.approx(1.25 * before, rel=0.02) and page.evaluate(size) == pytest.approx(before, rel=0.02)
    player(page).get_by_role("button", name="Zoom in").click(click_count=4)
    player(page).get_by_role("button", name="Fit").click()
    whole = "t => t.scrollWidth <= t.clientWidth && t.scrollHeight <= t.clientHeight"
    assert player(page).locator(".ss-tree").evaluate(whole)


def test_keys_run_step_and_stop(page: Page, pace: Pace) -> None:
    pace.factor = 40
    where = player(page).locator(".ss-where")
    page.get_by_role("heading", level=1).click()
    last = int(strip(page).get_attribute("aria-valuemax") or 0)
    page.keyboard.press("ArrowRight")  # autoplay ends
    now = int((where.text_content() or "step 0").split()[1])
    page.keyboard.press("ArrowLeft")
    expect(where).to_have_text(f"step {now - 1} of {last}")
    page.keyboard.press("ArrowRight")
    expect(where).to_have_text(f"step {now} of {last}")
    open_settings(page, more=True)
    page.get_by_label("Ignore end of text").first.check()
    page.get_by_label("Max new tokens").first.fill("4000")
    page.get_by_label("Prompt", exact=True).first.fill(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(player(page).locator(".ss-badge")).to_be_hidden()  # the tokens below are not the recording's
    expect(player(page).locator(".ss-method .ss-tok").nth(5)).to_be_visible()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.get_by_text("Done: stopped by you")).to_be_visible()


def test_a_page_loaded_again_in_the_middle_of_a_run_finds_it(
    browser: Browser, url: str, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "grace", 120)  # a slow machine needs longer to load a page than a visitor's patience
    page = window(browser)
    load(page, url)
    endless(page, pace, "name[Otter Hall]")
    begun, seen = player(page).locator(".ss-method").inner_text(), player(page).locator(".ss-method .ss-tok").count()
    page.reload()
    expect(player(page)).to_have_attribute("data-state", "running")
    expect(player(page).locator(".ss-method .ss-tok").nth(seen + 5)).to_be_visible()
    assert player(page).locator(".ss-method").inner_text().startswith(begun)
    assert page.get_by_label("Prompt", exact=True).first.input_value() == "name[Otter Hall]"
    press_stop(page)
    expect(page.get_by_text("Done: stopped by you")).to_be_visible()
    page.reload()  # the run has ended, and the log has it
    expect(player(page).locator(".ss-badge")).to_have_text(re.compile("^From the log: .*stopped"))
    assert player(page).locator(".ss-method").inner_text().startswith(begun)
    page.close()


def test_leaving_in_the_middle_of_a_run_is_no_error(page: Page, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    """``visit`` asserts that nothing is said on the console."""
    monkeypatch.setattr(Job, "grace", 120)
    endless(page, pace, "name[Heron House]")
    page.reload()
    expect(player(page)).to_have_attribute("data-state", "running")
    press_stop(page)
    expect(page.get_by_text("Done: stopped by you")).to_be_visible()


def test_a_link_that_leads_nowhere_leaves_the_run_alone(page: Page, pace: Pace) -> None:
    """A download is such a link, and so is one that the visitor cancels: the page stays, so its streams must."""
    endless(page, pace, "name[Heron House]")
    page.route("**/nowhere", lambda route: route.fulfill(status=204))
    page.evaluate("location.href = '/nowhere'")
    seen = player(page).locator(".ss-method .ss-tok").count()
    expect(player(page).locator(".ss-method .ss-tok").nth(seen + 5)).to_be_visible()
    press_stop(page)
    expect(page.get_by_text("Done: stopped by you")).to_be_visible()


def compare_methods(page: Page, tokens: int = 40) -> None:
    open_tab(page, "Compare")
    unfold(page, "Settings: length, temperature, each method")
    page.get_by_label("Max new tokens").locator("visible=true").fill(str(tokens))
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator(".ss-lane")).to_have_count(len(METHODS))  # a race without lanes is over too
    expect(page.locator(".ss-race")).to_have_attribute("data-state", "over")


def test_methods_are_compared_raced_and_shared(page: Page, browser: Browser, url: str, tmp_path: Path) -> None:
    compare_methods(page)
    lanes = page.locator(".ss-lane")
    assert lanes.count() == len(METHODS)
    texts = lanes.locator(".ss-text").all_inner_texts()
    assert len(set(texts)) == 1 and texts[0]
    assert lanes.get_by_text("✓ Same text").count() == len(METHODS) - 1
    assert sorted(re.findall("first|second|third", " ".join(lanes.all_inner_texts())))[0] == "first"
    expect(page.locator(".ss-plot .js-plotly-plot").locator("visible=true")).to_be_visible()
    assert page.evaluate(RACE_AND_SHOW_THE_END) == ["racing", "over"]
    hides_its_helpers(page)
    assert lanes.locator(".ss-text").all_inner_texts() == texts
    with page.expect_download() as download:
        page.get_by_role("button", name="Page (HTML)").locator("visible=true").click()
    page.get_by_role("button", name="Copy text").locator("visible=true").click()
    expect(page.locator(".ss-said-shared").locator("visible=true")).to_have_text(re.compile("^Copied"))
    shared = tmp_path / "shared.html"
    download.value.save_as(shared)
    shows_without_network(browser, shared, texts, url)
    linked = window(browser)
    linked.goto(url + (page.locator(".ss-grid a").last.get_attribute("href") or ""))
    logged = linked.locator(".ss-player").locator("visible=true")
    expect(logged).to_have_attribute("data-state", "done")
    expect(logged.locator(".ss-badge")).to_have_text(re.compile("^From the log"))
    assert logged.locator(".ss-method").inner_text() == texts[0]
    linked.close()


COPYING = {  # where the page is, what the browser allows, and what the button says
    "here": ("http://127.0.0.1:7860", True, "Copied: the link works on this machine only"),
    "by address, without https": ("http://example.test:7860", True, "Copied"),
    "refused": ("http://example.test", False, "The browser does not allow copying: the link is {link}"),
}


@pytest.mark.parametrize("where", COPYING)
def test_copy_link_says_what_became_of_it(browser: Browser, where: str) -> None:
    """On a button without focus, as in Safari."""
    origin, allowed, words = COPYING[where]
    page = window(browser)
    page.route("**/*", lambda route: route.fulfill(
        content_type="text/html", body='<div id="share-1"><span class="ss-said-shared"></span></div>'))  # fmt: skip
    page.goto(f"{origin}/play/")
    page.evaluate(
        """allowed => {
          window.copied = [];
          const write = async text => { if (!allowed) throw new Error("refused"); window.copied.push(text); };
          if (navigator.clipboard) navigator.clipboard.writeText = write;
          document.execCommand = () => allowed && window.copied.push(document.activeElement.value) > 0;
        }""",
        allowed,
    )
    page.evaluate(f"({share.COPY_LINK % 'share-1'})(7)")
    link = f"{origin}/play/?run=7"
    expect(page.locator(".ss-said-shared")).to_have_text(words.format(link=link))
    assert page.evaluate("window.copied") == ([link] if allowed else [])
    page.close()


def test_a_link_is_offered_for_a_run_that_has_one(page: Page) -> None:
    copy = page.get_by_role("button", name="Copy link").locator("visible=true")
    expect(page.get_by_role("button", name="Copy text").locator("visible=true")).to_be_visible()
    expect(copy).to_have_count(0)  # the recording is in no log
    said = page.locator(".ss-share").locator("visible=true").locator(".ss-said-shared")
    for prompt in (PROMPT, "name[The Paper Moon]"):
        generate(page, prompt, tokens=20)
        wait_until_done(page)
        expect(said).to_have_text("")  # also once another run was copied
        copy.click()
        expect(said).to_have_text("Copied: the link works on this machine only")


def hides_its_helpers(page: Page) -> None:
    """The fields and the link behind the buttons that share are out of sight, also where the row came later."""
    row = page.locator(".ss-share").locator("visible=true")
    expect(row.get_by_role("button", name="Copy text")).to_be_visible()
    for helper in (page.get_by_role("button", name="Download", exact=True), page.locator(".ss-hidden")):
        expect(helper.locator("visible=true")).to_have_count(0)


def shows_without_network(browser: Browser, file: Path, texts: list[str], url: str) -> None:
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.locator(".ss-race")).to_have_attribute("data-state", "over")
    assert page.locator(".ss-lane .ss-text").all_inner_texts() == texts
    assert asked == [file.as_uri()] and "beforeunload" not in file.read_text()
    assert page.locator(".ss-grid a").count() == 0  # to this machine, where the reader is not
    context.close()


def test_the_gallery_works_from_plain_files(browser: Browser, tmp_path: Path) -> None:
    gallery.build([gallery.shown("one", recording.load())], tmp_path)
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 844})
    page = context.new_page()
    problems = noted(page, tmp_path.as_uri())
    page.goto((tmp_path / "index.html").as_uri())
    expect(page.locator("img")).to_have_js_property("naturalWidth", 1200)
    assert serious(page) == []
    page.get_by_role("link", name="Paper Moon").click()
    expect(page.locator(".ss-player")).to_have_attribute("data-state", "done")
    expect(page.locator(".ss-method").first).to_contain_text("Paper Moon")  # it plays by itself
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert serious(page) == []
    page.get_by_role("link", name="All runs").click()
    expect(page.locator("img")).to_be_visible()
    assert not problems, problems
    context.close()


def test_a_shared_file_has_the_readers_time(browser: Browser, tmp_path: Path) -> None:
    run = gallery.shown("one", recording.load())
    told = replace(run.story, facts=((STARTED, "2026-12-01T16:04:09+00:00"),))
    (tmp_path / "one.html").write_text(run_page(run.view, told), encoding="utf-8")
    context = browser.new_context(offline=True, timezone_id="Asia/Tokyo", locale="en-GB")
    page = context.new_page()
    page.goto((tmp_path / "one.html").as_uri())
    expect(page.locator(".ss-facts time")).to_have_text(re.compile(r"^2 Dec 2026, 0?1:04$"))
    context.close()


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(browser: Browser, url: str, width: int, theme: str) -> None:
    def looks_well() -> None:
        assert serious_in_both_themes(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    page = window(browser, width)
    load(page, f"{url}?__theme={theme}")
    expect(page.get_by_text("Model: toy")).to_be_visible()
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    looks_well()  # the recording
    generate(page, tokens=30)
    wait_until_done(page)
    unfold(page, "Numbers")
    looks_well()
    compare_methods(page, tokens=20)
    expect(page.locator(".ss-plot .js-plotly-plot").locator("visible=true")).to_be_visible()
    looks_well()
    page.close()
