"""The Playground tab: a prompt, its settings, and the run as it happens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any

import gradio as gr

from specstream.data.chat import Chat
from specstream.data.tasks import TASKS
from specstream.info import EngineInfo
from specstream.installation import data_file
from specstream.params import METHODS, Standard, Streaming
from specstream.runlog import RunLogError

from ..components import chat, controls, model_panel, run_panel, task_hint
from ..components.chat import ChatPanel, talks
from ..components.controls import Controls
from ..components.model_panel import ModelPanel
from ..components.run_panel import RunView
from ..components.task_hint import Suit, bundled
from ..html import render
from ..jobs import visitor
from ..jobs.engine_host import Engines, State
from ..jobs.job import Jobs
from ..jobs.runs import Ask, Run
from ..state import history, methods, recording
from ..state.feed import Feed
from ..state.methods import Offer
from ..state.view import View

PROMPTS = data_file("assets/prompts.json")
PAINT = 0.15  # seconds that the browser gets to show the summary before the charts, which take it longer, arrive
MOST_WAITING = 64  # runs that wait for the model at a time, told their place; more wait in gradio's own queue

Updates = dict[Any, Any]
_numbers = count(1)


@dataclass
class Playground:
    """The tab's parts."""

    panel: ModelPanel
    chat: ChatPanel
    suit: Suit
    prompt: gr.Textbox
    task: gr.Dropdown
    method: gr.Radio
    wish: gr.State  # the method that the visitor chose: it comes back with the next model that can run it
    compare: gr.Checkbox
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    key: gr.Textbox
    settings: Controls
    view: RunView

    @property
    def inputs(self) -> set[Any]:
        parts = {self.prompt, self.task, self.method, self.compare, self.key, self.chat.system, self.chat.kept}
        return parts | set(self.settings.parts.values())

    @property
    def outputs(self) -> list[Any]:
        chat = [self.prompt, *self.chat.outputs]
        panel = [self.panel.line, self.panel.fold, self.panel.card]
        return [self.run, self.stop, self.status, *panel, *chat, *self.view.outputs]

    @property
    def form(self) -> list[Any]:
        """What a newly loaded model or another task changes."""
        parts = [*self.panel.outputs, *self.suit.outputs, self.chat.group]
        return [*parts, self.method, self.task]

    @property
    def chosen(self) -> list[Any]:
        """What a newly loaded model is fitted to."""
        return [self.task, self.wish]

    def ask(self, values: Mapping[Any, Any], info: EngineInfo | None) -> Ask:
        """What the form asks for, of the model that is loaded. Raises ValueError with one sentence."""
        prompt = values[self.prompt] or ""
        check_prompt(prompt)
        method, sampling = self.settings.parse(values, values[self.method])
        baseline = bool(values[self.compare]) and not isinstance(method, Standard)
        chat = self.chat.ask(values) if talks(values[self.task], info) else None
        return Ask(prompt, values[self.task], method, sampling, baseline, chat)

    def idle(self) -> Updates:
        return {self.run: gr.update(interactive=True), self.stop: gr.update(interactive=False)}

    def busy(self) -> Updates:
        return {self.run: gr.update(interactive=False), self.stop: gr.update(interactive=True)}

    def asked(self, ask: Ask) -> Updates:
        """A chat's message moves from the box into the conversation."""
        return {self.prompt: ""} | self.chat.asked(ask.chat, ask.prompt) if ask.chat else {}

    def answered(self, ask: Ask, reply: str, whole: bool) -> Updates:
        """A chat's turn is complete. Where it is not, because nothing was answered or the answer was broken off, the
        message is back in the box: the model would take the fragment for all that it had to say."""
        if not ask.chat:
            return {}
        if reply and whole:
            return self.chat.show(ask.chat.add(ask.prompt, reply))
        return self.chat.show(ask.chat) | {self.prompt: ask.prompt}

    def suited(self, task: str, info: EngineInfo | None) -> Updates:
        """What the choice of a task changes."""
        return self.suit.updates(task, info, bundled) | self.chat.visible(task, info)

    def loaded(self, state: State, offer: Offer, task: str, wish: str) -> Updates:
        """What a newly loaded model changes in the form, in which ``task`` is chosen and the method ``wish`` was."""
        updates = self.panel.updates(state)
        if state.info and not state.loading:
            fits = offer.fitting(wish)
            updates[self.method] = gr.update(choices=offer.choices(), value=fits, info=offer.words(fits))
            if state.info.task in TASKS:
                updates[self.task] = task = state.info.task
            updates |= self.suited(task, state.info)
        return updates


def check_prompt(prompt: str) -> None:
    """Raises ValueError for an empty prompt. Whether one is too long is for the model to say, which counts tokens."""
    if not prompt.strip():
        raise ValueError("The prompt is empty: type some text or choose an example first.")


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
    gr.HTML('<a href="#recorded-run">Watch a recorded run ↓</a>', elem_classes="ss-jump")
    talk = chat.layout()
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            prompt = gr.Textbox(known[0]["prompt"], label="Prompt", lines=3, max_lines=8)
            task = gr.Dropdown(
                task_choices(), value=known[0]["task"], label="Task", interactive=True,
                info="How your prompt is wrapped before the model sees it.",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=320):
            method = gr.Radio(
                Offer().choices(), value=Streaming.name, label="Method", interactive=True,
                info=methods.does(Streaming.name), elem_classes="ss-methods",
            )  # fmt: skip
        wish = gr.State(Streaming.name)
    fit = task_hint.layout()
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
    view = run_panel.layout(recorded)
    return Playground(
        panel, talk, fit, prompt, task, method, wish, compare, run, stop, status, visitor.layout(), settings, view
    )


def wire(tab: Playground, demo: gr.Blocks, engines: Engines, runlog: Any) -> None:
    """Connect the tab to the engine and the log."""
    jobs = Jobs()

    def run(values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        try:
            engines.offer.check(values[tab.method])
            ask = tab.ask(values, engines.state.info)
        except ValueError as error:
            gr.Warning(str(error))
            yield {tab.status: render.status(str(error), "bad")}
            return
        yield tab.panel.told(engines.state)  # another visitor may have loaded another model meanwhile
        who = visitor.name(values[tab.key], request)
        job = Run(engines, runlog, ask, who)
        jobs.put(who, str(request.session_hash), job)
        yield from stream(tab, job, str(request.session_hash))

    def resume(key: str, kept: str, request: gr.Request) -> Iterator[Updates]:
        job = jobs.get(who := visitor.name(key, request))
        if isinstance(job, Run):
            jobs.put(who, str(request.session_hash), job)
            system = {tab.chat.system: job.ask.chat.system} if job.ask.chat else {}
            yield {tab.prompt: job.ask.prompt, tab.task: job.ask.task} | system
            yield from stream(tab, job, str(request.session_hash))
        else:
            yield last_run(tab, runlog, who, Chat.from_json(kept))

    def stop(key: str, request: gr.Request) -> None:
        jobs.stop(visitor.name(key, request))

    def close(request: gr.Request) -> None:
        jobs.close(str(request.session_hash))

    def load(values: dict[Any, Any]) -> Iterator[Updates]:
        for state in model_panel.request_load(engines, tab.panel.chosen(values)):
            yield tab.loaded(state, engines.offer, values[tab.task], values[tab.wish])

    def load_fitting(task: str, wish: str) -> Iterator[Updates]:
        choice = engines.choice | {"adapter": task}
        for state in model_panel.request_load(engines, choice):
            yield tab.loaded(state, engines.offer, task, wish) | tab.panel.show(choice)

    def unload(task: str, wish: str) -> Iterator[Updates]:
        for state in model_panel.request_unload(engines):
            yield tab.loaded(state, engines.offer, task, wish)

    def watch(task: str, wish: str) -> Iterator[Updates]:
        for state in engines.watch():
            yield tab.loaded(state, engines.offer, task, wish)

    outputs, form = tab.outputs, tab.form
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.run.click(run, tab.inputs, outputs, concurrency_id="engine", concurrency_limit=MOST_WAITING, **quiet)
    tab.stop.click(stop, tab.key, queue=False, **quiet)
    tab.panel.load.click(load, {*tab.panel.choice, *tab.chosen}, form, concurrency_limit=None, **quiet)
    tab.panel.unload.click(unload, tab.chosen, form, concurrency_limit=None, **quiet)
    tab.panel.wire()
    tab.method.input(lambda method: method, tab.method, tab.wish, queue=False, **quiet)
    tab.suit.load.click(load_fitting, tab.chosen, form, concurrency_limit=None, **quiet)
    tab.task.change(lambda task: tab.suited(task, engines.state.info), tab.task, form, queue=False, **quiet)
    visitor.wire(tab.key, demo)
    tab.chat.wire(demo)
    demo.load(watch, tab.chosen, form, concurrency_limit=None, **quiet).then(
        resume, [tab.key, tab.chat.kept], [tab.task, *outputs], concurrency_limit=None, **quiet
    )
    demo.unload(close)
    tab.view.wire(engines)
    show_own_settings(tab, engines)


def stream(tab: Playground, run: Run, session: str) -> Iterator[Updates]:
    """Watch a run and say what changes on the page. Closing the iterator is leaving: see ``Job.batches``."""
    view = View(Feed(f"live-{next(_numbers)}", METHODS[run.ask.method.name].label))
    busy = tab.busy()  # in every update: of two that arrive together gradio's page loses what the later one leaves out
    begun = busy | tab.asked(run.ask) | {tab.status: render.status(view.words, view.tone)} | tab.view.begun()
    yield begun | tab.view.drawn(view)
    with closing(run.batches(session)) as batches:
        for batch in batches:
            for item in batch:
                view.add(item)
            yield busy | {tab.status: render.status(view.words, view.tone)} | tab.view.running(view)
    view.close(run.stop.is_set())
    ended = tab.answered(run.ask, view.text, view.whole) | {tab.status: render.status(view.words, view.tone)}
    yield ended | tab.view.summary(view)
    time.sleep(PAINT)
    yield tab.idle() | tab.view.drawn(view)  # only now: gradio ignores a click while the one before goes on


def last_run(tab: Playground, runlog: Any, who: str, kept: Chat) -> Updates:
    """What a page that is loaded again shows: the visitor's last run, from the log, and the conversation ``kept``."""
    try:
        found = runlog.runs(limit=1, visitor=who) if runlog is not None else []
        if not found:
            return {tab.status: gr.skip()} | tab.chat.show(kept)
        row = runlog.run(found[0]["id"])
        view = history.view(runlog, row)
    except RunLogError as error:
        return {tab.status: render.status(str(error), "bad")}
    words = f"Your last run, from the log: {row['status']}."
    form = {tab.prompt: row["prompt"], tab.task: row["task"] if row["task"] in TASKS else "raw"}
    form |= tab.chat.show(chat.newer(kept, row)) | ({tab.prompt: ""} if (row["settings"] or {}).get("chat") else {})
    return form | {tab.status: render.status(words)} | tab.view.ended(view)


def show_own_settings(tab: Playground, engines: Engines) -> None:
    """What a method does, or why it can't run, and its settings are shown while it is chosen."""
    owned = list(tab.settings.of_method())

    def chosen(name: str) -> list[Any]:
        return [gr.update(info=engines.offer.words(name)), *(gr.update(visible=owner == name) for owner, _ in owned)]

    shown = [tab.method, *(part for _, part in owned)]
    tab.method.change(chosen, tab.method, shown, queue=False, show_progress="hidden", api_visibility="private")
