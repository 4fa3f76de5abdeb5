"""The Playground tab: a prompt, its settings, and the run as it happens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from specstream.info import EngineInfo
from specstream.params import METHODS, Standard, Streaming
from specstream.tasks import TASKS
from ui import controls, model_panel, render, runview
from ui.controls import Controls
from ui.engines import Engines, State
from ui.feed import Feed
from ui.model_panel import ModelPanel
from ui.runview import RunView
from ui.view import View
from ui.worker import Ask, Run, Stops

PROMPTS = Path(__file__).parents[1] / "assets" / "prompts.json"
MOST_WAITING = 16  # runs that wait for the model at a time; more wait in gradio's own queue
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
    settings: Controls
    view: RunView

    @property
    def inputs(self) -> set[Any]:
        return {self.prompt, self.task, self.method, self.compare, *self.settings.parts.values()}

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


def layout(engines: Engines) -> Playground:
    """Lay out the tab."""
    examples = json.loads(PROMPTS.read_text(encoding="utf-8"))
    panel = model_panel.layout(engines)
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            prompt = gr.Textbox(examples[0]["prompt"], label="Prompt", lines=3, max_lines=8)
            with gr.Row():
                task = gr.Dropdown(
                    [("None: the prompt as it is", "raw")] + [(t.label, name) for name, t in TASKS.items()],
                    value=examples[0]["task"], label="Task", interactive=True, min_width=220,
                    info="Puts the template round the prompt that the adapter was trained with.",
                )  # fmt: skip
                method = gr.Radio(
                    method_choices(None), value=Streaming.name, label="Method", min_width=220, interactive=True
                )
            missing = gr.HTML()
            gr.Examples(
                [[e["prompt"], e["task"]] for e in examples], [prompt, task], label="Example prompts",
                example_labels=[e["label"] for e in examples], examples_per_page=12, api_visibility="private",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=320):
            settings = controls.layout(Streaming.name)
            compare = gr.Checkbox(
                True, label="Also run standard decoding and compare", interactive=True,
                info="The speed-up is measured, never estimated: it needs this second run of the same prompt.",
            )  # fmt: skip
    with gr.Row(elem_classes="ss-toolbar", equal_height=True):
        run = gr.Button("Run", variant="primary", elem_id="run", scale=0, min_width=120)
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", scale=0, min_width=120)
        status = gr.HTML(render.status("Press Run to watch the model write."), min_width=160)
    return Playground(
        panel, prompt, task, method, missing, compare, run, stop, status, settings, runview.layout()
    )  # fmt: skip


def wire(tab: Playground, demo: gr.Blocks, engines: Engines, runlog: Any) -> None:
    """Connect the tab to the engine and the log."""
    stops = Stops()

    def run(values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        try:
            ask = tab.ask(values)
        except ValueError as error:
            gr.Warning(str(error))
            yield {tab.status: render.status(str(error), "bad")}
            return
        visitor = str(request.session_hash)
        yield from stream(tab, ask, Run(engines, runlog, ask, visitor), stops, visitor)

    def stop(request: gr.Request) -> None:
        stops.stop(str(request.session_hash))

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
    tab.stop.click(stop, queue=False, **quiet)
    tab.panel.load.click(load, tab.panel.choice, form, concurrency_limit=None, **quiet)
    demo.load(watch, None, form, concurrency_limit=None, **quiet)
    demo.unload(stop)
    tab.view.wire()
    show_own_settings(tab)


def stream(tab: Playground, ask: Ask, run: Run, stops: Stops, visitor: str) -> Iterator[Updates]:
    """Drive one run and say what changes on the page. Closing the iterator stops the run."""
    stops.stop(visitor)  # a visitor has one run at a time
    stops.put(visitor, run.stop)
    view = View(Feed(f"live-{next(_numbers)}", METHODS[ask.method.name].label))
    yield tab.busy() | {tab.status: render.status(view.words, view.tone), tab.view.charts: gr.update(visible=False)}
    batches = run.batches()
    try:
        for batch in batches:
            for item in batch:
                view.add(item)
            yield {tab.status: render.status(view.words, view.tone)} | tab.view.running(view)
    finally:
        batches.close()
        stops.drop(visitor, run.stop)
    view.close()
    yield tab.idle() | {tab.status: render.status(view.words, view.tone)} | tab.view.ended(view)


def show_own_settings(tab: Playground) -> None:
    """Settings of a method are shown while it is chosen."""
    owned = list(tab.settings.of_method())

    def chosen(name: str) -> list[Any]:
        return [gr.update(visible=owner == name) for owner, _ in owned]

    tab.method.change(
        chosen, tab.method, [part for _, part in owned], queue=False, show_progress="hidden", api_visibility="private"
    )
