"""The Compare tab: one prompt, several methods, measured in turn and raced on screen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from specstream.info import EngineInfo
from specstream.params import METHODS, Method, Standard
from specstream.runlog import RunLog
from specstream.stats import counted

from ..charts import runs
from ..components import controls, race, share, task_hint
from ..components.controls import Controls
from ..components.handlers import QUIET, Updates
from ..components.share import Share
from ..export import page, story
from ..export.story import Story
from ..html import headline as lines
from ..html import render
from ..jobs import visitor
from ..jobs.comparisons import Contest, Entry, Lap, Prepared
from ..jobs.engine_host import Engines, State
from ..jobs.job import Jobs
from ..jobs.runs import RunRequest, origin
from ..state.messages import Notice
from ..state.methods import Offer
from ..state.origin import Origin
from .playground import (
    MOST_WAITING,
    Playground,
    check_prompt,
    example_buttons,
    examples,
    fill_with_examples,
    load_for,
    prompt_box,
    task_box,
)

READY = "Standard decoding runs too, to compare with."
SAME = "value => value"
NOTHING_YET = "The methods are measured one after another; then they race at the measured pace."
RUN, STOP = "Compare", "Stop"  # what the button says


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
    status: gr.HTML
    headline: gr.HTML
    race: gr.HTML
    results: gr.Column
    table: gr.HTML
    chart: gr.Plot
    raced: gr.State  # entries and origin of the race that is shown
    share: Share
    key: gr.Textbox
    examples: list[gr.Button]

    @property
    def inputs(self) -> set[Any]:
        return {self.run, self.prompt, self.task, self.key, *self.methods.values(), *self.settings.parts.values()}

    @property
    def outputs(self) -> list[Any]:
        own = [self.run, self.status, self.headline, self.race, self.results, self.table, self.chart, self.raced]
        return [*own, *self.share.outputs]

    def ask(self, values: Mapping[Any, Any]) -> tuple[RunRequest, list[Method]]:
        """The request in the form. Raises ValueError with one sentence."""
        prompt = values[self.prompt] or ""
        check_prompt(prompt)
        chosen = [name for name, box in self.methods.items() if values[box]]
        if not chosen:
            raise ValueError("No method is chosen: tick at least one to compare with standard decoding.")
        methods = [self.settings.parse(values, name)[0] for name in chosen]
        sampling = self.settings.parse(values, chosen[0])[1]
        return RunRequest(prompt, values[self.task], Standard(), sampling, True), methods

    def busy(self) -> Updates:
        """Part of each update while it runs, as for a run."""
        return {self.run: gr.update(value=STOP, variant="stop")}

    def available(self, state: State, offer: Offer, task: str, wished: Collection[str]) -> Updates:
        """The changes for a loaded model: methods that it can't run are disabled, with the reason."""
        boxes = {box: controls.method_update(name, offer, wished, said=False) for name, box in self.methods.items()}
        return boxes | {self.hint: task_hint.hint(task, state.info)}

    @property
    def depends(self) -> list[Any]:
        """The components that a loaded model updates."""
        return [*self.methods.values(), self.hint]

    @property
    def chosen(self) -> list[Any]:
        """The inputs of that update."""
        return [self.task, self.wished]


@dataclass
class ComparisonProgress:
    """The page's state of a comparison: a fold over the items of a Contest."""

    live: race.Live
    entries: list[Entry] = field(default_factory=list)
    info: EngineInfo | None = None
    words: str = "Starting"
    tone: str = "busy"
    warnings: list[str] = field(default_factory=list)

    def add(self, item: Any) -> None:
        """Fold one item in."""
        if isinstance(item, Notice):
            self.words, self.tone = item.text, "bad" if item.failed else self.tone
            self.warnings += [item.text] if item.lasting else []
        elif isinstance(item, Prepared):
            self.info = item.info
            if (labels := [METHODS[name].label for name in item.methods]) != self.live.labels:
                self.live = race.Live(labels)
        elif isinstance(item, Entry):
            self.entries.append(item)
        elif isinstance(item, Lap):
            self.live.add(item)
            written = counted(item.tokens, "token")
            self.words = f"Measuring {item.number} of {item.of}: {METHODS[item.method].label}, {written}"

    def close(self, stopped: bool) -> None:
        """There are no more items."""
        if self.tone == "bad":
            return
        if stopped:
            done = ", ".join(entry.label for entry in self.entries) or "none"
            self.words, self.tone = f"Stopped by you. Measured to the end: {done}.", "plain"
        elif self.entries:
            self.tone, self.words = "good", f"Measured: {counted(len(self.entries), 'method')}"
        self.words = " ".join([self.words, *self.warnings])


def layout() -> Compare:
    """Lay out the tab."""
    known = examples()
    with gr.Column(elem_classes="ss-composer ss-short"):
        prompt = prompt_box(known[0]["prompt"])
        with gr.Row(elem_classes="ss-controls"):
            task = task_box(known[0]["task"])
            with gr.Row(elem_classes="ss-toolbar ss-runbar", equal_height=True):
                run = gr.Button(RUN, variant="primary", elem_classes="ss-run", scale=0, min_width=110)
                status = gr.HTML(render.status(READY), min_width=160)
        buttons = example_buttons()
    hint = gr.HTML(visible=False)
    with gr.Row(elem_classes="ss-choices"):
        gr.Checkbox(True, label=Standard.label, interactive=False, min_width=150)
        methods = {name: controls.method_box(name, said=False) for name in METHODS if name != Standard.name}
    wished = gr.State(list(methods))
    settings = controls.each_method("Settings: length, temperature, each method")
    line = gr.HTML(render.status(NOTHING_YET), elem_classes="ss-contest")
    track = gr.HTML(
        html_template=race.text("race.html"), js_on_load=race.text("race.js"), apply_default_css=False
    )  # fmt: skip
    shared = share.layout()
    with gr.Column(visible=False) as results:
        table = gr.HTML()
        gr.HTML('<h2 class="ss-heading">Tokens over time</h2>')
        chart = gr.Plot(label="Tokens over time", show_label=False, container=False, elem_classes="ss-plot")
    return Compare(
        prompt, task, hint, methods, wished, settings, run, status, line, track, results, table, chart,
        gr.State(None), shared, visitor.layout(), buttons,
    )  # fmt: skip


def wire(
    tab: Compare, opened: gr.Tab, demo: gr.Blocks, engines: Engines, runlog: RunLog | None, play: Playground
) -> None:
    """Connect the tab to the engine and the log. Prompt, task and model are those of ``play``."""
    jobs = Jobs()

    def run(values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        if values[tab.run] == STOP:
            yield {tab.status: gr.skip()}
            return
        try:
            ask, methods = tab.ask(values)
            load_for(engines, ask.task, ask.prompt)
        except ValueError as error:
            yield {tab.status: render.status(str(error), "bad")}
            return
        who, session = visitor.name(values[tab.key], request), str(request.session_hash)
        job = Contest(engines, runlog, ask, methods, who)
        jobs.put(who, session, job)
        yield from stream(tab, job, session)

    def stop(label: str, key: str, request: gr.Request) -> None:
        if label == STOP:
            jobs.stop(visitor.name(key, request))

    def close(request: gr.Request) -> None:
        jobs.close(str(request.session_hash))

    def fitted(task: str, wished: list[str]) -> Updates:
        return tab.available(engines.state, engines.offer, task, wished)

    def watch(task: str, wished: list[str]) -> Iterator[Updates]:
        for _ in engines.watch():
            yield fitted(task, wished)

    tab.run.click(run, tab.inputs, tab.outputs, concurrency_id="engine", concurrency_limit=MOST_WAITING, **QUIET)
    tab.run.click(stop, [tab.run, tab.key], queue=False, trigger_mode="multiple", **QUIET)
    controls.wire_wishes(tab.wished, tab.methods)
    for event in (opened.select, tab.task.change, play.panel.known.change):
        event(fitted, tab.chosen, tab.depends, queue=False, **QUIET)
    demo.load(watch, tab.chosen, tab.depends, concurrency_limit=None, **QUIET)
    visitor.wire(tab.key, demo)
    demo.unload(close)
    share_prompt(tab, play)
    tab.share.wire(tab.raced, lambda raced: story.of_entries(*raced), race_file, engines)


def race_file(raced: tuple[list[Entry], Origin], told: Story, base: str | None) -> str:
    """The race as one HTML file."""
    return page.race_page(raced[0], told, base)


def share_prompt(tab: Compare, play: Playground) -> None:
    """Prompt and task are the same in both tabs, whichever they were typed in; an example fills in the Playground's."""
    for ours, theirs in ((tab.prompt, play.prompt), (tab.task, play.task)):
        theirs.change(None, theirs, ours, js=SAME, api_visibility="private")
    # Not with every keystroke: the update from the other field would undo what was typed meanwhile.
    tab.prompt.blur(None, tab.prompt, play.prompt, js=SAME, api_visibility="private")
    tab.task.change(None, tab.task, play.task, js=SAME, api_visibility="private")
    tab.task.input(play.fit, [tab.task, play.wish, play.prompt], play.form, concurrency_limit=None, **QUIET)
    fill_with_examples(tab.examples, play)


def stream(tab: Compare, job: Contest, session: str) -> Iterator[Updates]:
    """Follow a comparison and yield the changes of the page."""
    progress = ComparisonProgress(race.Live([METHODS[name].label for name in job.names]))
    yield tab.busy() | {
        tab.status: render.status(progress.words, progress.tone),
        tab.race: progress.live.message(),
        tab.headline: lines.headline(lines.Headline("busy", "Measuring", (), (READY,))),
        tab.results: gr.update(visible=False),
        **tab.share.show(None),
    }
    with closing(job.batches(session)) as batches:
        for batch in batches:
            for item in batch:
                progress.add(item)
            yield tab.busy() | {
                tab.status: render.status(progress.words, progress.tone),
                tab.race: progress.live.message(),
            }
    progress.close(job.stop.is_set())
    done = {tab.run: gr.update(value=RUN, variant="primary")}
    yield (done | {tab.status: render.status(progress.words, progress.tone)} | results(tab, progress, job.ask))


def results(tab: Compare, progress: ComparisonProgress, ask: RunRequest) -> Updates:
    """The race, the table, the chart and what can be shared; nothing if nothing was measured."""
    if not progress.entries:
        return {}
    raced = progress.entries, origin(progress.info, ask)
    said = race.headline(progress.entries)
    return {
        tab.headline: lines.headline(said),
        tab.race: race.message(progress.entries),
        tab.results: gr.update(visible=True),
        tab.table: race.table(progress.entries),
        tab.chart: runs.race({entry.label: race.curve(entry) for entry in progress.entries}),
        tab.raced: raced,
        **tab.share.show(story.of_entries(*raced)),
    }
