"""The Playground in a real browser: chat, the queue for the model, the model panel, a demo, text in every script."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import (
    MARKS,
    SLOW,
    load,
    open_tab,
    serious,
    serious_in_both_themes,
    unfold,
    visit,
    window,
)  # sets the environment of gradio

# isort: split
from playwright.sync_api import Browser, Locator, Page, Route, expect

from scripts.ports import free_port
from specstream.events import Draft, Fate, Finished, Lane, Origin, Reason, Started, Step, Token
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from tests.conftest import Pace
from ui import app
from ui.access_rules import DEMO, OPEN, Rules
from ui.jobs import job
from ui.jobs.engine_host import Engines

pytestmark = MARKS
CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
LOADED: list[dict[str, str]] = []  # the models requested, in order
SCRIPTS = ["  two\n", "\tspaces ", "\n\n", "שלום", " مرحبا", " 🌊", "👩‍👩‍👧", " e\u0301", "漢字", " end"]


def toy_of(pace: float) -> Any:
    """A loader that returns the toy model under the requested name."""

    def loader(progress: Any, **choice: str) -> Any:
        LOADED.append(choice)
        engine = load_toy(pace)
        task = "e2e" if choice["adapter"] in ("auto", "none") else choice["adapter"]
        engine.info = replace(engine.info, model=choice["model"], task=task, adapter=task)
        return engine

    return loader


@contextmanager
def served(runlog: Any, rules: Rules = OPEN, pace: float = 0.005, model: str = "toy") -> Iterator[str]:
    with page_of(Engines(CHOICE | {"model": model}, toy_of(pace), rules), runlog) as address:
        yield address


@contextmanager
def page_of(engines: Engines, runlog: Any) -> Iterator[str]:
    engines.load()
    page = app.build(engines, runlog)
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> RunLog:
    return RunLog(tmp_path_factory.mktemp("log") / "runs.db")


@pytest.fixture(scope="module")
def url(log: RunLog) -> Iterator[str]:
    with served(log) as address:
        yield address


def choose_task(page: Page, name: str) -> None:
    page.get_by_label("Task", exact=True).first.click()
    page.get_by_role("option", name=name, exact=True).click()


def prompt(page: Page) -> Locator:
    return page.get_by_label("Prompt", exact=True).first


def player(page: Page) -> Locator:
    return page.locator(".ss-player").first


def ask(page: Page, text: str) -> None:
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()  # the previous run has ended
    prompt(page).fill(text)
    prompt(page).press("Control+Enter")


def status(page: Page, words: str) -> None:
    expect(page.locator(".ss-toolbar .ss-status").first).to_have_text(re.compile(words))


# ---- chat ------------------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_over_a_reload_until_a_new_one_is_begun(browser: Browser, url: str, log: RunLog) -> None:
    with visit(browser, url, "Playground") as page:
        choose_task(page, "Chat")
        system = page.get_by_label("System prompt, optional")
        expect(system).to_be_visible()
        system.fill("Be kind.")
        said = page.locator(".ss-turns .ss-said")
        for turn, message in enumerate(("Where is the <b>pub</b>?", "And the café?"), 1):
            ask(page, message)
            expect(said).to_have_count(2 * turn)
            expect(page.locator(".ss-pending")).to_have_count(0)
            assert said.nth(2 * turn - 2).inner_text() == message and prompt(page).input_value() == ""
        status(page, "^Done")
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
        expect(player(page).locator(".ss-tree")).to_be_hidden()  # the answer is in colours where it stands
        page.get_by_role("button", name="Show draft tree").click()
        expect(player(page).locator(".ss-node").first).to_be_visible()
        texts = said.all_inner_texts()
        assert texts[3].strip() == player(page).locator(".ss-method").inner_text().strip()
        page.reload()
        expect(said).to_have_count(4)
        assert said.all_inner_texts() == texts and system.input_value() == "Be kind."
        page.get_by_role("button", name="New chat").click()
        expect(said).to_have_count(0)
        page.reload()
        status(page, "Your last run")
        assert said.count() == 0
    newest = log.run(log.runs(limit=1)[0]["id"])
    assert newest["prompt"] == "And the café?" and newest["settings"]["chat"]["system"] == "Be kind."
    assert newest["settings"]["chat"]["turns"][0][0] == "Where is the <b>pub</b>?"


def test_a_run_begins_when_the_page_says_that_it_has_drawn_its_beginning(
    browser: Browser, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "DRAWING", 600)  # seconds
    with visit(browser, url, "Playground") as page:
        for _ in range(2):
            ask(page, "name[The Salted Fig]")
            status(page, "^Done")
            expect(player(page)).to_have_attribute("data-state", "done")


def test_a_task_or_an_example_loads_its_adapter(browser: Browser) -> None:
    with served(None, model="smollm2-135m") as url:
        page = window(browser)
        load(page, url)
        expect(page.get_by_text("Model: smollm2-135m")).to_be_visible()
        choose_task(page, "Questions to SQL")
        expect(page.get_by_text("Model: smollm2-135m + sql")).to_be_visible()
        status(page, "^Ready: smollm2-135m \\+ sql")
        assert LOADED[-1]["adapter"] == "sql" and LOADED[-1]["model"] == "smollm2-135m"
        page.get_by_role("button", name="Dialogue").first.click()
        expect(page.get_by_text("Model: smollm2-135m + dialogsum")).to_be_visible()
        assert prompt(page).input_value().startswith("#Person1#") and LOADED[-1]["adapter"] == "dialogsum"
        page.close()


def test_a_new_visitor_sees_the_recordings_prompt_whatever_others_loaded(browser: Browser) -> None:
    with served(None, model="smollm2-135m") as url:
        other, mine = window(browser), window(browser)
        load(other, url)
        other.get_by_role("button", name="Chat").first.click()
        expect(other.get_by_text("Model: smollm2-135m + chat")).to_be_visible()
        load(mine, url)
        expect(mine.get_by_text("Model: smollm2-135m + chat")).to_be_visible()
        assert prompt(mine).input_value().startswith("Paper Moon")
        expect(player(mine).locator(".ss-node").first).to_be_visible()
        assert "faster" in mine.locator(".ss-headline").first.inner_text()
        assert "earlier" not in mine.locator(".ss-headline").first.inner_text()
        mine.get_by_role("button", name="Run", exact=True).click()
        status(mine, "^Done")
        expect(mine.get_by_text("Model: smollm2-135m + e2e")).to_be_visible()
        assert LOADED[-1]["adapter"] == "e2e"
        other.get_by_role("button", name="Story").first.click()
        expect(other.get_by_text("Model: smollm2-135m + chat")).to_be_visible()
        status(other, "^Ready")
        assert other.get_by_label("Task", exact=True).first.input_value() == "None: the prompt as it is"
        assert prompt(other).input_value().startswith("The lighthouse keeper")
        for page in (other, mine):
            page.close()


def test_a_reloaded_page_shows_no_recording_before_the_visitors_own_run(browser: Browser, url: str) -> None:
    page = window(browser)
    load(page, url)
    ask(page, "name[Otter Hall]")
    status(page, "^Done")
    seen = "window.first = getComputedStyle(document.documentElement.querySelector('.ss-stage')).visibility"
    page.add_init_script(
        f"new MutationObserver(() => window.first ?? (document.querySelector('.ss-stage') && ({seen})))"
        ".observe(document, {childList: true, subtree: true})"
    )
    page.reload()
    status(page, "Your last run")
    assert page.evaluate("window.first") == "hidden"
    expect(player(page).locator(".ss-badge")).to_have_text(re.compile("^From the log"))
    page.close()


def test_a_result_is_marked_once_another_prompt_is_above_it(browser: Browser) -> None:
    with served(None, model="smollm2-135m") as url:
        page = window(browser)
        load(page, url)
        page.get_by_role("button", name="Run", exact=True).click()
        status(page, "^Done")
        line = page.locator(".ss-headline").first
        expect(line).not_to_contain_text("earlier prompt")
        page.get_by_role("button", name="Chat", exact=True).first.click()
        expect(line).to_contain_text("Of the earlier prompt")
        expect(page.get_by_text("Done: ")).to_have_count(0)
        page.get_by_role("button", name="Restaurant: 4 tokens").first.click()
        expect(line).not_to_contain_text("earlier prompt")
        prompt(page).fill("name[Otter Hall]")
        expect(line).to_contain_text("Of the earlier prompt")
        ask(page, "name[Otter Hall]")
        expect(line).not_to_contain_text("earlier prompt")
        status(page, "^Done")
        expect(line).not_to_contain_text("earlier prompt")
        page.close()


def test_prompt_and_task_are_the_same_in_both_tabs(browser: Browser) -> None:
    with served(None, model="smollm2-135m") as url:
        page = window(browser)
        load(page, url)
        shown = page.get_by_label("Prompt", exact=True).locator("visible=true")
        shown.fill("typed in the Playground")
        open_tab(page, "Compare")
        expect(shown).to_have_value("typed in the Playground")
        shown.fill("typed in Compare")
        page.get_by_label("Task", exact=True).locator("visible=true").click()
        page.get_by_role("option", name="Questions to SQL", exact=True).locator("visible=true").click()
        open_tab(page, "Playground")
        expect(shown).to_have_value("typed in Compare")
        expect(page.get_by_label("Task", exact=True).locator("visible=true")).to_have_value("Questions to SQL")
        expect(page.get_by_text("Model: smollm2-135m + sql")).to_be_visible()
        page.close()


def test_an_adapter_that_was_chosen_by_name_stays_and_the_hint_offers_the_other(browser: Browser) -> None:
    with page_of(Engines(CHOICE | {"model": "smollm2-135m", "adapter": "none"}, toy_of(0.005)), None) as url:
        page = window(browser)
        load(page, url)
        choose_task(page, "Questions to SQL")
        expect(page.get_by_text("The loaded adapter was trained for “Restaurant descriptions")).to_be_visible()
        page.get_by_role("button", name="Load the adapter for this task").click()
        expect(page.get_by_text("Model: smollm2-135m + sql")).to_be_visible()
        expect(page.get_by_role("button", name="Load the adapter for this task")).to_be_hidden()
        page.close()


TICKED = """() => {
  window.ticked = new Set();
  setInterval(() => document.querySelectorAll(".ss-choices input:checked").forEach(
    (box) => window.ticked.add(box.closest("label").innerText.trim())), 10);
}"""


def of_few_methods(progress: Any, **choice: str) -> Any:
    """A loader whose models have no draft model; only the adapter for restaurants has an early exit."""
    time.sleep(1.5)  # long enough for updates in between
    engine = toy_of(0.005)(progress, **choice)
    lacking = ("draft_model",) if engine.info.task == "e2e" else ("draft_model", "early_exit")
    engine.info = replace(engine.info, unavailable=dict.fromkeys(lacking, "It is not here."))
    return engine


def test_what_the_model_cannot_run_is_never_ticked_and_own_ticks_are_kept(browser: Browser) -> None:
    with page_of(Engines(CHOICE | {"model": "smollm2-135m"}, of_few_methods), None) as url:
        page = window(browser)
        load(page, url)
        expect(page.get_by_text("Model: smollm2-135m")).to_be_visible()
        open_tab(page, "Compare")
        page.evaluate(TICKED)
        names = ("Medusa", "Draft model", "Early exit")
        box = {name: page.get_by_label(name).locator("visible=true") for name in names}
        expect(box["Draft model"]).not_to_be_checked()
        expect(box["Early exit"]).to_be_checked()
        box["Medusa"].uncheck()
        page.get_by_role("button", name="SQL: 4 tokens").locator("visible=true").click()
        expect(box["Early exit"]).not_to_be_checked()
        expect(box["Early exit"]).to_be_disabled()
        lacks = page.get_by_text("It is not here.").locator("visible=true")
        expect(lacks).to_have_count(2)
        page.get_by_role("button", name="Restaurant: 4 tokens").locator("visible=true").click()
        expect(box["Early exit"]).to_be_checked()
        expect(box["Medusa"]).not_to_be_checked()
        expect(lacks).to_have_count(1)
        assert not any(name.startswith("Draft model") for name in page.evaluate("[...window.ticked]"))
        page.close()


# ---- the line, the model, the demo -----------------------------------------------------------------------------------


def endless(page: Page) -> None:
    """A run that continues until it is stopped."""
    unfold(page, "Model:")
    unfold(page, "More settings")
    page.get_by_label("Ignore end of text").first.check()
    page.get_by_label("Max new tokens").first.fill("4000")
    ask(page, "name[Otter Hall]")


def test_who_waits_sees_how_many_are_ahead_and_stop_leaves_the_line(browser: Browser, pace: Pace) -> None:
    with served(None) as url, visit(browser, url, "Playground") as first:
        pace.factor = 40
        endless(first)
        expect(player(first).locator(".ss-method .ss-tok").nth(3)).to_be_visible()
        with visit(browser, url, "Playground") as second, visit(browser, url, "Playground") as third:
            expect(player(second).locator(".ss-node").first).to_be_visible()  # of the recording
            ask(second, "name[Second]")
            status(second, "1 ahead of you")
            expect(second.locator(".ss-headline").first).to_contain_text("1 ahead of you")
            for gone in (".ss-node", ".ss-method .ss-tok"):
                expect(player(second).locator(gone)).to_have_count(0)
            assert player(second).locator(".ss-caption").inner_text() == ""
            assert player(second).locator(".ss-count").all_inner_texts() == ["", ""]
            ask(third, "name[Third]")
            status(third, "2 ahead of you")
            expect(second.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
            second.keyboard.press("Escape")
            status(second, "Stopped before it began")
            expect(second.get_by_role("button", name="Run", exact=True)).to_be_enabled()
            status(third, "1 ahead of you")
            assert player(first).get_attribute("data-state") == "running"  # only its own visitor stops a run
            first.get_by_role("button", name="Stop", exact=True).dispatch_event("click")
            status(first, "Done: stopped by you")
            pace.factor = 1
            status(third, "Writing|Measuring|Done")


def test_stop_is_offered_when_the_first_updates_arrive_together(browser: Browser) -> None:
    """A slow browser learns of its run when the first updates are there already, and applies them in one go."""
    go = threading.Event()

    def slow(progress: Any, **choice: str) -> Any:
        progress("Reading the weights")
        go.wait()
        return load_toy()

    def late(route: Route) -> None:
        answer = route.fetch()
        time.sleep(1.5)
        route.fulfill(response=answer)

    with page_of(Engines(CHOICE, slow), None) as url:
        page = window(browser)
        page.goto(url)
        expect(page.get_by_text("Reading the weights").first).to_be_visible()
        page.route("**/queue/join**", late)
        ask(page, "name[Otter Hall]")
        status(page, "Waiting for the model to load")
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
        page.close()
        go.set()


def test_the_model_panel_tells_memory_and_unloads(browser: Browser) -> None:
    with served(None) as url, visit(browser, url, "Playground") as page:
        unfold(page, "Model: toy")
        expect(page.get_by_text("the whole program uses")).to_be_visible()
        page.get_by_label("Model", exact=True).first.fill("smollm2-1.7b")
        page.keyboard.press("Enter")
        expect(page.get_by_text(re.compile("The weights need (3.42|6.85) GB"))).to_be_visible()
        page.get_by_role("button", name="Unload").click()
        expect(page.get_by_text("Model: none yet")).to_be_visible()
        ask(page, "name[The Salted Fig]")
        status(page, "No model is loaded: choose one under Model and press Load")
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
        page.get_by_role("button", name="Load", exact=True).click()
        expect(page.get_by_role("button", name="Model: smollm2-1.7b")).to_be_visible()
        ask(page, "name[The Salted Fig]")
        status(page, "^Done")


def test_a_demo_is_smaller_and_says_so(browser: Browser, tmp_path: Path) -> None:
    with served(RunLog(tmp_path / "runs.db"), DEMO) as url, visit(browser, url, "Playground") as page:
        expect(page.get_by_text("This is a shared demo: at most 256 new tokens")).to_be_visible()
        assert page.get_by_role("tab", name="Fine-tune").count() == 0
        unfold(page, "Model:")
        page.get_by_label("Max new tokens").first.fill("300")
        ask(page, "name[The Salted Fig]")
        status(page, "This demo writes at most 256 new tokens: choose fewer.")
        expect(page.get_by_role("button", name="Load", exact=True)).to_be_visible()
        for gone in ("Unload", "Download the database"):
            assert page.get_by_role("button", name=gone).count() == 0
        expect(page.get_by_label("Device")).to_be_hidden()
        assert serious(page) == []


# ---- what is shown ---------------------------------------------------------------------------------------------------


def log_texts(runlog: RunLog, texts: list[str]) -> str:
    """A logged run that drafted one token and then wrote these, until one was left to write."""
    recorder = runlog.start(load_toy().info, "every script", "raw", "streaming", {})
    draft = Draft((1,), (-1,), (0.5,), (Fate.REJECTED,), (0.1,), (texts[0],))
    recorder.add(Lane.METHOD, Started("streaming", 1))
    for index, text in enumerate(texts):
        token = Token(index, text, Origin.TARGET, 0, -0.1)
        recorder.add(Lane.METHOD, Step(index, draft if index == 1 else Draft(), (token,), {"verify": 0.1}, 1))
    recorder.add(Lane.METHOD, Finished(Reason.LENGTH))
    recorder.close()
    return recorder.run_id


def test_whitespace_scripts_and_emoji_come_through_whole(browser: Browser, url: str, log: RunLog) -> None:
    run = log_texts(log, SCRIPTS)
    with visit(browser, url, "Sessions", query=f"&run={run}") as page:
        shown = page.locator(".ss-player").locator("visible=true")
        tokens = shown.locator(".ss-method .ss-tok")
        expect(tokens).to_have_count(len(SCRIPTS))
        assert tokens.evaluate_all("all => all.map(e => e.textContent)") == SCRIPTS
        assert shown.locator(".ss-method").evaluate("e => getComputedStyle(e).whiteSpace") == "pre-wrap"
        ends = shown.locator(".ss-method .ss-newline")
        assert ends.evaluate_all("all => all.map(e => getComputedStyle(e, '::before').content)") == ['"⏎"'] * 3
        left = tokens.evaluate_all("all => all.map(e => e.getBoundingClientRect().left)")
        assert left[4] < left[3]  # Arabic after Hebrew: to the left of it
        tokens.nth(5).hover()
        expect(shown.locator(".ss-tip")).to_contain_text("␣🌊")


def test_a_step_without_a_draft_says_why(browser: Browser, url: str, log: RunLog) -> None:
    run = log_texts(log, [" a", " b", " c", " d"])
    with visit(browser, url, "Sessions", query=f"&run={run}") as page:
        shown = page.locator(".ss-player").locator("visible=true")
        expect(shown).to_have_attribute("data-state", "done")
        words = "e => getComputedStyle(e, '::before').content"
        shown.get_by_role("slider", name="Step").press("End")  # a run opens at its most informative step
        assert "Only one token was left to write" in shown.locator(".ss-tree").evaluate(words)
        shown.get_by_role("button", name="Previous step").click()
        assert "Nothing was drafted for this step" in shown.locator(".ss-tree").evaluate(words)
        shown.get_by_role("slider", name="Step").press("Home")
        assert "reads the prompt" in shown.locator(".ss-tree").evaluate(words)


def test_both_texts_and_the_button_are_above_the_fold(browser: Browser, url: str) -> None:
    for width in (1280, 390):
        with visit(browser, url, "Playground", width=width) as page:
            page.set_viewport_size({"width": width, "height": 800 if width == 1280 else 844})
            for lane in ("standard decoding", "the run"):
                expect(page.get_by_label(f"Text of {lane}", exact=True).first).to_be_in_viewport(ratio=1)
            expect(page.get_by_role("button", name="Run", exact=True)).to_be_in_viewport(ratio=1)


def test_on_a_phone_the_fixed_button_covers_nothing(browser: Browser, url: str) -> None:
    with visit(browser, url, "Playground", width=390) as page:
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        last = page.locator("footer button").locator("visible=true").last.bounding_box()
        bar = page.locator(".ss-runbar").locator("visible=true").bounding_box()
        assert last and bar and last["y"] + last["height"] <= bar["y"]
        expect(page.locator("footer .divider").locator("visible=true")).to_have_count(0)  # nothing stands before it


# Everything that moved without the visitor's doing, and by how much: what browsers call layout shift. A text that goes
# on in the next line of its own box is none.
MOVED = """
window.moved = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    const written = entry.sources.every((source) => source.node?.parentElement?.closest(".ss-text"));
    if (entry.hadRecentInput || (entry.sources.length && written)) continue;
    const where = entry.sources.map((source) => (source.node?.className ?? source.node?.nodeName) + " "
      + [source.previousRect, source.currentRect].map((box) => `${box.y} ${box.height}`).join(" to "));
    window.moved.push([entry.value, ...where]);
  }
}).observe({ type: "layout-shift", buffered: true });
"""


def movements(browser: Browser, url: str, width: int, height: int) -> list[list[Any]]:
    """The layout shifts while the page loads, and those of a run."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(SLOW)
    page.add_init_script(MOVED)
    load(page, url)
    expect(page.get_by_text("Model: toy")).to_be_visible()
    loading = page.evaluate("window.moved.splice(0)")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(player(page).locator(".ss-badge")).to_be_hidden()
    expect(player(page)).to_have_attribute("data-state", "done")
    running = page.evaluate("window.moved")
    page.close()
    return [loading, running]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_nothing_jumps_while_the_page_loads_or_runs(browser: Browser, url: str, width: int, height: int) -> None:
    """The best of three visits: on a busy machine gradio's parts sometimes arrive one by one, for whatever page."""
    for _ in range(3):
        visits = movements(browser, url, width, height)
        if all(sum(value for value, *_ in moved) < 0.05 for moved in visits):
            return
    pytest.fail("\n".join(map(str, sorted(sum(visits, []), reverse=True)[:9])))


def test_the_font_comes_before_what_it_lays_out(browser: Browser, url: str) -> None:
    with visit(browser, url, "Playground", 390) as page:
        fonts = """() => performance.getEntriesByType("resource").filter((e) => e.name.includes("SourceSansPro"))
          .map((e) => e.initiatorType)"""
        assert page.evaluate(fonts) == ["link", "link"]  # asked for by the page's head, once each


FOCUSED = "document.activeElement.innerText || document.activeElement.ariaLabel"
FROM_THE_TOP = "document.body.tabIndex = -1, document.body.focus(), document.body.removeAttribute('tabindex')"
MAIN = {  # what each tab is opened for
    "Playground": "Run", "Chat": "Run", "Compare": "Compare", "Benchmark": "Run benchmark", "Fine-tune": "Train",
}  # fmt: skip


@pytest.mark.parametrize("tab", MAIN)
def test_the_main_button_is_one_tab_away(browser: Browser, url: str, tab: str) -> None:
    with visit(browser, url, "Playground" if tab == "Chat" else tab) as page:
        if tab == "Chat":
            choose_task(page, "Chat")
            expect(page.get_by_label("System prompt, optional")).to_be_visible()
        page.evaluate(FROM_THE_TOP)
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUSED) == "Skip to the main button"
        page.keyboard.press("Enter")
        assert page.evaluate(FOCUSED) == MAIN[tab]


def test_tab_closes_the_lists_that_it_passes(browser: Browser, url: str) -> None:
    with visit(browser, url, "Playground") as page:
        page.evaluate(FROM_THE_TOP)
        stops: list[str] = []
        while "Run" not in stops and len(stops) < 12:
            page.keyboard.press("Tab")
            stops.append(page.evaluate(FOCUSED))
        assert stops[-1] == "Run"
        expect(page.get_by_role("listbox")).to_have_count(0)


def test_the_longest_task_fits_its_field(browser: Browser, url: str) -> None:
    with visit(browser, url, "Playground") as page:
        field = page.get_by_label("Task", exact=True).first
        assert field.input_value() == "Restaurant descriptions (E2E NLG)"
        assert field.evaluate("e => e.scrollWidth <= e.clientWidth")


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_nothing_serious_in_a_chat(browser: Browser, url: str, width: int, theme: str) -> None:
    with visit(browser, url, "Playground", width=width, theme=theme) as page:
        choose_task(page, "Chat")
        expect(page.get_by_label("System prompt, optional")).to_be_visible()
        ask(page, "Where is the pub?")
        status(page, "^Done")
        unfold(page, "Model: toy")
        expect(page.get_by_role("button", name="Unload")).to_be_visible()
        assert serious_in_both_themes(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
