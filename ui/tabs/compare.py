"""The Compare tab: one prompt, several methods, measured in turn and raced on screen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from specstream import params
from specstream.data.tasks import TASKS
from specstream.info import EngineInfo
from specstream.params import METHODS, Method, Standard
from specstream.stats import counted

from ..charts import runs
from ..components import controls, race, task_hint
from ..components.controls import Controls
from ..files import downloads, place
from ..html import render
from ..jobs import visitor
from ..jobs.comparisons import Contest, Entry, Lap, Prepared
from ..jobs.engine_host import Engines, State
from ..jobs.job import Jobs
from ..jobs.runs import Ask
from ..state.messages import Notice
from ..state.methods import Offer
from .playground import MOST_WAITING, check_prompt, examples, task_choices

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
READY = "Choose methods and press Compare. Standard decoding always runs: it is what the others are compared with."
Updates = dict[Any, Any]


@dataclass
class Compare:
    """The tab's parts."""

    prompt: gr.Textbox
    task: gr.Dropdown
    hint: gr.HTML
    methods: dict[str, gr.Checkbox]
    wished: gr.State
    settings: Controls
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    race: gr.HTML
    results: gr.Column
    table: gr.HTML
    chart: gr.Plot
    file: gr.DownloadButton
    key: gr.Textbox

    @property
    def inputs(self) -> set[Any]:
        return {self.prompt, self.task, self.key, *self.methods.values(), *self.settings.parts.values()}

    @property
    def outputs(self) -> list[Any]:
        return [self.run, self.stop, self.status, self.race, self.results, self.table, self.chart, self.file]

    def ask(self, values: Mapping[Any, Any]) -> tuple[Ask, list[Method]]:
        """What the form asks for. Raises ValueError with one sentence."""
        prompt = values[self.prompt] or ""
        check_prompt(prompt)
        chosen = [name for name, box in self.methods.items() if values[box]]
        if not chosen:
            raise ValueError("No method is chosen: tick at least one to compare with standard decoding.")
        methods = [self.settings.parse(values, name)[0] for name in chosen]
        sampling = self.settings.parse(values, chosen[0])[1]
        return Ask(prompt, values[self.task], Standard(), sampling, True), methods

    def available(self, state: State, offer: Offer, task: str, wished: Collection[str]) -> Updates:
        """What a loaded model changes: methods that it can't run are disabled, with the reason."""
        boxes = {box: controls.method_update(name, offer, wished) for name, box in self.methods.items()}
        return boxes | {self.hint: task_hint.hint(task, state.info)}

    @property
    def depends(self) -> list[Any]:
        """What a loaded model updates."""
        return [*self.methods.values(), self.hint]

    @property
    def chosen(self) -> list[Any]:
        """What it is fitted to."""
        return [self.task, self.wished]


@dataclass
class Progress:
    """What the page knows of a comparison: a fold over the items of a Contest."""

    entries: list[Entry] = field(default_factory=list)
    info: EngineInfo | None = None
    words: str = "Starting"
    tone: str = "busy"
    warnings: list[str] = field(default_factory=list)

    def add(self, item: Any) -> None:
        """Take in one item."""
        if isinstance(item, Notice):
            self.words, self.tone = item.text, "bad" if item.failed else self.tone
            self.warnings += [item.text] if item.lasting else []
        elif isinstance(item, Prepared):
            self.info = item.info
        elif isinstance(item, Entry):
            self.entries.append(item)
        elif isinstance(item, Lap):
            written = counted(item.tokens, "token")
            self.words = f"Measuring {item.number} of {item.of}: {METHODS[item.method].label}, {written}"

    def close(self, stopped: bool) -> None:
        """No more items come."""
        if self.tone == "bad":
            return
        if stopped:
            done = ", ".join(entry.label for entry in self.entries) or "none"
            self.words, self.tone = f"Stopped by you. Measured to the end: {done}.", "plain"
        elif self.entries:
            self.tone, self.words = race.summary(self.entries)
        self.words = " ".join([self.words, *self.warnings])


def layout() -> Compare:
    """Lay out the tab."""
    known = examples()
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            prompt = gr.Textbox(known[0]["prompt"], label="Prompt", lines=3, max_lines=8)
            task = gr.Dropdown(task_choices(), value=known[0]["task"], label="Task", interactive=True)
            hint = gr.HTML()
            gr.Examples(
                [[e["prompt"], e["task"]] for e in known], [prompt, task], label="Example prompts",
                example_labels=[e["label"] for e in known], examples_per_page=20, api_visibility="private",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=320):
            with gr.Group(elem_classes="ss-boxes"):
                gr.Checkbox(True, label=Standard.label, info="Always runs, first.", interactive=False)
                methods = {name: controls.method_box(name) for name in METHODS if name != Standard.name}
            wished = gr.State(list(methods))
            settings = controls.each_method("Settings: length, temperature, each method")
    with gr.Row(elem_classes="ss-toolbar", equal_height=True):
        run = gr.Button("Compare", variant="primary", elem_classes="ss-run", scale=0, min_width=120)
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_classes="ss-stop", scale=0, min_width=120)
        status = gr.HTML(render.status(READY), min_width=160)
    track = gr.HTML(
        html_template=race.text("race.html"), js_on_load=race.text("race.js"), apply_default_css=False
    )  # fmt: skip
    with gr.Column(visible=False) as results:
        table = gr.HTML()
        gr.HTML('<h2 class="ss-heading">Tokens over time</h2>')
        chart = gr.Plot(label="Tokens over time", show_label=False, container=False, elem_classes="ss-plot")
        file = gr.DownloadButton("Download as one HTML file, to share", size="sm")
    return Compare(
        prompt, task, hint, methods, wished, settings, run, stop, status, track, results, table, chart, file,
        visitor.layout(),
    )  # fmt: skip


def wire(tab: Compare, opened: gr.Tab, demo: gr.Blocks, engines: Engines, runlog: Any) -> None:
    """Connect the tab to the engine and the log."""
    jobs = Jobs()
    folder = downloads()

    def run(values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        try:
            ask, methods = tab.ask(values)
        except ValueError as error:
            gr.Warning(str(error))
            yield {tab.status: render.status(str(error), "bad")}
            return
        who, session = visitor.name(values[tab.key], request), str(request.session_hash)
        job = Contest(engines, runlog, ask, methods, who)
        jobs.put(who, session, job)
        yield from stream(tab, job, session, folder, page_address(request, engines.rules.demo))

    def stop(key: str, request: gr.Request) -> None:
        jobs.stop(visitor.name(key, request))

    def close(request: gr.Request) -> None:
        jobs.close(str(request.session_hash))

    def fitted(task: str, wished: list[str]) -> Updates:
        return tab.available(engines.state, engines.offer, task, wished)

    def watch(task: str, wished: list[str]) -> Iterator[Updates]:
        for _ in engines.watch():
            yield fitted(task, wished)

    tab.run.click(run, tab.inputs, tab.outputs, concurrency_id="engine", concurrency_limit=MOST_WAITING, **QUIET)
    tab.stop.click(stop, tab.key, queue=False, **QUIET)
    controls.wire_wishes(tab.wished, tab.methods)
    for event in (opened.select, tab.task.change):
        event(fitted, tab.chosen, tab.depends, queue=False, **QUIET)
    demo.load(watch, tab.chosen, tab.depends, concurrency_limit=None, **QUIET)
    visitor.wire(tab.key, demo)
    demo.unload(close)


def page_address(request: gr.Request, demo: bool) -> str | None:
    """The address under which others find the runs; None where there is none.

    That of one's own machine leads others to theirs, and in a demo visitors see their own runs only.
    """
    origin = str(request.headers.get("origin") or "")
    host = urlsplit(origin).hostname or ""
    own = host in ("", "localhost", "0.0.0.0", "::1") or host.startswith("127.")
    return None if own or demo else f"{origin}/"


def stream(tab: Compare, job: Contest, session: str, folder: Path, base: str | None) -> Iterator[Updates]:
    """Follow a comparison and say what changes on the page."""
    progress = Progress()
    busy = {tab.run: gr.update(interactive=False), tab.stop: gr.update(interactive=True)}  # in each update, as a run's
    yield busy | {
        tab.status: render.status(progress.words, progress.tone),
        tab.race: race.message([]),
        tab.results: gr.update(visible=False),
    }
    with closing(job.batches(session)) as batches:
        for batch in batches:
            for item in batch:
                progress.add(item)
            yield busy | {tab.status: render.status(progress.words, progress.tone)}
    progress.close(job.stop.is_set())
    done = {tab.run: gr.update(interactive=True), tab.stop: gr.update(interactive=False)}
    yield (
        done
        | {tab.status: render.status(progress.words, progress.tone)}
        | results(tab, progress, job.ask, folder, base)
    )


def results(tab: Compare, progress: Progress, ask: Ask, folder: Path, base: str | None) -> Updates:
    """The race, the table, the chart and the file; nothing where nothing was measured."""
    if not progress.entries:
        return {}
    file = place(folder, f"compare-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.html")
    file.write_text(race.share(progress.entries, ask.prompt, list(about(progress.info, ask)), base), encoding="utf-8")
    return {
        tab.race: race.message(progress.entries),
        tab.results: gr.update(visible=True),
        tab.table: race.table(progress.entries),
        tab.chart: runs.race({entry.label: race.curve(entry) for entry in progress.entries}),
        tab.file: str(file),
    }


def about(info: EngineInfo | None, ask: Ask) -> Iterator[tuple[str, str]]:
    """With what it was measured, and when."""
    yield "Task", TASKS[ask.task].label if ask.task in TASKS else "none"
    if info:
        yield "Model", render.model_line(info)
        yield "Versions", ", ".join(f"{name} {version}" for name, version in info.versions.items())
    defaults = params.Sampling().to_dict()
    changed = {name: value for name, value in ask.sampling.to_dict().items() if value != defaults[name]}
    yield "Settings", ", ".join(f"{name} {value}" for name, value in changed.items()) or "default settings"
    yield "Measured", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, one method after the other"
