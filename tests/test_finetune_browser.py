"""The Fine-tune tab in a real browser: training runs of a tiny model, in separate processes."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from scripts.ports import free_port
from specstream.testing.toy import load_toy
from specstream.training.jobs import Registry
from tests.browsing import MARKS, noted, open_tab, serious_in_both_themes, unfold, window
from tests.trainings import put_training, rows, save_model
from ui import access_rules, app
from ui.jobs.engine_host import TOY, Engines, load

pytestmark = MARKS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder for this module alone, with a tiny model beside it."""
    folder = tmp_path_factory.mktemp("home")
    save_model(folder / "tiny")
    (folder / "mine.jsonl").write_text(rows(60))
    (folder / "bad.jsonl").write_text(rows(2) + '{"question": "Who?"}\n{\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECSTREAM_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """The toy model is loaded at first; other models are actually loaded."""

    def loader(model: str, progress: Any, **choice: str) -> Any:
        return load_toy(pace=0.0) if model == TOY else load(model, progress, **choice)

    engines = Engines(
        {"model": TOY, "adapter": "auto", "device": "auto", "dtype": "auto"},
        loader,
        access_rules.chosen(demo=False, local=True),
    )
    engines.load()
    page = app.build(engines, None)
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    yield page.local_url
    page.close()
    for training in Registry().all():  # one that a failed test left
        Registry().stop(training.name)


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A new page on the tab. Afterwards: nothing on the console, no requests to other hosts."""
    page = window(browser)
    problems = noted(page, url)
    visit(page, url)
    yield page
    found = list(problems)  # closing also cuts streams off
    page.close()
    assert not found, found


def visit(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator(".ss-node.accepted").first).to_be_visible()  # the page is complete
    open_tab(page, "Fine-tune")
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_visible()


def field(page: Page, label: str) -> Any:
    return page.get_by_label(label, exact=True).locator("visible=true").first


def put(page: Page, label: str, value: str) -> None:
    field(page, label).fill(value)
    page.keyboard.press("Tab")


def upload(page: Page, file: Path) -> None:
    """Choose the task sql and upload a file."""
    page.get_by_label("Task").locator("visible=true").first.click()
    page.get_by_role("option", name="Questions to SQL").click()
    page.get_by_label("A file of my own (JSONL)").check()
    expect(page.get_by_text("Each row has context, question and answer")).to_be_visible()
    page.locator(".ss-upload input[type=file]").set_input_files(file)


def ask(page: Page, home: Path, name: str, minutes: str) -> None:
    """Fill in the form for a training run of the tiny model."""
    unfold(page, "More settings")
    expect(field(page, "Layers")).to_be_visible()
    field(page, "Base model").fill(str(home / "tiny"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("has 4 layers: choose 1 to 4 for Layers, not 6")).to_be_visible()
    put(page, "Layers", "2")
    upload(page, home / "mine.jsonl")
    expect(page.get_by_text("60 rows can be used. 6 of their prompts are held out")).to_be_visible()
    settings = {"Start rank": "8", "Draft vocabulary": "0", "Probes": "1", "Validate every": "5"}
    for label, value in (settings | {"Minutes": minutes}).items():
        put(page, label, value)
    page.get_by_placeholder(re.compile("^my-")).fill(name)


def steps(page: Page) -> int:
    """The number of steps in the tile; 0 before the first."""
    value = page.locator(".ss-tile", has_text="rows, ").locator(".ss-value")
    return int(value.inner_text().replace(",", "")) if value.count() else 0


def wait_for_steps(page: Page, more_than: int) -> int:
    expect(page.locator(".ss-tile", has_text="rows, ")).to_be_visible()
    page.wait_for_function(
        "n => Number([...document.querySelectorAll('.ss-tile')].find(e => e.innerText.includes('held out,') || "
        "e.innerText.includes('rows,'))?.querySelector('.ss-value').innerText.replaceAll(',', '')) > n",
        arg=more_than,
    )  # fmt: skip
    return steps(page)


def curve(page: Page) -> int:
    """The number of points of the main stream's loss curve."""
    return page.evaluate("document.querySelectorAll('.ss-plot .js-plotly-plot')[0]?.data[0]?.x.length ?? 0")


def status(page: Page) -> Any:
    return page.locator(".ss-toolbar .ss-status").locator("visible=true")


def test_a_form_that_is_corrected_is_refused_no_longer(page: Page) -> None:
    page.get_by_label("A file of my own (JSONL)").check()
    expect(page.locator(".ss-upload")).to_be_visible()
    expect(page.locator(".ss-status.ss-plain", has_text="Choose a JSONL file").first).to_be_visible()  # no mistake yet
    page.get_by_role("button", name="Train", exact=True).click()
    expect(status(page)).to_have_text(re.compile("Choose a JSONL file"))
    page.get_by_label("The public dataset of the task").check()
    expect(page.locator(".ss-refused")).to_have_count(0)


def test_bad_files_are_told_before_anything_starts(page: Page, home: Path) -> None:
    upload(page, home / "bad.jsonl")
    expect(page.get_by_text("2 of 4 rows can't be used.")).to_be_visible()
    expect(page.get_by_text("Line 3: the column 'context' is missing or empty.")).to_be_visible()
    expect(page.get_by_text("Line 4: not valid JSON")).to_be_visible()
    expect(page.get_by_label("Train on the 2 good rows")).to_be_visible()
    page.get_by_role("button", name="Train", exact=True).click()
    expect(status(page)).to_have_text(re.compile("2 of 4 rows can't be used"))
    page.get_by_label("Task").locator("visible=true").first.click()
    page.get_by_role("option", name="Chat").click()
    page.get_by_label("The public dataset of the task").check()
    expect(page.get_by_text("Chat has no public dataset: upload a file").first).to_be_visible()
    page.get_by_role("button", name="Train", exact=True).click()
    expect(status(page)).to_have_text(re.compile("Chat has no public dataset"))
    assert Registry().all() == []


def test_a_number_out_of_its_limits_is_refused_by_name(page: Page, home: Path) -> None:
    upload(page, home / "mine.jsonl")
    unfold(page, "More settings")
    put(page, "Minutes", "-3")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(status(page)).to_have_text(re.compile(r"^Minutes must be a number from 0 to .*, not -3"))
    put(page, "Minutes", "5")
    expect(page.get_by_label("Quick: 5 minutes")).to_be_checked()
    put(page, "Minutes", "1")  # a preset that does not apply is not ticked
    expect(
        page.get_by_role("radiogroup", name="How thorough")
        .or_(page.locator("fieldset", has_text="How thorough"))
        .get_by_role("radio", checked=True)
    ).to_have_count(0)
    page.get_by_label("Task").locator("visible=true").first.click()  # an event without a queue reads the number too
    page.get_by_role("option", name="Restaurant descriptions").click()
    expect(page.get_by_text("Each row has meaning_representation")).to_be_visible()
    assert Registry().all() == []


def test_a_training_survives_the_page_is_stopped_and_goes_on(browser: Browser, url: str, home: Path) -> None:
    page = window(browser)  # not the fixture's: a page that goes away in the middle of an update says so on the console
    visit(page, url)
    ask(page, home, "long", "30")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(status(page)).to_have_text(re.compile(r"A training run is under way \(long\)"))
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_disabled()
    before = wait_for_steps(page, 5)
    expect(page.locator(".ss-plot .js-plotly-plot").nth(1)).to_be_visible()
    points = curve(page)
    page.wait_for_function(f"(document.querySelectorAll('.js-plotly-plot')[0].data[0].x.length) > {points}")
    other = window(browser)
    visit(other, url)
    expect(status(other)).to_have_text(re.compile(r"A training run is under way \(long\): .* left"))
    other.close()
    visit(page, url)  # reloaded
    expect(field(page, "Training")).to_have_value("long: under way")
    wait_for_steps(page, before)  # it continued meanwhile, and still does
    page.get_by_role("button", name="Stop training").click()
    expect(status(page)).to_have_text(re.compile("Stopped at step"))
    stopped = steps(page)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(status(page)).to_have_text(re.compile("A training run is under way"))
    wait_for_steps(page, stopped)
    training = Registry().get("long")
    assert training and [p.step for p in training.progress.points] == sorted({p.step for p in training.progress.points})
    page.get_by_role("button", name="Stop training").click()
    expect(status(page)).to_have_text(re.compile("Stopped at step"))
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("button", name="Delete it for good")).to_be_hidden()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete it for good").click()
    expect(status(page)).to_have_text(re.compile("Nothing has been trained yet"))
    assert not (home / "adapters" / "long").exists()
    page.close()


def test_what_was_trained_is_used_in_the_playground(page: Page, home: Path, tmp_path: Path) -> None:
    ask(page, home, "short", "0.1")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(status(page)).to_have_text(re.compile(r"Finished: \d+ steps in"))
    expect(page.locator(".ss-tile", has_text="Tokens per step").locator("visible=true").first).to_contain_text(
        re.compile(r"[1-5]\.\d\d")
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as zip").click()
    download.value.save_as(tmp_path / "short.zip")
    with zipfile.ZipFile(tmp_path / "short.zip") as archive:
        assert "short/adapter.safetensors" in archive.namelist() and archive.testzip() is None
    page.get_by_role("button", name="Use it in the Playground").click()
    expect(page.get_by_text(re.compile(r"Model: .*tiny \+ short on cpu"))).to_be_visible()
    expect(page.get_by_text("short is loaded").locator("visible=true")).to_be_visible()
    assert page.evaluate("scrollY") == 0
    page.get_by_label("Prompt", exact=True).first.fill("20 30\n\n5")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".ss-player .ss-badge").first).to_be_hidden()  # no recording any more
    expect(page.locator(".ss-player").first).to_have_attribute("data-state", "done")
    expect(page.get_by_text("same text ✓").first).to_be_visible()


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(
    browser: Browser, url: str, home: Path, width: int, theme: str
) -> None:
    if Registry().get("done") is None:
        (put_training(home / "adapters", "done", stopped=True) / "checkpoint").mkdir()
    page = window(browser, width)
    visit(page, f"{url}?__theme={theme}")
    upload(page, home / "bad.jsonl")
    expect(page.get_by_text("Line 4: not valid JSON")).to_be_visible()
    expect(page.get_by_label("Train on the 2 good rows")).to_be_visible()
    field(page, "Training").click()
    page.get_by_role("option", name="done: stopped").click()
    expect(status(page)).to_have_text(re.compile("Stopped at step 20"))
    expect(page.locator(".ss-plot .js-plotly-plot").nth(1)).to_be_visible()
    unfold(page, "More settings")
    unfold(page, "Model card")
    expect(page.get_by_role("heading", name="Streams for questions")).to_be_visible()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("button", name="Delete it for good")).to_be_visible()
    assert serious_in_both_themes(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("SPECSTREAM_SHOTS"):
        page.screenshot(path=f"{folder}/finetune-{width}-{theme}.png", full_page=True)
    page.close()
