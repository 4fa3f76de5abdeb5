"""The Sessions tab: its list and filters; opening, annotating, comparing, deleting and exporting runs."""

from __future__ import annotations

import csv
import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.browsing import (
    LATE_NUMBERS,
    MARKS,
    load,
    serious,
    served,
    unfold,
    visit,
    window,
)  # sets the environment of gradio

# isort: split
import gradio as gr
from playwright.sync_api import Browser, Page, expect

from specstream.events import Lane, Step
from specstream.params import Method, PromptLookup, Sampling, Streaming
from specstream.runlog import RunLog, RunLogError
from specstream.session import run_session
from specstream.testing.toy import load_toy
from ui.access_rules import DEMO, OPEN, Rules
from ui.state import history, two_runs
from ui.tabs import sessions
from ui.tabs import sessions_list as listing
from ui.tabs.sessions import PAGE, Sessions

pytestmark = pytest.mark.timeout(120)
ENGINE = load_toy(pace=0)


def log_run(runlog: RunLog, prompt: str, method: Method | None = None, tokens: int = 12, who: str | None = None) -> str:
    """Log a complete run with its comparison, as the Playground does. Returns its id."""
    method = method or Streaming()
    sampling = Sampling(max_new_tokens=tokens)
    settings = {"method": method.to_dict(), "sampling": sampling.to_dict()}
    with runlog.start(ENGINE.info, prompt, "e2e", method.name, settings, who) as recorder:
        for item in run_session(ENGINE, ENGINE.prompt("e2e", prompt), method, sampling):
            recorder.add(*item) if isinstance(item, tuple) else recorder.verdict(item)
    return recorder.run_id


@pytest.fixture
def runlog(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "runs.db")


@pytest.fixture
def tab() -> Sessions:
    with gr.Blocks():
        return sessions.layout()


def form(tab: Sessions, **changes: Any) -> dict[Any, Any]:
    """The values that the page sends for the list's form, with some of them filled in."""
    parts = tab.listing.filters | {"sort": tab.listing.sort, "key": tab.listing.key, "zone": tab.listing.zone}
    return {part: changes.get(name, part.value) for name, part in parts.items()} | {tab.listing.place: 0}


def listed(tab: Sessions, runlog: RunLog, place: int = 0, rules: Rules = OPEN, **changes: Any) -> list[str]:
    """The ids on a page of the list."""
    updates = tab.listing.page(runlog, form(tab, **changes), place, rules)
    return re.findall(r'<button type="button" data-run="([^"]+)"', updates[tab.listing.table])


def test_runs_are_paged_searched_and_opened(tab: Sessions, runlog: RunLog, tmp_path: Path) -> None:
    ids = [log_run(runlog, f"{'walrus' if n == 3 else 'pigeon'} number {n}", tokens=4) for n in range(PAGE + 2)]
    values, list_ = form(tab), tab.listing
    first, second = list_.page(runlog, values, 0), list_.page(runlog, values, PAGE)
    assert listed(tab, runlog) == ids[:1:-1] and listed(tab, runlog, PAGE) == ids[1::-1]
    assert first[list_.following]["interactive"] and not first[list_.previous]["interactive"]
    assert second[list_.previous]["interactive"] and not second[list_.following]["interactive"]
    assert (
        first[list_.following]["visible"] and not list_.following.visible
    )  # there are pages only where they are needed
    assert list_.page(runlog, values, 10_000)[list_.place] == PAGE  # past the end: the last page
    assert listed(tab, runlog, search="walrus") == [ids[3]]
    opened = tab.opened.open(runlog, ids[3], tmp_path)
    assert "walrus number 3" in opened[tab.opened.facts] and "same text" in opened[tab.opened.view.headline]
    exported = [json.loads(line) for line in Path(opened[tab.opened.jsonl]).read_text().splitlines()]
    assert exported[0]["prompt"] == "walrus number 3" and exported[0]["events"]["method"]


def test_filters_and_orders_of_the_form(tab: Sessions, runlog: RunLog) -> None:
    streaming = log_run(runlog, "one", tokens=30)
    lookup = log_run(runlog, "two", PromptLookup(), tokens=20)
    runlog.set_star(streaming)
    assert listed(tab, runlog, method="prompt_lookup") == [lookup]
    assert listed(tab, runlog, model="other") == [] and len(listed(tab, runlog, model="toy")) == 2
    assert listed(tab, runlog, starred=True) == [streaming]
    assert listed(tab, runlog, sort="tokens") == [streaming, lookup] and listed(tab, runlog) == [lookup, streaming]
    today = runlog.run(lookup)["started_utc"][:10]
    assert len(listed(tab, runlog, since=today, until=today)) == 2
    assert listed(tab, runlog, since="2999-01-01") == []
    started = datetime.fromisoformat(runlog.run(lookup)["started_utc"])
    for zone in ("Pacific/Kiritimati", "Pacific/Niue"):  # 25 hours apart
        day = started.astimezone(ZoneInfo(zone)).date()
        assert len(listed(tab, runlog, since=str(day), until=str(day), zone=zone)) == 2
        assert listed(tab, runlog, until=str(day - timedelta(1)), zone=zone) == []
    updates = tab.listing.page(runlog, form(tab, search="nothing like it"), 0)
    assert "No runs match" in updates[tab.listing.where]
    known = updates[tab.listing.filters["method"]]["choices"]
    assert [name for _, name in known] == ["", "prompt_lookup", "streaming"]
    runlog.delete(lookup)  # the last one of its method, which is still chosen
    updates = tab.listing.page(runlog, form(tab, method="prompt_lookup"), 0)
    assert "prompt_lookup" in [name for _, name in updates[tab.listing.filters["method"]]["choices"]]


def test_a_wrong_day_and_an_unknown_run_are_sentences(tab: Sessions, runlog: RunLog) -> None:
    where = tab.listing.where
    told = sessions._told(tab, lambda: tab.opened.open(runlog, "01NOSUCHRUN", Path()))
    assert list(told) == [where] and "There is no run" in told[where]
    told = sessions._told(tab, lambda: tab.listing.page(runlog, form(tab, since="May"), 0))
    assert list(told) == [where] and "write it as" in told[where]


def test_an_interrupted_run_opens_as_far_as_it_got(tab: Sessions, runlog: RunLog, tmp_path: Path) -> None:
    recorder = runlog.start(ENGINE.info, "cut off", "raw", "streaming", {})
    events = list(ENGINE.generate("Text: The", Streaming(), Sampling(max_new_tokens=20)))
    for event in events[:3]:
        recorder.add(Lane.METHOD, event)
    while len(runlog.events(recorder.run_id)) < 3:  # the recorder saves by itself; it is never closed
        time.sleep(0.05)
    opened = tab.opened.open(runlog, recorder.run_id, tmp_path)
    assert opened[tab.opened.view.steps] == [e for e in events[:3] if isinstance(e, Step)]
    assert "✓" not in opened[tab.opened.view.headline]


def test_two_runs_are_compared(runlog: RunLog) -> None:
    one = two_runs.side(runlog, log_run(runlog, "name[A<b>]", Streaming(budget=4), tokens=20))
    other = two_runs.side(runlog, log_run(runlog, "name[B]", Streaming(budget=9), tokens=12))
    rows = {name: (left, right) for name, left, right in two_runs.rows(one, other)}
    assert rows["Prompt"] == ("name[A<b>]", "name[B]") and rows["Tokens"] == ("20", "12")
    assert rows["Tree budget"] == ("4", "9") and "Seed" not in rows
    assert two_runs.alike(one, other) == "the defaults"
    html = two_runs.compared(one, other)
    assert "≠ Prompt" in html and "≠ Model" not in html and "<b>" not in html and "A&lt;b&gt;" in html


def test_where_two_texts_part(runlog: RunLog) -> None:
    run = two_runs.side(runlog, log_run(runlog, "x"))
    one, other = (two_runs.Side(run.run, run.stats, texts) for texts in (("ab", "cd", "ef"), ("abc", "dX")))
    assert "first 4 characters" in two_runs.difference(one, other)
    assert "token 3 of run A, token 2 of run B" in two_runs.difference(one, other)
    assert one.token_at(0) == 1 and one.token_at(6) == 4
    assert "same text, 6 characters" in two_runs.difference(one, one)
    assert "from the first character on" in two_runs.difference(one, two_runs.Side(run.run, run.stats, ("x",)))
    html = two_runs.compared(one, other)
    assert '>abcd<mark class="ss-part">≠ef</mark>' in html and '>abcd<mark class="ss-part">≠X</mark>' in html


def test_in_a_demo_nobody_sees_the_runs_of_others(tab: Sessions, runlog: RunLog, tmp_path: Path) -> None:
    mine, theirs = log_run(runlog, "mine", who="me"), log_run(runlog, "theirs", who="them")
    assert listed(tab, runlog, rules=DEMO, key="me") == [mine]
    assert listed(tab, runlog, rules=DEMO, key="") == listed(tab, runlog, rules=DEMO, key=None) == []
    assert len(listed(tab, runlog, key="me")) == 2
    with pytest.raises(RunLogError, match="There is no run"):
        tab.opened.open(runlog, theirs, tmp_path, "me")
    with pytest.raises(RunLogError, match="There is no run"):
        tab.opened.compare(runlog, [mine, theirs], "me")
    assert tab.opened.open(runlog, mine, tmp_path, "me")[tab.opened.run] == mine


@pytest.mark.parametrize(
    ("task", "prompt", "name"),
    [
        ("e2e", "name[Paper Moon], eatType[pub], area[riverside], near[Tram Museum]", "Paper Moon, pub, riverside"),
        ("e2e", "no facts at all", "no facts at all"),
        ("sql", "CREATE TABLE t (a INTEGER)\n\nHow many?", "How many?"),
        ("dialogsum", "#Person1#: Good morning.\n#Person2#: Hello.", "Good morning. Hello."),
        ("raw", "Once upon a time", "Once upon a time"),
    ],
)
def test_a_run_is_named_by_what_its_prompt_is_about(task: str, prompt: str, name: str) -> None:
    assert history.title({"task": task, "prompt": prompt}) == name


def test_the_list_escapes_what_was_typed_and_says_what_came(tab: Sessions, runlog: RunLog) -> None:
    run = runlog.run(log_run(runlog, "<b>x</b>"))
    html = listing.runs([run | {"speedup": 2.44, "star": True}], opened=run["id"])
    assert "<b>" not in html and "2.4× faster · same text" in html and "★" in html and 'aria-current="true"' in html
    assert f'datetime="{run["started_utc"][:19]}Z"' in html


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> RunLog:
    """One log for all browser tests: many runs, and some that a search finds alone."""
    found = RunLog(tmp_path_factory.mktemp("log") / "runs.db")
    for n in range(PAGE + 1):
        log_run(found, f"number {n} of many", tokens=3 + n)
    log_run(found, "otter with heron", tokens=12)
    log_run(found, "heron with otter", tokens=20)
    log_run(found, "wren", PromptLookup())
    return found


@pytest.fixture(scope="module")
def url(shared: RunLog) -> Iterator[str]:
    with served(shared) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visit(browser, url, "Sessions") as found:
        shown(found, "Runs 1 to")
        yield found


def choose(page: Page, prompt: str) -> None:
    page.locator(".ss-runs button").filter(has_text=prompt).first.click()
    expect(page.locator(".ss-facts").filter(has_text=prompt).last).to_be_visible()


def shown(page: Page, words: str) -> None:
    expect(page.get_by_text(re.compile(words))).to_be_visible()


def tick(page: Page, prompt: str) -> None:
    page.get_by_role("checkbox", name=f"Tick {prompt}").check()


def search(page: Page, words: str, found: int) -> None:
    page.get_by_label("Search").fill(words)
    shown(page, f"Runs 1 to {found} of {found}")


class TestInABrowser:
    pytestmark = MARKS

    def test_filter_star_note_and_delete(self, page: Page, shared: RunLog) -> None:
        unfold(page, "Filters and order")
        page.get_by_label("Method", exact=True).locator("visible=true").last.click()
        page.get_by_role("option", name="Prompt lookup").click()
        shown(page, "Runs 1 to 1 of 1")
        (wren,) = shared.ids(search="wren")
        choose(page, "wren")
        page.get_by_label("Note").press_sequentially("a fine bird")
        shown(page, "The note is kept")
        page.get_by_label("Star", exact=True).check()
        expect(page.locator(".ss-runs button").filter(has_text="★")).to_be_visible()
        page.get_by_role("button", name="Delete this run").click()
        page.get_by_role("button", name="Keep it").click()
        expect(page.get_by_role("button", name="Yes, delete it")).to_be_hidden()
        assert (shared.run(wren)["note"], shared.run(wren)["star"]) == ("a fine bird", True)
        page.get_by_role("button", name="Delete this run").click()
        page.get_by_role("button", name="Yes, delete it").click()
        shown(page, "No runs match")
        assert shared.count(search="wren") == 0 and shared.count() == PAGE + 3
        page.get_by_role("button", name="Clear filters").click()
        shown(page, f"Runs 1 to {PAGE} of {PAGE + 3}")

    def test_two_runs_side_by_side(self, page: Page) -> None:
        boxes = page.locator(".ss-runs input")
        names = boxes.evaluate_all("all => all.map(e => e.ariaLabel)")
        assert len(set(names)) == len(names) and all(name.endswith(" UTC, to compare") for name in names)
        search(page, "otter", 2)
        tick(page, "otter with heron")
        shown(page, "Tick another run")
        tick(page, "heron with otter")
        compared = page.locator(".ss-pair")
        expect(compared.get_by_text("≠ Tokens", exact=True)).to_be_visible()
        assert compared.locator("mark").count() == 1  # the shorter text is the beginning of the longer one
        choose(page, "otter with heron")
        expect(compared).to_have_count(0)
        assert not page.locator(".ss-runs time, .ss-facts time").filter(has_text="UTC").count()

    def test_a_link_opens_its_run_alone(self, browser: Browser, url: str, shared: RunLog) -> None:
        (run,) = shared.ids(search="number 3")
        with visit(browser, url, "Sessions", 390, query=f"&run={run}") as page:
            expect(page.get_by_text("number 3 of many").first).to_be_in_viewport()
            expect(page.get_by_text("toy, adapter toy").first).to_be_in_viewport()
            expect(page.locator(".ss-runs")).to_be_hidden()
            page.get_by_role("button", name="Close").click()
            expect(page.locator("#opened-run")).to_be_hidden()

    def test_files_hold_what_the_filters_let_through(self, page: Page, shared: RunLog, tmp_path: Path) -> None:
        search(page, "heron", 2)
        unfold(page, "Download these runs")
        files = {}
        for form in ("JSON lines", "CSV"):
            with page.expect_download() as download:
                page.get_by_role("button", name=f"These runs as {form}").click()
            files[form] = tmp_path / form
            download.value.save_as(files[form])
        exported = [json.loads(line) for line in files["JSON lines"].read_text().splitlines()]
        assert [run["id"] for run in exported] == shared.ids("newest", search="heron")
        assert exported[0]["events"]["method"]
        with files["CSV"].open(newline="") as table:
            assert [row["prompt"] for row in csv.DictReader(table)] == ["heron with otter", "otter with heron"]

    def test_pages_and_orders(self, page: Page) -> None:
        page.get_by_label("Search").fill("many")
        shown(page, f"Runs 1 to {PAGE} of {PAGE + 1}")
        page.get_by_role("button", name="Next page").click()
        shown(page, f"Runs {PAGE + 1} to {PAGE + 1} of")
        unfold(page, "Filters and order")
        page.get_by_label("Sort by").click()
        page.get_by_role("option", name="oldest").click()
        shown(page, f"Runs 1 to {PAGE} of {PAGE + 1}")
        choose(page, "number 2")  # the row that is chosen is the row that opens, in any order

    @pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light")])
    def test_axe_and_width(self, browser: Browser, url: str, width: int, theme: str) -> None:
        with visit(browser, url, "Sessions", width, theme) as page:
            search(page, "otter", 2)
            assert serious(page) == []
            tick(page, "otter with heron")
            tick(page, "heron with otter")
            expect(page.locator(".ss-pair mark")).to_be_visible()
            assert serious(page) == []
            if width < 720:
                page.get_by_role("button", name="Close").click()
            choose(page, "heron with otter")
            page.get_by_role("button", name="Delete this run").click()
            expect(page.get_by_role("button", name="Yes, delete it")).to_be_visible()
            unfold(page, "Numbers")
            expect(page.locator(".ss-bars").locator("visible=true").nth(1)).to_be_visible()
            assert serious(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width

    def test_a_demo_shows_a_visitor_their_own_runs(self, browser: Browser, runlog: RunLog) -> None:
        theirs = log_run(runlog, "theirs", who="them")
        with served(runlog, DEMO) as address:
            with visit(browser, address, "Sessions") as page:
                shown(page, "No runs yet")
                expect(page.get_by_role("button", name="Download the database")).to_have_count(0)
                log_run(runlog, "mine", who=page.evaluate("sessionStorage.getItem('specstream-visitor')"))
                page.get_by_role("button", name="Refresh").click()
                shown(page, "Runs 1 to 1 of 1")
            with visit(browser, address, "Sessions", query=f"&run={theirs}") as page:
                shown(page, "There is no run")

    def test_a_slow_network_hides_nothing(self, browser: Browser, runlog: RunLog) -> None:
        """Numbers of events that come after their answers: the page is complete, and known to be."""
        log_run(runlog, "mine")
        with served(runlog) as address:
            page = window(browser)
            page.add_init_script(LATE_NUMBERS)
            load(page, f"{address}?run=none")
            shown(page, "There is no run")
            page.get_by_role("button", name="Refresh").click()
            shown(page, "Runs 1 to 1 of 1")
            page.close()


def test_threads_may_list_while_runs_are_written(tab: Sessions, runlog: RunLog) -> None:
    writers = [threading.Thread(target=log_run, args=(runlog, f"prompt {n}")) for n in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        listed(tab, runlog)
    assert len(listed(tab, runlog)) == 4
