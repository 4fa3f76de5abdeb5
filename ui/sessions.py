"""The Sessions tab: the log of runs, and the walk back through one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from specstream.events import Lane
from ui import history, render, runview
from ui.runview import RunView

PAGE = 15  # runs on a page of the table
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
    database: gr.DownloadButton
    opened: gr.Column
    facts: gr.HTML
    jsonl: gr.DownloadButton
    csv: gr.DownloadButton
    view: RunView

    @property
    def listing(self) -> list[Any]:
        return [self.table, self.ids, self.place, self.previous, self.following, self.where]

    def page(self, runlog: Any, search: str, place: int) -> Updates:
        """One page of the table, from run number ``place`` on."""
        total = runlog.count(search=search)
        place = max(0, min(place, (total - 1) // PAGE * PAGE))
        rows = runlog.runs(limit=PAGE, offset=place, search=search)
        return {
            self.table: gr.update(value=[history.row(run) for run in rows]),
            self.ids: [history.run_id(run) for run in rows],
            self.place: place,
            self.previous: gr.update(interactive=place > 0),
            self.following: gr.update(interactive=place + PAGE < total),
            self.where: render.status(_where(place, len(rows), total, search)),
        }

    def open(self, runlog: Any, run: str, folder: Path) -> Updates:
        """Show a logged run as the Playground showed it."""
        view = history.view(runlog, run)
        jsonl, csv = history.export_run(runlog, run, folder)
        return self.view.ended(view) | {
            self.opened: gr.update(visible=True),
            self.facts: render.facts(history.facts(runlog.run(run))),
            self.jsonl: str(jsonl),
            self.csv: str(csv),
        }


def _where(place: int, shown: int, total: int, search: str) -> str:
    if total:
        return f"Runs {place + 1} to {place + shown} of {total}, newest first. Choose one to walk through it."
    return "No run matches." if search else "No runs yet: each run of the Playground is kept here."


def layout() -> Sessions:
    """Lay out the tab, empty."""
    with gr.Row(equal_height=True):
        search = gr.Textbox(label="Search", placeholder="words of the prompt or the text", scale=4)
        refresh = gr.Button("Refresh", scale=0, min_width=110)
        database = gr.DownloadButton("Download the database", scale=0, min_width=210)
    where = gr.HTML(render.status("No runs yet: each run of the Playground is kept here."), elem_classes="ss-slot")
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
        search, refresh, table, gr.State([]), gr.State(0), previous, following, where, database, opened, facts,
        jsonl, csv, view,
    )  # fmt: skip


def wire(tab: Sessions, opened: gr.Tab, runlog: Any) -> None:
    """Connect the tab to the log."""
