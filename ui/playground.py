"""The Playground tab: a prompt, its settings, and the run as it happens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from specstream.info import EngineInfo
from specstream.params import METHODS, Standard, Streaming
from specstream.runlog import RunLogError
from specstream.tasks import TASKS
from ui import controls, history, model_panel, recording, render, runview, visitor
from ui.controls import Controls
from ui.engines import Engines, State
from ui.feed import Feed
from ui.jobs import Jobs
from ui.model_panel import ModelPanel
from ui.runview import RunView
from ui.view import View
from ui.worker import Ask, Run

PROMPTS = Path(__file__).parents[1] / "assets" / "prompts.json"
MOST_WAITING = 64  # runs that wait for the model at a time, told their place; more wait in gradio's own queue
LONGEST_PROMPT = 50_000  # characters

Updates = dict[Any, Any]
_numbers = count(1)


@dataclass
class Playground:
    """The tab's parts."""

    panel: ModelPanel
    prompt: gr.Textbox
    task: gr.Dropdown
    method: gr.Radio
    missing: gr.HTML
    compare: gr.Checkbox
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    key: gr.Textbox
    settings: Controls
    view: RunView

    @property
    def inputs(self) -> set[Any]:
        return {self.prompt, self.task, self.method, self.compare, self.key, *self.settings.parts.values()}

    def ask(self, values: Mapping[Any, Any]) -> Ask:
        """What the form asks for. Raises ValueError with one sentence."""
        prompt = values[self.prompt] or ""
        check_prompt(prompt)
        method, sampling = self.settings.parse(values, values[self.method])
        baseline = bool(values[self.compare]) and not isinstance(method, Standard)
        return Ask(prompt, values[self.task], method, sampling, baseline)

    def idle(self) -> Updates:
        return {self.run: gr.update(interactive=True), self.stop: gr.update(interactive=False)}

    def busy(self) -> Updates:
        return {self.run: gr.update(interactive=False), self.stop: gr.update(interactive=True)}

    def loaded(self, state: State) -> Updates:
        """What a newly loaded model changes in the form."""
        updates = self.panel.updates(state)
        if state.info and not state.loading:
            updates |= {
                self.method: gr.update(choices=method_choices(state.info), value=first_method(state.info)),
                self.missing: render.sentences(dict.fromkeys(state.info.unavailable.values())),
            }
            if state.info.task in TASKS:
                updates[self.task] = state.info.task
        return updates


def check_prompt(prompt: str) -> None:
    """Raises ValueError for a prompt that no model here could take."""
    if not prompt.strip():
        raise ValueError("The prompt is empty: type some text or choose an example first.")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"The prompt has {len(prompt):,} characters; at most {LONGEST_PROMPT:,} fit: shorten it.")


def method_choices(info: EngineInfo | None) -> list[tuple[str, str]]:
    """Methods that the loaded model can run, streaming first."""
    missing = info.unavailable if info else {}
    order = sorted(METHODS, key=lambda name: name != Streaming.name)
    return [(METHODS[name].label, name) for name in order if name not in missing]


def first_method(info: EngineInfo | None) -> str:
    return method_choices(info)[0][1]


def examples() -> list[dict[str, str]]:
    """The example prompts: label, task and prompt."""
    return json.loads(PROMPTS.read_text(encoding="utf-8"))


def task_choices() -> list[tuple[str, str]]:
    """Labels and names of the tasks, and of none."""
    return [("None: the prompt as it is", "raw")] + [(task.label, name) for name, task in TASKS.items()]


def layout(engines: Engines) -> Playground:
    """Lay out the tab."""
    known = examples()
    recorded = recording.load().view()
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(known[0]["prompt"], label="Prompt", lines=3, max_lines=8)
        with gr.Column(scale=4, min_width=320):
            method = gr.Radio(method_choices(None), value=Streaming.name, label="Method", interactive=True)
        with gr.Column(scale=2, min_width=250):
            task = gr.Dropdown(
                task_choices(), value=known[0]["task"], label="Task", interactive=True,
                info="The template that is put round the prompt.",
            )  # fmt: skip
    missing = gr.HTML()
    gr.Examples(
        [[e["prompt"], e["task"]] for e in known], [prompt, task], label="Example prompts",
        example_labels=[e["label"] for e in known], examples_per_page=20, api_visibility="private",
    )  # fmt: skip
    with gr.Row():
        with gr.Column(min_width=320):
            panel = model_panel.layout(engines)
        with gr.Column(min_width=320), gr.Accordion("Settings: length, temperature, tree, comparison", open=False):
            settings = controls.layout(Streaming.name)
            compare = gr.Checkbox(
                True, label="Also run standard decoding and compare", interactive=True,
                info="The speed-up is measured, never estimated: it needs this second run of the same prompt.",
            )  # fmt: skip
    with gr.Row(elem_classes="ss-toolbar", equal_height=True):
        run = gr.Button("Run", variant="primary", elem_id="run", elem_classes="ss-run", scale=0, min_width=120)
        stop = gr.Button(
            "Stop", variant="stop", interactive=False, elem_id="stop", elem_classes="ss-stop", scale=0, min_width=120
        )
        status = gr.HTML(render.status(recorded.words), min_width=160)
    view = runview.layout(recorded)
    return Playground(
        panel, prompt, task, method, missing, compare, run, stop, status, visitor.layout(), settings, view
    )  # fmt: skip


def wire(tab: Playground, demo: gr.Blocks, engines: Engines, runlog: Any) -> None:
    """Connect the tab to the engine and the log."""
    jobs = Jobs()

    def run(values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        try:
            ask = tab.ask(values)
        except ValueError as error:
            gr.Warning(str(error))
            yield {tab.status: render.status(str(error), "bad")}
            return
        who = visitor.name(values[tab.key], request)
        job = Run(engines, runlog, ask, who)
        jobs.put(who, str(request.session_hash), job)
        yield from stream(tab, job, str(request.session_hash))

    def resume(key: str, request: gr.Request) -> Iterator[Updates]:
        job = jobs.get(who := visitor.name(key, request))
        if isinstance(job, Run):
            jobs.put(who, str(request.session_hash), job)
            yield {tab.prompt: job.ask.prompt, tab.task: job.ask.task}
            yield from stream(tab, job, str(request.session_hash))
        else:
            yield last_run(tab, runlog, who)

    def stop(key: str, request: gr.Request) -> None:
        jobs.stop(visitor.name(key, request))

    def close(request: gr.Request) -> None:
        jobs.close(str(request.session_hash))

    def load(*choice: str) -> Iterator[Updates]:
        for state in tab.panel.request_load(engines, *choice):
            yield tab.loaded(state)

    def watch() -> Iterator[Updates]:
        for state in engines.watch():
            yield tab.loaded(state)

    outputs = [tab.run, tab.stop, tab.status, *tab.view.outputs]
    form = [*tab.panel.outputs, tab.method, tab.missing, tab.task]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.run.click(run, tab.inputs, outputs, concurrency_id="engine", concurrency_limit=MOST_WAITING, **quiet)
    tab.stop.click(stop, tab.key, queue=False, **quiet)
    tab.panel.load.click(load, tab.panel.choice, form, concurrency_limit=None, **quiet)
    visitor.wire(tab.key, demo)
    demo.load(watch, None, form, concurrency_limit=None, **quiet).then(
        resume, tab.key, [tab.prompt, tab.task, *outputs], concurrency_limit=None, **quiet
    )
    demo.unload(close)
    tab.view.wire()
    show_own_settings(tab)


def stream(tab: Playground, run: Run, session: str) -> Iterator[Updates]:
    """Watch a run and say what changes on the page. Closing the iterator is leaving: see ``Job.batches``."""
    view = View(Feed(f"live-{next(_numbers)}", METHODS[run.ask.method.name].label))
    yield tab.busy() | {tab.status: render.status(view.words, view.tone), tab.view.insights: ""} | tab.view.drawn(view)
    with closing(run.batches(session)) as batches:
        for batch in batches:
            for item in batch:
                view.add(item)
            yield {tab.status: render.status(view.words, view.tone)} | tab.view.running(view)
    view.close()
    yield tab.idle() | {tab.status: render.status(view.words, view.tone)} | tab.view.summary(view)
    yield tab.view.drawn(view)


def last_run(tab: Playground, runlog: Any, who: str) -> Updates:
    """What a page that is loaded again shows: the visitor's last run, from the log. Nothing changes without one."""
    try:
        found = runlog.runs(limit=1, visitor=who) if runlog is not None else []
        if not found:
            return {tab.status: gr.skip()}
        row = runlog.run(found[0]["id"])
        view = history.view(runlog, row)
    except RunLogError as error:
        return {tab.status: render.status(str(error), "bad")}
    words = f"Your last run, from the log: {row['status']}."
    form = {tab.prompt: row["prompt"], tab.task: row["task"] if row["task"] in TASKS else "raw"}
    return form | {tab.status: render.status(words)} | tab.view.ended(view)


def show_own_settings(tab: Playground) -> None:
    """Settings of a method are shown while it is chosen."""
    owned = list(tab.settings.of_method())

    def chosen(name: str) -> list[Any]:
        return [gr.update(visible=owner == name) for owner, _ in owned]

    tab.method.change(
        chosen, tab.method, [part for _, part in owned], queue=False, show_progress="hidden", api_visibility="private"
    )
