"""The Sessions tab: the log of runs, and the walk back through one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from specstream.runlog import RunLog, RunLogError
from ui import history, render, runview
from ui.files import downloads
from ui.runview import RunView

TAB = "sessions"
PAGE = 15  # runs on a page of the table
NO_LOG = "Runs are not logged here: the terminal said why when the page was started."
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Updates = dict[Any, Any]


@dataclass
class Sessions:
    """The tab's parts."""

    search: gr.Textbox
    refresh: gr.Button
    table: gr.Dataframe
    ids: gr.State
    place: gr.State
    previous: gr.Button
    following: gr.Button
    where: gr.HTML
    database: gr.Button
    copy: gr.DownloadButton
    opened: gr.Column
    facts: gr.HTML
    jsonl: gr.DownloadButton
    csv: gr.DownloadButton
    view: RunView

    @property
    def listing(self) -> list[Any]:
        return [self.table, self.ids, self.place, self.previous, self.following, self.where]

    @property
    def opening(self) -> list[Any]:
        return [self.where, self.opened, self.facts, self.jsonl, self.csv, *self.view.outputs]

    def open(self, runlog: RunLog, run: str, folder: Path) -> Updates:
        """Show a logged run as the Playground showed it."""
        found = runlog.run(run)
        jsonl, csv = history.export_run(runlog, run, folder)
        return self.view.ended(history.view(runlog, found)) | {
            self.opened: gr.update(visible=True),
            self.facts: render.facts(history.facts(found)),
            self.jsonl: str(jsonl),
            self.csv: str(csv),
        }

    def page(self, runlog: RunLog, search: str, place: int) -> Updates:
        """One page of the table, from run number ``place`` on."""
        total = runlog.count(search=search)
        place = max(0, min(place, (total - 1) // PAGE * PAGE))
        found = runlog.runs(limit=PAGE, offset=place, search=search)
        return {
            self.table: gr.update(value=[history.row(run) for run in found]),
            self.ids: [run["id"] for run in found],
            self.place: place,
            self.previous: gr.update(interactive=place > 0),
            self.following: gr.update(interactive=place + PAGE < total),
            self.where: render.status(_where(place, len(found), total, search)),
        }


def _where(place: int, shown: int, total: int, search: str) -> str:
    if total:
        return f"Runs {place + 1} to {place + shown} of {total}, newest first. Choose one to walk through it."
    return "No run matches." if search else "No runs yet: each run of the Playground is kept here."


def layout() -> Sessions:
    """Lay out the tab, empty."""
    with gr.Row(elem_classes="ss-search"):
        search = gr.Textbox(label="Search", placeholder="words of the prompt or the text", scale=4)
        refresh = gr.Button("Refresh", size="sm", scale=0, min_width=110)
        database = gr.Button("Download the database", size="sm", scale=0, min_width=190)
    copy = gr.DownloadButton(visible="hidden", elem_id="database-copy")
    where = gr.HTML(render.status("No runs yet: each run of the Playground is kept here."))
    table = gr.Dataframe(
        headers=list(history.HEADERS), interactive=False, label="Runs", show_label=False, wrap=False,
        column_widths=list(history.WIDTHS), elem_id="runs", max_height=520,
    )  # fmt: skip
    with gr.Row():
        previous = gr.Button("Newer", size="sm", interactive=False)
        following = gr.Button("Older", size="sm", interactive=False)
    with gr.Column(visible=False) as opened:
        facts = gr.HTML()
        with gr.Row():
            jsonl = gr.DownloadButton("This run as JSON lines", size="sm")
            csv = gr.DownloadButton("Its steps as CSV", size="sm")
        view = runview.layout()
    return Sessions(
        search, refresh, table, gr.State([]), gr.State(0), previous, following, where, database, copy, opened, facts,
        jsonl, csv, view,
    )  # fmt: skip


def wire(tab: Sessions, opened: gr.Tab, runlog: RunLog | None) -> None:
    """Connect the tab to the log."""
    if runlog is None:
        opened.select(lambda: render.status(NO_LOG, "bad"), None, tab.where, **QUIET)
        return
    folder = downloads()

    def listed(search: str, place: int) -> Updates:
        return _told(tab, lambda: tab.page(runlog, search, place))

    def chosen(ids: list[str], event: gr.SelectData) -> Updates:
        return _told(tab, lambda: tab.open(runlog, ids[event.index[0]], folder) if event.index[0] < len(ids) else {})

    def copy() -> Updates:
        return _told(tab, lambda: {tab.copy: str(history.export_database(runlog, folder))})

    fetch = "() => setTimeout(() => document.querySelector('#database-copy').click(), 200)"
    tab.database.click(copy, None, [tab.copy, tab.where], **QUIET).success(None, js=fetch, api_visibility="private")
    form = [tab.search, tab.place]
    opened.select(listed, form, tab.listing, **QUIET)
    tab.refresh.click(listed, form, tab.listing, **QUIET)
    tab.search.change(lambda search: listed(search, 0), tab.search, tab.listing, trigger_mode="always_last", **QUIET)
    tab.previous.click(lambda search, place: listed(search, place - PAGE), form, tab.listing, **QUIET)
    tab.following.click(lambda search, place: listed(search, place + PAGE), form, tab.listing, **QUIET)
    tab.table.select(chosen, tab.ids, tab.opening, **QUIET)
    tab.view.wire()


def wire_links(tab: Sessions, tabs: gr.Tabs, demo: gr.Blocks, runlog: RunLog | None) -> None:
    """A page whose address ends in ``?run=ID`` opens with that run."""
    if runlog is None:
        return
    folder = downloads()

    def linked(request: gr.Request) -> Updates:
        run = request.query_params.get("run")
        if not run:
            return {tabs: gr.skip()}
        return {tabs: gr.update(selected=TAB)} | _told(tab, lambda: tab.open(runlog, run, folder))

    demo.load(linked, None, [tabs, *tab.opening], **QUIET)


def _told(tab: Sessions, work: Callable[[], Updates]) -> Updates:
    """The updates, or the log's sentence where it can't be read."""
    try:
        return work()
    except RunLogError as error:
        return {tab.where: render.status(str(error), "bad")}
