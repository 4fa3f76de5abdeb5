"""The page in a real browser, on the toy engine: what a visitor sees and does."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from specstream.events import Agreement, Draft, Fate, Finished, Lane, Origin, Reason, Started, Step, Token, Verdict
from specstream.runlog import RunLog
from specstream.toy import load_toy
from tests.ports import free_port
from ui import app
from ui.engines import Engines

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PROMPT = "name[The Salted Fig], food[Italian]"
EVIL = '<img src=x onerror="document.title=1"> food[<b>Thai</b>]'
SLOW = 20_000  # milliseconds

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    choice = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
    engines = Engines(choice, lambda progress, **chosen: load_toy(pace=0.02))
    engines.load()
    runlog = RunLog(tmp_path_factory.mktemp("log") / "runs.db")
    log_markup(runlog)
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh page. Afterwards: nothing on the console, nothing asked of other hosts."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if is_local(request.url, url) else problems.append(request.url))
    page.goto(url)
    expect(page.get_by_role("heading", level=1)).to_be_visible(timeout=SLOW)
    expect(page.get_by_text("Model: toy")).to_be_visible(timeout=SLOW)
    yield page
    page.close()
    assert not problems


def is_local(asked: str, url: str) -> bool:
    return asked.startswith((url, "data:", "blob:"))


def generate(page: Page, prompt: str = PROMPT, tokens: int = 60) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Max new tokens").fill(str(tokens))
    page.get_by_role("button", name="Run", exact=True).click()


def player(page: Page) -> Any:
    return page.locator(".ss-player").first


def wait_until_done(page: Page) -> None:
    expect(player(page)).to_have_attribute("data-state", "done", timeout=SLOW)


def test_generate_and_walk_back(page: Page) -> None:
    generate(page)
    expect(player(page).locator(".ss-node.accepted").first).to_be_visible(timeout=SLOW)  # the tree, while it runs
    wait_until_done(page)
    text = player(page).locator(".ss-method").inner_text()
    assert text and player(page).locator(".ss-baseline").inner_text() == text
    drafted = player(page).locator(".ss-method .ss-tok.d1")
    own = player(page).locator(".ss-method .ss-tok.d0")
    assert drafted.count() > 3 and own.count() > 3
    colours = [spot.first.evaluate("e => getComputedStyle(e).backgroundColor") for spot in (drafted, own)]
    assert colours[0] != colours[1]
    expect(page.get_by_text("✓ Same text").first).to_be_visible()
    expect(page.locator(".ss-value").nth(3)).to_have_text(re.compile(r"\d+\.\d\d×"))
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    walk_back(page, text)


def walk_back(page: Page, text: str) -> None:
    """The slider shows the tree of an earlier step and the text up to it."""
    slider = player(page).get_by_role("slider", name="Step")
    last = int(slider.get_attribute("max") or 0)
    assert last > 3
    slider.focus()
    page.keyboard.press("Home")
    expect(player(page).locator(".ss-where")).to_have_text(f"0 of {last}")
    expect(player(page).locator(".ss-caption")).to_contain_text("the prompt pass")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(player(page).locator(".ss-tree-title")).to_contain_text("step 2")
    marked = player(page).locator(".ss-step.ss-now").inner_text()
    shown = player(page).locator(".ss-method").inner_text()
    assert shown.endswith(marked) and text.startswith(shown) and len(shown) < len(text)
    accepted = player(page).locator(".ss-node.accepted").count()
    assert player(page).locator(".ss-step.ss-now .ss-tok").count() == accepted + 1
    player(page).get_by_role("button", name="Previous step").click()
    expect(player(page).locator(".ss-where")).to_have_text(f"1 of {last}")


def test_charts_appear_after_the_run(page: Page) -> None:
    generate(page)
    wait_until_done(page)
    expect(page.locator(".ss-plot .js-plotly-plot").nth(2)).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Explore the tree").first.click()
    expect(page.locator(".ss-plot .js-plotly-plot").nth(3)).to_be_visible(timeout=SLOW)


def test_stop_ends_the_run_at_once_and_the_next_one_works(page: Page) -> None:
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Ignore end of text").check()
    generate(page, tokens=4000)
    stop = page.get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_enabled(timeout=SLOW)
    expect(player(page).locator(".ss-tok").nth(5)).to_be_visible(timeout=SLOW)
    stop.click()
    expect(page.get_by_text("Done: stopped by you")).to_be_visible(timeout=3000)
    tokens = player(page).locator(".ss-method .ss-tok").count()
    assert 5 < tokens < 2000
    generate(page, tokens=20)
    expect(page.get_by_text("Done: the token limit was reached, 20 tokens")).to_be_visible(timeout=SLOW)
    wait_until_done(page)


def test_a_closed_page_stops_its_run(page: Page, browser: Browser, url: str) -> None:
    other = browser.new_page()
    other.goto(url)
    expect(other.get_by_text("Model: toy")).to_be_visible(timeout=SLOW)
    other.get_by_role("button", name="More settings").click()
    other.get_by_label("Ignore end of text").check()
    generate(other, tokens=4000)
    expect(player(other).locator(".ss-tok").nth(5)).to_be_visible(timeout=SLOW)
    generate(page, tokens=20)
    expect(page.get_by_text("Waiting: another run has the model")).to_be_visible(timeout=SLOW)
    other.close()
    wait_until_done(page)
    expect(page.get_by_text("20 tokens").first).to_be_visible()


def test_labels_of_a_large_tree_do_not_overlap(page: Page) -> None:
    page.get_by_label("Tree budget").first.fill("64")
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Width k").fill("8")
    generate(page, tokens=30)
    wait_until_done(page)
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
    spill = "all => all.filter(e => e.getBBox().x < 0 || e.getBBox().x + e.getBBox().width > 116).length"
    assert player(page).locator(".ss-node text").evaluate_all(spill) == 0


def test_markup_in_the_prompt_and_the_text_stays_text(page: Page) -> None:
    generate(page, prompt=EVIL, tokens=30)
    wait_until_done(page)
    open_sessions(page)
    page.get_by_label("Search").fill("wrote markup")
    expect(page.get_by_text("Runs 1 to 1 of 1")).to_be_visible(timeout=SLOW)
    page.get_by_role("gridcell").filter(has_text="onerror").first.click()
    logged = page.locator(".ss-player").nth(1)
    expect(logged).to_have_attribute("data-state", "done", timeout=SLOW)
    assert logged.locator(".ss-method").inner_text() == EVIL
    assert EVIL in logged.locator(".ss-node.accepted title").evaluate("e => e.textContent")
    expect(page.locator(".ss-verdict").filter(has_text=EVIL)).to_be_visible()
    page.get_by_role("button", name="Explore the tree").last.click()
    expect(page.locator(".ss-plot .js-plotly-plot").last).to_be_visible(timeout=SLOW)
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == app.TITLE


def test_refused_settings_and_prompts_are_told_in_the_page(page: Page) -> None:
    generate(page, prompt="   ")
    expect(page.locator(".ss-status.ss-bad")).to_have_text(re.compile("The prompt is empty"), timeout=SLOW)
    page.get_by_label("Prompt", exact=True).fill("x" * 100_000)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".ss-status.ss-bad")).to_have_text(re.compile("100,000 characters"), timeout=SLOW)
    generate(page, tokens=20)
    wait_until_done(page)


def open_sessions(page: Page) -> None:
    page.get_by_role("tab", name="Sessions").click()
    expect(page.locator("#runs")).to_be_visible(timeout=SLOW)


def test_the_logged_session_opens_and_can_be_walked(page: Page, tmp_path: Path) -> None:
    generate(page, prompt="name[Walrus Corner], food[French]")
    wait_until_done(page)
    text = player(page).locator(".ss-method").inner_text()
    page.reload()  # the page forgets; the log does not
    open_sessions(page)
    page.get_by_label("Search").fill("walrus")
    expect(page.get_by_text("Runs 1 to 1 of 1")).to_be_visible(timeout=SLOW)
    page.get_by_role("gridcell").filter(has_text="Walrus Corner").first.click()
    logged = page.locator(".ss-player").nth(1)
    expect(logged).to_have_attribute("data-state", "done", timeout=SLOW)
    assert logged.locator(".ss-method").inner_text() == text
    logged.get_by_role("slider", name="Step").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(logged.locator(".ss-tree-title")).to_contain_text("step 1")
    for button, ending in (("This run as JSON lines", ".jsonl"), ("Its steps as CSV", ".csv")):
        with page.expect_download(timeout=SLOW) as download:
            page.get_by_role("link", name=button).or_(page.get_by_role("button", name=button)).first.click()
        assert download.value.suggested_filename.endswith(ending)
    with page.expect_download(timeout=SLOW) as download:
        page.get_by_role("button", name="Download the database").click()
    copy = tmp_path / "copy.db"
    download.value.save_as(copy)
    assert RunLog(copy).count(search="walrus") == 1


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(browser: Browser, url: str, width: int, theme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(f"{url}?__theme={theme}")
    expect(page.get_by_role("heading", level=1)).to_be_visible(timeout=SLOW)
    generate(page, tokens=30)
    wait_until_done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    page.close()
