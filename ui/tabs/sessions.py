"""The Sessions tab: the list of logged runs, and beside it the opened run, or two that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from specstream.runlog import SORTS, RunLog, RunLogError

from ..access_rules import OPEN, Refused, Rules
from ..components import run_panel
from ..components.handlers import QUIET, Updates
from ..components.run_panel import RunView
from ..files import downloads
from ..html import render
from ..jobs import visitor
from ..jobs.engine_host import Engines
from ..state import history, two_runs
from . import sessions_list as listed

TAB = "sessions"
PAGE = 15  # runs on a page of the list
EMPTY = "No runs yet: press Run in the Playground, and every run is kept here."
NO_LOG = "Runs are not logged here: the terminal said why when the page was started."
CHOOSE = "Choose a run to walk through it, or tick two to compare them."
FETCH = "() => setTimeout(() => document.querySelector('#log-copy').click(), 200)"  # once the link is on the page
CALENDARS = """() => document.querySelectorAll(".ss-day button.calendar").forEach(
  (button) => button.setAttribute("aria-label", "Choose a day"))"""  # gradio gives these buttons no accessible name
SHOW = """() => setTimeout(() => {
  const panel = document.querySelector("#run-panel");
  if (panel && getComputedStyle(panel).position !== "fixed") panel.scrollIntoView({block: "start"});
  else document.querySelector("#close-run")?.focus();
}, 100)"""  # on a phone the panel covers the page
LINKED_DONE = "() => document.documentElement.classList.remove('ss-linked')"
SHEET = ["ss-sheet"]
Values = Mapping[Any, Any]


@dataclass
class Listing:
    """The list of runs. ``filters`` are named as the fields of ``specstream.runlog.Filter``."""

    filters: dict[str, gr.components.Component]
    sort: gr.Dropdown
    key: gr.Textbox
    zone: gr.Textbox  # the visitor's time zone, as the browser names it
    refresh: gr.Button
    where: gr.HTML
    table: gr.HTML
    whole: gr.Column
    clear: gr.Button
    place: gr.State
    previous: gr.Button
    following: gr.Button
    exports: dict[str, gr.Button]
    copy: gr.DownloadButton

    @property
    def inputs(self) -> set[Any]:
        return {*self.filters.values(), self.sort, self.key, self.zone, self.place}

    @property
    def outputs(self) -> list[Any]:
        known = [self.filters["method"], self.filters["model"]]
        return [self.table, self.place, self.previous, self.following, self.where, self.clear, *known]

    def wanted(self, values: Values, rules: Rules) -> dict[str, Any]:
        """The active filters, and whose runs the rules let the visitor see."""
        found = {name: values[part] for name, part in self.filters.items()}
        return found | {"visitor": rules.seen_by(values[self.key]), "zone": values[self.zone]}

    def page(self, runlog: RunLog, values: Values, place: int, rules: Rules = OPEN) -> Updates:
        """One page of the table, from run number ``place`` on."""
        wanted = self.wanted(values, rules)
        total = runlog.count(**wanted)
        place = max(0, min(place, (total - 1) // PAGE * PAGE))
        found = runlog.runs(limit=PAGE, offset=place, sort=values[self.sort], **wanted)
        narrowed = any(value for name, value in wanted.items() if name not in ("visitor", "zone"))
        return {
            self.table: listed.runs(found),
            self.clear: gr.update(visible=narrowed),
            self.place: place,
            self.previous: gr.update(interactive=place > 0, visible=total > PAGE),
            self.following: gr.update(interactive=place + PAGE < total, visible=total > PAGE),
            self.where: render.status(_where(place, len(found), total, narrowed)),
        } | self._known(runlog, wanted)

    def _known(self, runlog: RunLog, wanted: Mapping[str, Any]) -> Updates:
        """The methods and models to choose from: those in the log, and the chosen one, so that gradio accepts it."""

        def known(column: Literal["method", "model"]) -> list[str]:
            found, chosen = runlog.used(column, wanted["visitor"]), wanted[column]
            return found if not chosen or chosen in found else [*found, chosen]

        methods, models = [(history.method_label(name), name) for name in known("method")], known("model")
        return {
            self.filters["method"]: gr.update(choices=[("All methods", ""), *methods]),
            self.filters["model"]: gr.update(choices=[("All models", ""), *models]),
        }


@dataclass
class Opened:
    """One run, opened, or two that are compared. ``run`` is its id, ``sheet`` the panel: over the page on a phone."""

    run: gr.State
    sheet: gr.Column
    close: gr.Button
    everything: gr.Button
    hint: gr.HTML
    pair: gr.HTML
    group: gr.Column
    about: gr.HTML  # prompt and model, above everything else of the run
    facts: gr.HTML
    star: gr.Checkbox
    note: gr.Textbox
    delete: gr.Button
    sure: gr.Row
    confirm: gr.Button
    keep: gr.Button
    jsonl: gr.DownloadButton
    csv: gr.DownloadButton
    view: RunView

    @property
    def outputs(self) -> list[Any]:
        own = [self.run, self.sheet, self.hint, self.pair, self.group, self.about, self.facts, self.star, self.note]
        return [*own, self.sure, self.jsonl, self.csv, *self.view.outputs]

    def open(self, runlog: RunLog, run: str, folder: Path, who: str | None = None) -> Updates:
        """Show a logged run as the Playground showed it.

        ``who`` is the visitor whose runs are visible, None for everybody's.
        """
        found = runlog.run(run, who)
        jsonl, csv = history.export_run(runlog, found["id"], folder)
        return self.view.ended(history.view(runlog, found)) | {
            self.run: found["id"],
            self.sheet: gr.update(elem_classes=[*SHEET, "ss-open"]),
            self.hint: _said(""),
            self.pair: _said(""),
            self.group: gr.update(visible=True),
            self.about: render.asked(history.shorten(found["prompt"]), history.model_words(found)),
            self.facts: render.facts(history.facts(found)),
            self.star: found["star"],
            self.note: found["note"],
            self.sure: gr.update(visible=False),
            self.jsonl: str(jsonl),
            self.csv: str(csv),
        }

    def compare(self, runlog: RunLog, ticked: Sequence[str], who: str | None = None) -> Updates:
        """Two ticked runs side by side; with one ticked, what to do next."""
        if len(ticked) < 2:
            words = "Tick another run to compare the two." if ticked else ""
            return {self.hint: _said(render.status(words, "busy") if words else ""), self.pair: _said("")}
        sides = [two_runs.side(runlog, run, who) for run in ticked]
        one, other = sorted(sides, key=lambda side: side.run["started_utc"])  # the older first
        opened = {
            self.hint: _said(""),
            self.pair: _said(two_runs.compared(one, other)),
            self.group: gr.update(visible=False),
        }
        return opened | {self.run: "", self.sheet: gr.update(elem_classes=[*SHEET, "ss-open"])}

    def closed(self) -> Updates:
        """Nothing is opened."""
        return {
            self.group: gr.update(visible=False), self.run: "", self.sure: gr.update(visible=False),
            self.pair: _said(""), self.hint: _said(render.status(CHOOSE)), self.sheet: gr.update(elem_classes=SHEET),
        }  # fmt: skip


@dataclass
class Sessions:
    """The tab's two parts."""

    missing: gr.HTML  # says that a linked run does not exist; the list has its own message
    listing: Listing
    opened: Opened


def _said(html: str) -> Any:
    """The text; hidden if it is empty."""
    return gr.update(value=html, visible=bool(html))


def _where(place: int, shown: int, total: int, narrowed: bool) -> str:
    if total:
        return f"Runs {place + 1} to {place + shown} of {total:,}."
    return "No runs match your filters." if narrowed else EMPTY


def layout() -> Sessions:
    """Lay out the tab, empty."""
    missing = gr.HTML(visible=False)
    with gr.Row(elem_classes="ss-sessions"):
        with gr.Column(scale=2, min_width=320, elem_classes="ss-list") as whole:
            listing = _listing(whole)
        with gr.Column(scale=5, min_width=320, elem_classes=SHEET, elem_id="run-panel") as sheet:
            opened = _opened(sheet)
    return Sessions(missing, listing, opened)


def _listing(whole: gr.Column) -> Listing:
    search = gr.Textbox(label="Search", placeholder="words of the prompt, the text or your notes")
    with gr.Accordion("Filters and order", open=False) as fold:
        sort = gr.Dropdown(list(SORTS), label="Sort by", interactive=True, min_width=140)
        method = gr.Dropdown([("All methods", "")], value="", label="Method", interactive=True, min_width=140)
        model = gr.Dropdown([("All models", "")], value="", label="Model", interactive=True, min_width=140)
        since, until = _day("From day"), _day("To day")
        starred = gr.Checkbox(label="Starred only", min_width=130)
    fold.expand(None, js=f"() => setTimeout({CALENDARS}, 200)", api_visibility="private")  # they are drawn only now
    with gr.Row(elem_classes="ss-found"):
        where = gr.HTML(render.status(EMPTY), min_width=160)
        clear = gr.Button("Clear filters", size="sm", visible=False, scale=0, min_width=110)
        refresh = gr.Button("Refresh", size="sm", scale=0, min_width=90)
    table = gr.HTML(listed.runs([]), js_on_load=render.KEEP_LOCAL + listed.TICKS, elem_id="runs")
    with gr.Row():
        previous = gr.Button("Previous page", size="sm", interactive=False, visible=False, min_width=120)
        following = gr.Button("Next page", size="sm", interactive=False, visible=False, min_width=120)
    with gr.Accordion("Download these runs", open=False):
        labels = {"jsonl": "These runs as JSON lines", "csv": "These runs as CSV", "db": "Download the database"}
        exports = {form: gr.Button(label, size="sm", min_width=200) for form, label in labels.items()}
    copy = gr.DownloadButton(visible="hidden", elem_id="log-copy")
    filters = {"search": search, "method": method, "model": model, "since": since, "until": until, "starred": starred}
    return Listing(
        filters, sort, visitor.layout(), gr.Textbox(visible=False), refresh, where, table, whole, clear, gr.State(0),
        previous, following, exports, copy,
    )  # fmt: skip


def _day(label: str) -> gr.DateTime:
    return gr.DateTime(
        label=label, include_time=False, type="string", interactive=True, min_width=150, elem_classes="ss-day"
    )


def _opened(sheet: gr.Column) -> Opened:
    with gr.Row(elem_classes="ss-sheet-head"):
        everything = gr.Button("← All runs", size="sm", scale=0, min_width=110, visible=False)
        close = gr.Button("Close", size="sm", scale=0, min_width=90, elem_id="close-run")
    hint = gr.HTML(render.status(CHOOSE))
    compared = gr.HTML(js_on_load=render.KEEP_LOCAL, visible=False)
    with gr.Column(visible=False, elem_id="opened-run") as group:
        about = gr.HTML()
        view = run_panel.layout()
        with gr.Row(elem_classes="ss-search"):
            star = gr.Checkbox(label="Star", interactive=True, scale=0, min_width=110)
            note = gr.Textbox(label="Note", placeholder="Saved as you type", interactive=True, max_lines=4, scale=4)
        facts = gr.HTML(js_on_load=render.KEEP_LOCAL)
        with gr.Row():
            jsonl = gr.DownloadButton("This run as JSON lines", size="sm")
            csv = gr.DownloadButton("Its steps as CSV", size="sm")
            delete = gr.Button("Delete this run", size="sm")
        with gr.Row(visible=False, elem_classes="ss-search") as sure:
            gr.HTML(
                render.status("The run and all its steps are removed from the log for good.", "warn"), min_width=260
            )
            confirm = gr.Button("Yes, delete it", variant="stop", size="sm", scale=0, min_width=160)
            keep = gr.Button("Keep it", size="sm", scale=0, min_width=120)
    return Opened(
        gr.State(""), sheet, close, everything, hint, compared, group, about, facts, star, note, delete, sure, confirm,
        keep, jsonl, csv, view,
    )  # fmt: skip


def wire(tab: Sessions, opened: gr.Tab, demo: gr.Blocks, engines: Engines, runlog: RunLog | None) -> None:
    """Connect the tab to the log."""
    listing, one, rules = tab.listing, tab.opened, engines.rules
    visitor.wire(listing.key, demo)
    demo.load(None, None, listing.zone, js=visitor.ZONE, api_visibility="private")
    if runlog is None:
        opened.select(lambda: render.status(NO_LOG, "bad"), None, listing.where, **QUIET)
        return
    _wire_listing(tab, opened, runlog, rules)
    _wire_exports(tab, runlog, rules)
    _wire_opened(tab, runlog, rules)
    one.view.wire(engines, runlog)


def _wire_listing(tab: Sessions, opened: gr.Tab, runlog: RunLog, rules: Rules) -> None:
    listing, one, folder = tab.listing, tab.opened, downloads()

    def listed_anew(values: dict[Any, Any], move: int = 0) -> Updates:
        return _told(tab, lambda: listing.page(runlog, values, values[listing.place] + move, rules))

    def anew(values: dict[Any, Any]) -> Updates:
        return _told(tab, lambda: listing.page(runlog, values, 0, rules))

    def chosen(key: str, event: gr.EventData) -> Updates:
        who, data = rules.seen_by(key), event._data
        if "pair" in data:
            told = _told(tab, lambda: one.compare(runlog, data["pair"], who))
        else:
            told = _told(tab, lambda: one.open(runlog, str(data["value"]), folder, who))
        return {tab.missing: _said("")} | told

    def cleared(values: dict[Any, Any]) -> Updates:
        empty = {"starred": False, "since": None, "until": None}
        nothing = {part: empty.get(name, "") for name, part in listing.filters.items()}
        return nothing | _told(tab, lambda: listing.page(runlog, values | nothing, 0, rules))

    form, shown = listing.inputs, listing.outputs
    opened.select(listed_anew, form, shown, **QUIET).then(None, js=CALENDARS, api_visibility="private")
    listing.refresh.click(listed_anew, form, shown, **QUIET)
    for part in (*listing.filters.values(), listing.sort):
        asked = part.input if isinstance(part, gr.Dropdown | gr.Checkbox) else part.change
        asked(anew, form, shown, trigger_mode="always_last", **QUIET)
    listing.previous.click(lambda values: listed_anew(values, -PAGE), form, shown, **QUIET)
    listing.following.click(lambda values: listed_anew(values, PAGE), form, shown, **QUIET)
    outputs = [tab.missing, listing.where, *one.outputs]
    picked = listing.table.select(
        chosen, listing.key, outputs, trigger_mode="multiple", **QUIET
    )  # each of two quick ticks
    picked.then(None, js=SHOW, api_visibility="private")
    listing.clear.click(cleared, form, [*dict.fromkeys([*listing.filters.values(), *shown])], **QUIET)
    one.close.click(one.closed, None, one.outputs, queue=False, **QUIET)
    back = [listing.whole, one.everything]
    one.everything.click(
        lambda: (gr.update(visible=True), gr.update(visible=False)), None, back, queue=False, **QUIET
    ).then(listed_anew, form, shown, **QUIET)


def _wire_exports(tab: Sessions, runlog: RunLog, rules: Rules) -> None:
    """Three files: the runs that match the filters in two formats, and the database."""
    listing, folder = tab.listing, downloads()

    def written(values: dict[Any, Any], form: str) -> Updates:
        ids = runlog.ids(sort=values[listing.sort], **listing.wanted(values, rules))
        return {listing.copy: str(history.export_runs(runlog, ids, folder, form))}

    def copied() -> Updates:
        rules.check_copy()
        return {listing.copy: str(history.export_database(runlog, folder))}

    def work(form: str) -> Callable[[dict[Any, Any]], Updates]:
        if form == "db":
            return lambda values: _told(tab, copied)
        return lambda values: _told(tab, lambda: written(values, form))

    listing.exports["db"].visible = rules.may_copy_log
    for form, button in listing.exports.items():
        made = button.click(work(form), listing.inputs, [listing.copy, listing.where], **QUIET)
        made.success(None, js=FETCH, api_visibility="private")


def _wire_opened(tab: Sessions, runlog: RunLog, rules: Rules) -> None:
    listing, one = tab.listing, tab.opened

    def starred(run: str, star: bool, key: str) -> Updates:
        def work() -> Updates:
            runlog.set_star(run, star, rules.seen_by(key))
            return {}

        return _told(tab, work)

    def noted(run: str, note: str, key: str) -> Updates:
        def work() -> Updates:
            runlog.set_note(run, note, rules.seen_by(key))
            return {listing.where: render.status("The note is kept.", "good")}

        return _told(tab, work)

    def removed(values: dict[Any, Any]) -> Updates:
        def work() -> Updates:
            runlog.delete(values[one.run], rules.seen_by(values[listing.key]))
            return one.closed() | listing.page(runlog, values, values[listing.place], rules)

        return _told(tab, work)

    def listed_anew(values: dict[Any, Any]) -> Updates:
        return _told(tab, lambda: listing.page(runlog, values, values[listing.place], rules))

    kept: list[Any] = [listing.where]
    one.star.input(starred, [one.run, one.star, listing.key], kept, **QUIET).then(
        listed_anew, listing.inputs, listing.outputs, **QUIET
    )
    written = [one.note.input, one.note.blur]  # the second for events without a key
    gr.on(written, noted, [one.run, one.note, listing.key], kept, trigger_mode="always_last", **QUIET)
    one.delete.click(lambda: gr.update(visible=True), None, one.sure, **QUIET)
    one.keep.click(lambda: gr.update(visible=False), None, one.sure, **QUIET)
    one.confirm.click(removed, {one.run, *listing.inputs}, [*one.outputs, *listing.outputs], **QUIET)


def wire_links(tab: Sessions, tabs: gr.Tabs, demo: gr.Blocks, runlog: RunLog | None, rules: Rules) -> None:
    """A page whose URL ends in ``?run=ID`` opens with only that run."""
    if runlog is None:
        demo.load(None, js=LINKED_DONE, api_visibility="private")
        return
    folder = downloads()

    def linked(key: str, request: gr.Request) -> Updates:
        run = request.query_params.get("run")
        if not run:
            return {tabs: gr.skip()}
        who = rules.seen_by(visitor.name(key, request))
        try:
            shown = tab.opened.open(runlog, run, folder, who)
            shown |= {tab.listing.whole: gr.update(visible=False), tab.opened.everything: gr.update(visible=True)}
        except RunLogError as error:
            shown = {tab.missing: _said(render.status(str(error), "bad"))}
        return {tabs: gr.update(selected=TAB)} | shown

    outputs = [tabs, tab.missing, tab.listing.whole, tab.opened.everything, *tab.opened.outputs]
    demo.load(linked, tab.listing.key, outputs, js=visitor.KEY, **QUIET).then(
        None, js=LINKED_DONE, api_visibility="private"
    )


def _told(tab: Sessions, work: Callable[[], Updates]) -> Updates:
    """The updates; or the message, if the log can't be read or the rules refuse it."""
    try:
        return work() or {tab.listing.where: gr.skip()}
    except (RunLogError, Refused) as error:
        return {tab.listing.where: render.status(str(error), "bad")}
