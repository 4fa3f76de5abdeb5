"""The Benchmark tab in a real browser, on the toy engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, Page, expect

from specstream import bench
from specstream.params import METHODS
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from tests.browsing import MARKS, load, open_tab, overhear, serious_in_both_themes, served, unfold, visit, window
from tests.conftest import Pace
from tests.test_figures import report as report
from ui.access_rules import DEMO
from ui.tabs.benchmark import PACES

pytestmark = MARKS
CHARTS_FIT = """() => [...document.querySelectorAll(".ss-plot")].filter((frame) => frame.offsetParent).every((frame) =>
  [...frame.querySelectorAll(".main-svg")].every((chart) =>
    chart.getBoundingClientRect().right <= frame.getBoundingClientRect().right + 1))"""
QUICK = 2  # prompts of a benchmark that is to end soon


@pytest.fixture(scope="module")
def runlog(tmp_path_factory: pytest.TempPathFactory, report: dict[str, Any]) -> RunLog:
    """A log with a result of every kind, from the command line."""
    log = RunLog(tmp_path_factory.mktemp("log") / "runs.db", enabled=True)
    head = bench.described(load_toy(pace=0)) | {"repeats": 1, "sampling": {"max_new_tokens": 24}, "task": "e2e"}
    log.add_benchmark(head | report)
    return log


@pytest.fixture(scope="module")
def url(runlog: RunLog) -> Iterator[str]:
    with served(runlog) as url:
        yield url


def start(page: Page, prompts: int = QUICK, repeats: int = 1) -> None:
    run = page.get_by_role("button", name="Run benchmark")
    expect(run).to_be_enabled()  # the previous run has ended, and overwrites no input
    for label, value in (("Prompts", prompts), ("Repeats", repeats)):
        page.get_by_label(label, exact=True).fill(str(value))
        expect(page.get_by_label(label, exact=True)).to_have_value(str(value))
    run.click()


def status(page: Page) -> Any:
    return page.locator(".ss-toolbar .ss-status").locator("visible=true")


def charts(page: Page) -> Any:
    return page.locator(".ss-plot .js-plotly-plot").locator("visible=true")


def wait_until_done(page: Page) -> None:
    expect(status(page)).to_have_text(re.compile("^Done"))


def cells(page: Page, column: str) -> list[str]:
    table = page.locator(".ss-grid").locator("visible=true").first
    place = table.locator("thead th").all_inner_texts().index(column)
    return [row.locator("th, td").nth(place).inner_text() for row in table.locator("tbody tr").all()]


def test_methods_are_measured_with_time_left_and_kept(browser: Browser, url: str, runlog: RunLog, pace: Pace) -> None:
    with visit(browser, url, "Benchmark") as page:
        expect(page.get_by_text("Not with the toy model").first).to_be_visible()
        start(page)
        expect(page.get_by_role("progressbar")).to_be_visible()
        pace.factor = 20
        expect(page.locator(".ss-progress")).to_have_text(re.compile(r"Run \d+ of 12, about \d+ \w+ left"))
        expect(page.get_by_role("button", name="Run benchmark")).to_be_disabled()
        pace.factor = 0.1
        wait_until_done(page)
        assert cells(page, "method") == [kind.label for kind in METHODS.values()]
        assert cells(page, "identical") == [f"{QUICK}/{QUICK}"] * len(METHODS)
        for heading in (
            "Speed-up over standard decoding",
            "Tokens per step and measured speed-up",
            "Acceptance by tokens ahead",
        ):
            expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(charts(page)).to_have_count(3)
        assert page.get_by_role("progressbar").count() == 0
        with page.expect_download() as download:
            page.get_by_role("button", name="Download these results").or_(
                page.get_by_role("link", name="Download these results")
            ).first.click()
        report = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert runlog.benchmark(runlog.benchmarks()[0]["id"]) == report
    assert [row["method"] for row in report["rows"]] == list(METHODS)


def test_cancel_keeps_what_is_complete(browser: Browser, url: str, pace: Pace) -> None:
    with visit(browser, url, "Benchmark") as page:
        start(page, prompts=8, repeats=2)
        expect(charts(page).first).to_be_visible()  # as they come: long before the end
        pace.factor = 100
        expect(page.get_by_role("button", name="Run benchmark")).to_be_disabled()
        page.get_by_role("button", name="Cancel").click()
        expect(status(page)).to_have_text("Stopped by you. What was complete is shown and kept.")
        expect(page.get_by_role("button", name="Run benchmark")).to_be_enabled()
        expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
        done = cells(page, "identical")[0].split("/")
        assert done[0] == done[1] and 0 < int(done[1]) < 8
        for kind in METHODS.values():
            box = page.get_by_role("checkbox", name=kind.label, exact=True).locator("visible=true")
            if box.is_enabled():
                box.uncheck()
        start(page)
        expect(status(page)).to_have_text(re.compile("^No method is chosen"))


def test_a_number_out_of_its_limits_is_refused_by_name(browser: Browser, url: str) -> None:
    with visit(browser, url, "Benchmark") as page:
        start(page, prompts=5000)
        expect(status(page)).to_have_text("Prompts must be a whole number from 1 to 1,000, not 5,000.")


def test_a_page_loaded_again_finds_the_benchmark(browser: Browser, url: str, pace: Pace) -> None:
    page = window(browser)  # a page that goes away says so on the console
    load(page, url)
    open_tab(page, "Benchmark")
    pace.factor = 8
    start(page, prompts=2, repeats=2)
    expect(page.locator(".ss-progress")).to_contain_text("left")
    page.reload()
    open_tab(page, "Benchmark")
    expect(page.locator(".ss-progress")).to_contain_text(re.compile(r"Run \d+ of 24"))
    pace.factor = 0.1
    wait_until_done(page)
    assert cells(page, "identical")[0] == "2/2"
    page.reload()  # the run has ended, and the log has it
    open_tab(page, "Benchmark")
    expect(status(page)).to_have_text("Your last result, from the log.")
    assert cells(page, "identical")[0] == "2/2"
    page.close()


def test_the_machine_is_tuned_and_the_playground_takes_the_settings(
    browser: Browser, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ui.html.results", "ui.tabs.benchmark"):  # on a busy machine the toy's gain may be lost in noise
        monkeypatch.setattr(f"{module}.fastest_tried", lambda tuned: tuned["settings"])
    monkeypatch.setitem(PACES, "Quick, less exact", 4.0)
    with visit(browser, url, "Benchmark") as page:
        page.get_by_label("Prompts", exact=True).fill("4")
        unfold(page, "Tune for this machine")
        page.get_by_role("radio", name="Quick, less exact").check()
        told = overhear(page, ".ss-progress")
        page.get_by_role("button", name="Find the best settings").click()
        wait_until_done(page)
        assert any("Measuring the cost of a step" in words for words in told())
        advice = page.locator(".ss-card").filter(has_text="Recommended on this machine")
        expect(advice).to_contain_text("Tried on other prompts")
        said = advice.inner_text()
        expect(page.get_by_role("heading", name="Cost of a step")).to_be_visible()
        expect(page.get_by_role("heading", name="Predicted against measured")).to_be_visible()
        page.wait_for_function(CHARTS_FIT)
        page.get_by_role("button", name="Use these settings").click()
        expect(page.get_by_role("tab", name="Playground", selected=True)).to_be_visible()
        unfold(page, "Model:")
        budget = re.search(r"tree budget (\d+)", said)
        shown = page.get_by_label("Tree budget").locator("visible=true").first
        assert budget
        expect(shown).to_have_value(budget[1])
        expect(page.get_by_label("Method", exact=True).first).to_have_value("Speculative Streaming")


def test_earlier_results_stand_beside(browser: Browser, url: str, runlog: RunLog, tmp_path: Path) -> None:
    with visit(browser, url, "Benchmark") as page:
        start(page)
        wait_until_done(page)
        unfold(page, "Earlier results")
        page.get_by_label("From the log").click()
        page.get_by_role("option").first.click()
        expect(page.locator(".ss-grid").locator("visible=true")).to_have_count(2)
        report = runlog.benchmark(runlog.benchmarks()[0]["id"])
        (tmp_path / "monday.json").write_text(json.dumps(report))
        (tmp_path / "junk.json").write_text("[]")
        upload = page.locator("input[type=file]").last
        upload.set_input_files(str(tmp_path / "monday.json"))
        expect(page.get_by_role("heading", name=re.compile("monday"))).to_be_visible()
        expect(page.locator(".ss-grid").locator("visible=true")).to_have_count(3)
        assert len(charts(page).first.evaluate("e => e.data[0].x")) == 3
        page.get_by_role("button", name="Remove this file").or_(page.get_by_label("Clear")).first.click()
        expect(page.locator(".ss-grid").locator("visible=true")).to_have_count(2)
        page.locator("input[type=file]").last.set_input_files(str(tmp_path / "junk.json"))
        expect(status(page)).to_have_text(re.compile("junk.json is no result of bench --json"))


def test_times_are_those_of_the_visitor(browser: Browser, url: str, runlog: RunLog) -> None:
    """In the heading of a result, and in the list and the names of earlier ones."""
    context = browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
    page = context.new_page()
    load(page, url)
    open_tab(page, "Benchmark")
    start(page)
    wait_until_done(page)
    measured = datetime.fromisoformat(runlog.benchmarks()[0]["measured_utc"]).astimezone(ZoneInfo("Asia/Tokyo"))
    heading = page.locator("h3").filter(has_text="2 prompts").first
    expect(heading).to_have_text(re.compile(rf"{measured.day} .*{measured:%Y}, {measured:%H:%M}$"))
    unfold(page, "Earlier results")
    page.get_by_label("From the log").click()
    option = page.get_by_role("option").first
    expect(option).to_contain_text(f"{measured:%Y-%m-%d %H:%M}, ")
    option.click()
    expect(page.get_by_role("heading", name=f"{measured:%Y-%m-%d %H:%M}")).to_be_visible()
    context.close()


def test_own_prompts_are_read_from_a_file(browser: Browser, url: str, tmp_path: Path) -> None:
    rows, questions = tmp_path / "rows.jsonl", tmp_path / "question.jsonl"
    rows.write_text('{"meaning_representation": "name[A]"}\n{"meaning": "name[B]"}\n')
    questions.write_text('{"question_id": 1, "category": "writing", "turns": ["Text: The", "Text: In"]}\n')
    with visit(browser, url, "Benchmark") as page:
        unfold(page, "Your own prompts")
        page.locator("input[type=file]").first.set_input_files(str(rows))
        expect(page.get_by_role("cell", name="rows.jsonl")).to_be_visible()
        start(page)
        expect(status(page)).to_have_text(re.compile("^rows.jsonl, line 2: the column 'meaning_rep"))
        start(page, prompts=1)
        wait_until_done(page)
        expect(page.locator(".ss-grid").locator("visible=true").first).to_contain_text("1/1")
        assert cells(page, "identical")[0] == "1/1"
        page.get_by_role("button", name="Remove this file").or_(page.get_by_label("Clear")).first.click()
        page.locator("input[type=file]").first.set_input_files(str(questions))
        expect(page.get_by_role("cell", name="question.jsonl")).to_be_visible()
        start(page, prompts=1)
        expect(page.locator(".ss-grid").locator("visible=true").first).to_contain_text("2/2")


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(
    browser: Browser, url: str, width: int, theme: str, runlog: RunLog
) -> None:
    page = window(browser, width)
    load(page, f"{url}?__theme={theme}")
    open_tab(page, "Benchmark")
    for fold in ("Your own prompts", "Tune for this machine", "Earlier results"):
        unfold(page, fold)
    page.get_by_label("From the log").click()
    page.get_by_role("option").last.click()  # the oldest: it has every chart
    expect(page.locator(".ss-grid").locator("visible=true")).to_have_count(1)
    expect(charts(page)).to_have_count(5)
    assert serious_in_both_themes(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    assert charts(page).evaluate_all(wide) == 0
    page.close()


def test_strangers_give_no_files(browser: Browser, tmp_path: Path) -> None:
    with served(RunLog(tmp_path / "runs.db", enabled=True), DEMO) as url, visit(browser, url, "Benchmark") as page:
        expect(page.get_by_role("button", name="Run benchmark")).to_be_visible()
        assert page.get_by_text("Your own prompts").locator("visible=true").count() == 0
        assert page.get_by_text("Transformers generate").locator("visible=true").count() == 0
        unfold(page, "Earlier results")
        expect(page.get_by_label("From the log")).to_be_visible()
        assert page.locator("input[type=file]").locator("visible=true").count() == 0
