"""The Playground tab: a prompt, its settings, and the run as it happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import gradio as gr

from specstream.data.chat import Chat
from specstream.data.tasks import TASKS
from specstream.info import EngineInfo
from specstream.installation import data_file
from specstream.params import METHODS, NODES, Standard, Streaming
from specstream.runlog import RunLog, RunLogError
from specstream.stats import counted

from ..access_rules import Refused
from ..components import chat, controls, model_panel, run_panel, task_hint
from ..components.chat import ChatPanel, talks
from ..components.controls import Controls
from ..components.handlers import QUIET, Updates
from ..components.model_panel import ModelPanel
from ..components.run_panel import RunView
from ..components.task_hint import Suit
from ..html import render
from ..jobs import visitor
from ..jobs.engine_host import Busy, Engines, State
from ..jobs.job import Jobs
from ..jobs.measure_again import TIMES, MeasureAgain
from ..jobs.runs import RunJob, RunRequest
from ..state import history, recording
from ..state.feed import Feed
from ..state.headline import Ratio, headline
from ..state.messages import Notice
from ..state.methods import Offer, mismatch
from ..state.origin import Origin
from ..state.view import View

PROMPTS = data_file("assets/prompts.json")
RUN, STOP = "Run", "Stop"  # labels of the button
PRESS_RUN = "() => document.getElementById('run').click()"
MOST_WAITING = 64  # most runs that wait for the model and are shown their place; more wait in gradio's own queue

RETURNED = "() => document.documentElement.classList.remove('ss-returning')"  # see ui/first_script.py
NOTHING_ASKED = '["", ""]'
# A result that does not belong to the prompt and task above says so.
MARK_EARLIER = """(asked, prompt, task, line, status) => {
  const mark = "<span class='ss-earlier'>Of the earlier prompt: </span>";
  const [was, of] = JSON.parse(asked), same = of === task && (was === null || was === prompt);
  const bare = line.replace(mark, "");
  if (same) return [bare, status];
  const over = />(Done|Stopped|Measured|Your last run|A recorded run)/.test(status);
  const next = '<p class="ss-status ss-plain" role="status">Press Run for this prompt.</p>';
  return [bare.replace("<strong>", "<strong>" + mark), over ? next : status];
}"""

_numbers = count(1)


@dataclass(frozen=True)
class Last:
    """The displayed run, with its request and model, so that it can be measured again."""

    ask: RunRequest
    view: View
    info: EngineInfo | None

    def still(self, info: EngineInfo | None) -> bool:
        """Whether the same model is loaded."""
        return (
            info is not None
            and self.info is not None
            and replace(info, load_seconds=0) == replace(self.info, load_seconds=0)
        )


@dataclass
class Playground:
    """The tab's parts. ``run`` is the button that also stops."""

    panel: ModelPanel
    chat: ChatPanel
    suit: Suit
    prompt: gr.Textbox
    task: gr.Dropdown
    method: gr.Dropdown
    wish: gr.State  # the method that the visitor chose; it is selected again with the next model that can run it
    compare: gr.Checkbox
    run: gr.Button
    status: gr.HTML
    key: gr.Textbox
    settings: Controls
    view: RunView
    examples: list[gr.Button]
    last: gr.State
    asked: gr.Textbox  # prompt and task of the displayed run, as JSON
    fit: Callable[..., Iterator[Updates]] | None = None  # loads the adapter of a task that was chosen

    @property
    def inputs(self) -> set[Any]:
        parts = {self.run, self.prompt, self.task, self.method, self.compare, self.key}
        return parts | {self.chat.system, self.chat.kept} | set(self.settings.parts.values())

    @property
    def outputs(self) -> list[Any]:
        chat = [self.prompt, *self.chat.outputs]
        panel = [self.panel.line, self.panel.fold, self.panel.card, self.panel.known]
        own = [self.run, self.status, self.last, self.asked]
        return [*own, *panel, *self.suit.outputs, *chat, *self.view.outputs]

    @property
    def form(self) -> list[Any]:
        """The components that a newly loaded model or another task updates."""
        parts = [*self.panel.outputs, *self.suit.outputs, self.chat.group]
        return [*parts, self.method, self.task, self.prompt, self.status]

    @property
    def chosen(self) -> list[Any]:
        """The inputs of the update for a newly loaded model."""
        return [self.task, self.wish, self.prompt]

    def ask(self, values: Mapping[Any, Any], info: EngineInfo | None) -> RunRequest:
        """The request in the form, for the loaded model. Raises ValueError with one sentence."""
        prompt = values[self.prompt] or ""
        check_prompt(prompt)
        method, sampling = self.settings.parse(values, values[self.method])
        baseline = bool(values[self.compare]) and not isinstance(method, Standard)
        chat = self.chat.ask(values) if talks(values[self.task], info) else None
        return RunRequest(prompt, values[self.task], method, sampling, baseline, chat)

    def idle(self, again: bool = False) -> Updates:
        return {self.run: gr.update(value=RUN, variant="primary"), self.view.again: gr.update(interactive=again)}

    def busy(self) -> Updates:
        return {self.run: gr.update(value=STOP, variant="stop"), self.view.again: gr.update(interactive=False)}

    def sent(self, ask: RunRequest) -> Updates:
        """Move a chat's message from the box into the conversation."""
        return {self.prompt: ""} | self.chat.asked(ask.chat, ask.prompt) if ask.chat else {}

    def answering(self, ask: RunRequest, view: View) -> Updates:
        """A chat's answer so far."""
        return self.chat.writing(ask.chat, ask.prompt, view.steps) if ask.chat else {}

    def answered(self, ask: RunRequest, view: View) -> Updates:
        """A chat's turn is complete. If it is not, because nothing was answered or the answer was interrupted, the
        message goes back into the box: the model would mistake the fragment for its complete answer."""
        if not ask.chat:
            return {}
        if view.text and view.whole:
            return self.chat.show(ask.chat.add(ask.prompt, view.text), view.steps)
        return self.chat.stopped(ask.chat, ask.prompt, view.steps) | {self.prompt: ask.prompt}

    def suited(self, task: str, info: EngineInfo | None) -> Updates:
        """The changes when a task is chosen."""
        return self.suit.updates(task, info) | self.chat.visible(task, info)

    def followed(self, state: State, task: str, prompt: str) -> Updates:
        """The task of an adapter that the visitor has loaded, with its example if the prompt is an example."""
        info = state.info
        if state.loading or not info or info.task not in TASKS or info.task == task:
            return {}
        fitting = example_of(info.task, prompt)
        return {self.task: info.task} | ({self.prompt: fitting} if fitting else {})

    def loaded(self, state: State, offer: Offer, task: str, wish: str) -> Updates:
        """The changes in the form for a newly loaded model; ``task`` is the chosen task, ``wish`` the wanted method."""
        updates = self.panel.updates(state)
        if state.loading:
            updates[self.status] = render.status(f"Loading the model: {model_panel.progress(state)}", "busy")
        elif state.info:
            fits = offer.fitting(wish)
            updates[self.method] = gr.update(choices=offer.choices(), value=fits)
            updates |= self.suited(task, state.info)
        return updates


def adapter_of(task: str, prompt: str) -> str:
    """The adapter for a task; an example may name another one, so that its text does not depend on what was loaded."""
    named = (known["adapter"] for known in examples() if known["prompt"] == prompt and "adapter" in known)
    return next(named, task)


def load_for(engines: Engines, task: str, prompt: str) -> None:
    """Load the adapter of a request before it, as choosing its task does: somebody else may have loaded another."""
    wanted = adapter_of(task, prompt)
    if task_hint.loads_by_itself(wanted, engines.state, engines.choice):
        try:
            engines.load(**engines.choice | {"adapter": wanted})
        except (Busy, Refused) as no:
            gr.Warning(str(no))


def asked(ask: RunRequest) -> str:
    """Prompt and task of a run, for the mark on its result. A conversation shows its messages itself."""
    return json.dumps([None if ask.chat else ask.prompt, ask.task], ensure_ascii=False)


def example_of(task: str, prompt: str) -> str:
    """The example of another task, if the prompt is an example and not the visitor's own; else nothing."""
    known = {example["prompt"]: example["task"] for example in examples()}
    if known.get(prompt, task) == task:
        return ""
    return next((text for text, its in known.items() if its == task), "")


def check_prompt(prompt: str) -> None:
    """Raises ValueError for an empty prompt. Whether one is too long, the model decides by counting tokens."""
    if not prompt.strip():
        raise ValueError("The prompt is empty: type some text or choose an example first.")


def examples() -> list[dict[str, str]]:
    """The example prompts: label, task and prompt."""
    return json.loads(PROMPTS.read_text(encoding="utf-8"))


def task_choices() -> list[tuple[str, str]]:
    """Labels and names of the tasks, and of none."""
    return [("None: the prompt as it is", "raw")] + [(task.label, name) for name, task in TASKS.items()]


def shown_examples() -> list[dict[str, str]]:
    """The examples offered under the prompt, named by what they show; the others are for the benchmark."""
    return [example for example in examples() if "shows" in example]


def prompt_box(prompt: str) -> gr.Textbox:
    """The prompt field, here and in Compare."""
    return gr.Textbox(
        prompt, label="Prompt", show_label=False, container=False, lines=2, max_lines=8, elem_classes="ss-prompt"
    )


def task_box(task: str) -> gr.Dropdown:
    """The task field, here and in Compare."""
    return gr.Dropdown(
        task_choices(), value=task, label="Task", interactive=True, min_width=140, scale=2, elem_classes="ss-inline"
    )


def example_buttons() -> list[gr.Button]:
    """A row of examples."""
    with gr.Row(elem_classes="ss-examples"):
        return [gr.Button(known["shows"], size="sm", min_width=60, scale=0) for known in shown_examples()]


def fill_with_examples(buttons: list[gr.Button], tab: Playground) -> None:
    """Each button fills in an example's prompt and task, in the browser; then the task's adapter is loaded."""
    for button, known in zip(buttons, shown_examples(), strict=True):
        values = f"() => {json.dumps([known['prompt'], known['task']], ensure_ascii=False)}"
        filled = button.click(None, None, [tab.prompt, tab.task], js=values, api_visibility="private")
        filled.then(tab.fit, tab.chosen, tab.form, concurrency_limit=None, **QUIET)


def layout(engines: Engines) -> Playground:
    """Lay out the tab."""
    known = examples()
    recorded = recording.load().view()
    talk = chat.layout()
    with gr.Column(elem_classes="ss-composer"):
        prompt = prompt_box(known[0]["prompt"])
        with gr.Row(elem_classes="ss-controls"):
            task = task_box(known[0]["task"])
            method = gr.Dropdown(
                Offer().choices(), value=Streaming.name, label="Method", interactive=True, min_width=140, scale=2,
                elem_classes="ss-inline",
            )  # fmt: skip
            with gr.Row(elem_classes="ss-toolbar ss-runbar", equal_height=True):
                run = gr.Button(RUN, variant="primary", elem_id="run", elem_classes="ss-run", scale=0, min_width=110)
                status = gr.HTML(render.status(recorded.words), min_width=160)
        known_buttons = example_buttons()
    wish = gr.State(Streaming.name)
    fit = task_hint.layout()
    panel, settings, compare = drawer(engines)
    view = run_panel.layout(recorded, live=True)
    return Playground(
        panel, talk, fit, prompt, task, method, wish, compare, run, status, visitor.layout(), settings, view,
        known_buttons, gr.State(None), gr.Textbox(json.dumps([known[0]["prompt"], known[0]["task"]]), visible=False),
    )  # fmt: skip


def drawer(engines: Engines) -> tuple[ModelPanel, Controls, gr.Checkbox]:
    """Model and settings, folded under the name of what is loaded."""

    def more() -> tuple[Controls, gr.Checkbox]:
        gr.HTML('<h2 class="ss-heading">Settings of the run</h2>')
        settings = controls.layout(Streaming.name)
        compare = gr.Checkbox(
            True, label="Also run standard decoding and compare", interactive=True,
            info="The speed-up is measured, never estimated: it needs this second run of the same prompt.",
        )  # fmt: skip
        return settings, compare

    panel, (settings, compare) = model_panel.layout(engines, more)
    return panel, settings, compare


class RunEvents:
    """The handlers of events about runs."""

    def __init__(self, tab: Playground, engines: Engines, runlog: RunLog | None) -> None:
        self._tab, self._engines, self._runlog, self._jobs = tab, engines, runlog, Jobs()

    def run(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        if values[self._tab.run] == STOP:  # of a run that a reloaded page found
            yield {self._tab.status: gr.skip()}
            return
        try:
            check_prompt(values[self._tab.prompt] or "")
            load_for(self._engines, values[self._tab.task], values[self._tab.prompt])
            self._engines.offer.check(values[self._tab.method])
            ask = self._tab.ask(values, self._engines.state.info)
        except ValueError as error:
            yield {self._tab.status: render.status(str(error), "bad")}
            return
        # Another visitor may have loaded another model meanwhile.
        yield self._tab.panel.told(self._engines.state) | self._tab.busy()
        who = visitor.name(values[self._tab.key], request)
        job = RunJob(self._engines, self._runlog, ask, who)
        self._jobs.put(who, str(request.session_hash), job)
        yield from stream(self._tab, job, str(request.session_hash), self._engines)

    def resume(self, key: str, kept: str, request: gr.Request) -> Iterator[Updates]:
        job = self._jobs.get(who := visitor.name(key, request))
        if isinstance(job, RunJob):
            self._jobs.put(who, str(request.session_hash), job)
            system = {self._tab.chat.system: job.ask.chat.system} if job.ask.chat else {}
            yield {self._tab.prompt: job.ask.prompt, self._tab.task: job.ask.task} | system
            yield from stream(self._tab, job, str(request.session_hash), self._engines)
        else:
            yield last_run(self._tab, self._runlog, who, Chat.from_json(kept))

    def again(self, last: Last | None, key: str, request: gr.Request) -> Iterator[Updates]:
        if last is None or not last.still(self._engines.state.info):
            yield {self._tab.status: render.status("Another model is loaded now: run the prompt again first.", "bad")}
            return
        job = MeasureAgain(self._engines, None, last.ask, who := visitor.name(key, request))
        self._jobs.put(who, str(request.session_hash), job)
        yield from measured_again(self._tab, job, last.view, str(request.session_hash))

    def mend(self, last: Last | None) -> Updates:
        remedy = headline(last.view).remedy if last else None
        if last is None or remedy is None:
            return {self._tab.status: gr.skip()}
        if not remedy.loads:
            name = last.ask.method.name
            return {self._tab.settings.parts[name, "budget"]: METHODS[name]().to_dict()["budget"]}
        try:
            self._engines.load(**self._engines.choice | {"adapter": last.ask.task})
        except (Busy, Refused) as no:
            gr.Warning(str(no))
        return {self._tab.task: last.ask.task}

    def stop(self, label: str, key: str, request: gr.Request) -> None:
        if label == STOP:
            self._jobs.stop(visitor.name(key, request))

    def drawn(self, key: str, request: gr.Request) -> None:
        if job := self._jobs.get(visitor.name(key, request)):
            job.drawn.set()

    def close(self, request: gr.Request) -> None:
        self._jobs.close(str(request.session_hash))


class ModelEvents:
    """The handlers of events about the model."""

    def __init__(self, tab: Playground, engines: Engines) -> None:
        self._tab, self._engines = tab, engines

    def load(self, values: dict[Any, Any]) -> Iterator[Updates]:
        for state in model_panel.request_load(self._engines, self._tab.panel.chosen(values)):
            task, wish, prompt = (values[part] for part in self._tab.chosen)
            followed = self._tab.followed(state, task, prompt)
            task = followed.get(self._tab.task, task)
            yield self._tab.loaded(state, self._engines.offer, task, wish) | followed | self.ready(state)

    def load_fitting(self, task: str, wish: str, prompt: str) -> Iterator[Updates]:
        """Load the adapter of a task. This loads the model again, because the adapter is merged into its weights."""
        choice = self._engines.choice | {"adapter": (wanted := adapter_of(task, prompt))}
        for state in model_panel.request_load(self._engines, choice):
            yield (
                self._tab.loaded(state, self._engines.offer, task, wish)
                | self._tab.panel.show(choice)
                | (self.changing(wanted, state) if state.loading else self.ready(state))
            )

    def changing(self, task: str, state: State) -> Updates:
        """A message about the load for a chosen task."""
        waits = state.words.startswith("Waiting")
        words = model_panel.progress(state) if waits else f"Loading the adapter for {TASKS[task].label}"
        return {self._tab.status: render.status(words, "busy")}

    def suited(self, task: str, prompt: str = "") -> Updates:
        """The changes when a task is chosen, without a hint if its adapter is loaded now or with the next run."""
        state, tab = self._engines.state, self._tab
        coming = state.loading or task_hint.loads_by_itself(adapter_of(task, prompt), state, self._engines.choice)
        return tab.suit.updates(task, None if coming else state.info) | tab.chat.visible(task, state.info)

    def fit(self, task: str, wish: str, prompt: str) -> Iterator[Updates]:
        if task_hint.loads_by_itself(adapter_of(task, prompt), self._engines.state, self._engines.choice):
            yield from self.load_fitting(task, wish, prompt)
        else:
            yield self._tab.suited(task, self._engines.state.info)

    def wished(self, method: str, wish: str) -> str:
        """Leaving the list reports its value too; a substitute for a method that can't run is not a choice."""
        return wish if method == self._engines.offer.fitting(wish) else method

    def ready(self, state: State) -> Updates:
        if state.loading or not state.info or state.error:
            return {}
        return {self._tab.status: render.status(f"Ready: {render.model_line(state.info)}.", "good")}

    def unload(self, task: str, wish: str, prompt: str) -> Iterator[Updates]:
        for state in model_panel.request_unload(self._engines):
            yield self._tab.loaded(state, self._engines.offer, task, wish) | {
                self._tab.status: render.status(state.words)
            }

    def watch(self, task: str, wish: str, prompt: str) -> Iterator[Updates]:
        """What is loaded or being loaded. The task stays: what others have loaded is no choice of this visitor."""
        waited = False
        for state in self._engines.watch():
            told = self._tab.loaded(state, self._engines.offer, task, wish) | self.suited(task, prompt)
            yield told | (self.ready(state) if waited else {})
            waited = state.loading

    def known(self, task: str, wish: str, prompt: str) -> Updates:
        """The methods and the hint, whoever has loaded what."""
        if self._engines.state.loading or not self._engines.state.info:
            return {self._tab.method: gr.skip()}
        offer = self._engines.offer
        method = gr.update(choices=offer.choices(), value=offer.fitting(wish))
        return {self._tab.method: method} | self.suited(task, prompt)


def wire(tab: Playground, demo: gr.Blocks, engines: Engines, runlog: RunLog | None) -> None:
    """Connect the tab to the engine and the log."""
    runs, models = RunEvents(tab, engines, runlog), ModelEvents(tab, engines)
    outputs, form = tab.outputs, tab.form
    turn: dict[str, Any] = {"concurrency_id": "engine", "concurrency_limit": MOST_WAITING}
    began = tab.run.click(runs.run, tab.inputs, outputs, **turn, **QUIET)
    tab.run.click(runs.stop, [tab.run, tab.key], queue=False, trigger_mode="multiple", **QUIET)
    tab.view.player.play(runs.drawn, tab.key, queue=False, **QUIET)
    tab.view.again.click(runs.again, [tab.last, tab.key], outputs, **turn, **QUIET)
    budgets = [part for (_, name), part in tab.settings.parts.items() if name == "budget"]
    mended = tab.view.mend.click(runs.mend, tab.last, [tab.status, tab.task, *budgets], queue=False, **QUIET)
    mended.then(models.watch, tab.chosen, form, concurrency_limit=None, **QUIET).then(None, js=PRESS_RUN, **QUIET)
    tab.panel.load.click(models.load, {*tab.panel.choice, *tab.chosen}, form, concurrency_limit=None, **QUIET)
    tab.panel.unload.click(models.unload, tab.chosen, form, concurrency_limit=None, **QUIET)
    tab.panel.wire(engines)
    tab.method.input(models.wished, [tab.method, tab.wish], tab.wish, queue=False, **QUIET)
    tab.suit.load.click(models.load_fitting, tab.chosen, form, concurrency_limit=None, **QUIET)
    tab.task.input(models.fit, tab.chosen, form, concurrency_limit=None, **QUIET)
    tab.fit = models.fit
    fill_with_examples(tab.examples, tab)
    tab.task.change(models.suited, [tab.task, tab.prompt], form, queue=False, **QUIET)
    tab.panel.known.change(models.known, tab.chosen, form, queue=False, **QUIET)
    visitor.wire(tab.key, demo)
    tab.chat.wire(demo, tab.prompt)
    demo.load(models.watch, tab.chosen, form, concurrency_limit=None, **QUIET).then(
        runs.resume, [tab.key, tab.chat.kept], [tab.task, *outputs], concurrency_limit=None, **QUIET
    ).then(None, js=RETURNED, api_visibility="private")
    demo.unload(runs.close)
    tab.chat.new.click(lambda: NOTHING_ASKED, None, tab.asked, queue=False, **QUIET)
    marked: dict[str, Any] = {
        "inputs": [tab.asked, tab.prompt, tab.task, tab.view.headline, tab.status],
        "outputs": [tab.view.headline, tab.status], "js": MARK_EARLIER, "api_visibility": "private",
    }  # fmt: skip
    for event in (tab.prompt.change, tab.task.change, tab.asked.change, began.then):
        event(None, **marked)
    tab.view.wire(engines, runlog)
    show_own_settings(tab, engines)


def stream(tab: Playground, run: RunJob, session: str, engines: Engines) -> Iterator[Updates]:
    """Watch a run and yield the changes of the page. Closing the iterator means leaving: see ``Job.batches``."""
    view = View(Feed(f"live-{next(_numbers)}", METHODS[run.ask.method.name].label))
    # The button is in every update: of two that arrive together, gradio's page loses what the later one omits. And
    # each has a separate dict, because gradio removes the value from it.
    view.words = (not run.begun and engines.ahead()) or view.words
    begun = {tab.asked: asked(run.ask), tab.status: render.status(view.words, view.tone)}
    begun |= tab.sent(run.ask) | tab.view.begun()
    yield begun | tab.view.running(view) | tab.busy()
    run.wait_for_drawing()
    with closing(run.batches(session)) as batches:
        for batch in batches:
            for item in batch:
                view.add(item)
            told = {tab.status: render.status(view.words, view.tone)} | tab.answering(run.ask, view)
            if any(isinstance(item, Origin) for item in batch):  # it has the model, which may have been loaded for it
                told |= tab.panel.told(engines.state)
            yield told | tab.view.running(view) | tab.busy()
    view.close(run.stop.is_set())
    info = engines.state.info
    if info:
        view.nodes = info.nodes or NODES
        view.mismatched = run.ask.task in TASKS and bool(mismatch(run.ask.task, info))
    last = Last(run.ask, view, info) if view.whole and view.speedup else None
    ended = tab.answered(run.ask, view) | {tab.status: render.status(view.words, view.tone)}
    ended |= tab.panel.told(engines.state) | tab.suit.updates(run.ask.task, info)
    yield ended | tab.view.ended(view) | tab.idle(again=last is not None) | {tab.last: last}


def measured_again(tab: Playground, job: MeasureAgain, view: View, session: str) -> Iterator[Updates]:
    """Watch the further measurements of a run, and yield their combined result."""
    found: list[Ratio] = []
    words = "Measuring"
    yield tab.busy() | {tab.status: render.status(words, "busy")}
    with closing(job.batches(session)) as batches:
        for item in (item for batch in batches for item in batch):
            found += [item] if isinstance(item, Ratio) else []
            words = item.text if isinstance(item, Notice) else f"Measuring: {len(found)} of {TIMES}"
            yield tab.busy() | {tab.status: render.status(words, "busy")} | tab.view.measured_again(view, found)
    done = f"Measured {counted(1 + len(found), 'time')}" if found else words
    ended = {tab.status: render.status(done, "good" if found else "plain")}
    yield tab.idle(again=True) | ended | tab.view.measured_again(view, found)


def last_run(tab: Playground, runlog: RunLog | None, who: str, kept: Chat) -> Updates:
    """What a reloaded page shows: the visitor's last run, from the log, and the conversation ``kept``."""
    try:
        found = runlog.runs(limit=1, visitor=who) if runlog is not None else []
        if runlog is None or not found:
            return {tab.status: gr.skip()} | tab.chat.show(kept)
        row = runlog.run(found[0]["id"])
        view = history.view(runlog, row)
    except RunLogError as error:
        return {tab.status: render.status(str(error), "bad")}
    words = f"Your last run, from the log: {row['status']}."
    form = {tab.prompt: row["prompt"], tab.task: row["task"] if row["task"] in TASKS else "raw"}
    form[tab.asked] = json.dumps([None if (row["settings"] or {}).get("chat") else row["prompt"], form[tab.task]])
    form |= tab.chat.show(chat.newer(kept, row)) | ({tab.prompt: ""} if (row["settings"] or {}).get("chat") else {})
    return form | {tab.status: render.status(words)} | tab.view.ended(view) | tab.idle()


def show_own_settings(tab: Playground, engines: Engines) -> None:
    """Show what the chosen method does, or why it can't run, and its settings."""
    owned = list(tab.settings.of_method())

    def chosen(name: str) -> list[Any]:
        reason = engines.offer.reason(name)
        words = gr.update(value=render.sentences([reason]), visible=bool(reason))
        return [words, *(gr.update(visible=owner == name) for owner, _ in owned)]

    shown = [tab.suit.reason, *(part for _, part in owned)]
    tab.method.change(chosen, tab.method, shown, queue=False, **QUIET)
