"""The Fine-tune tab: train streams for a model, in a process that outlives the page, and use the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from specstream.training.jobs import Registry, RegistryError, Training

from ..access_rules import Refused, Rules
from ..charts import runs
from ..components.handlers import QUIET, Updates
from ..files import downloads
from ..html import render
from ..html import training as trainview
from ..jobs.engine_host import Busy, Engines
from . import finetune_form
from .finetune_form import Form
from .playground import Playground

TAB = "finetune"
PACE = 2.0  # seconds between updates of an active training run
INTRO = (
    "Teach a model to draft for itself: its streams are trained on examples of one task. The result is a small "
    "adapter, and the model itself is not changed on disk. Training continues when this page is closed. It shares "
    "this machine with the Playground and yields to it: while both run, each is slower."
)
FETCH = "() => setTimeout(() => document.querySelector('#adapter-zip').click(), 200)"
TO_THE_TOP = "(...given) => (window.scrollTo(0, 0), given)"
REFUSED = "ss-refused"
CORRECTED = f"(status) => status.includes('{REFUSED}') ? '' : status"  # correcting the form clears its error


@dataclass
class FineTune:
    """The tab's parts."""

    form: Form
    train: gr.Button
    stop: gr.Button
    status: gr.HTML
    group: gr.Column
    listing: gr.Dropdown
    by: gr.Radio
    tiles: gr.HTML
    losses: gr.Plot
    gains: gr.Plot
    use: gr.Button
    go_on: gr.Button
    zip: gr.Button
    copy: gr.DownloadButton
    delete: gr.Button
    sure: gr.Row
    yes: gr.Button
    keep: gr.Button
    facts: gr.HTML
    card: gr.Markdown
    timer: gr.Timer
    seen: gr.State

    @property
    def outputs(self) -> list[Any]:
        return [
            self.train, self.stop, self.status, self.group, self.listing, self.tiles, self.losses, self.gains,
            self.use, self.go_on, self.zip, self.delete, self.sure, self.facts, self.card, self.timer, self.seen,
        ]  # fmt: skip

    @property
    def looking(self) -> list[Any]:
        """The inputs that determine what is shown."""
        return [self.listing, self.by, self.form.owner, self.seen]

    def shown(
        self, registry: Registry, name: str | None, by: str, seen: Any, may: Callable[[Training], bool]
    ) -> Updates:
        """The page for the current state of the training runs. What has not changed since ``seen`` is not resent."""
        known = registry.all()
        active = next((t for t in known if t.active), None)
        training = next((t for t in known if t.name == name), active or next(iter(known), None))
        now: dict[str, Any] = {"list": [trainview.choice(t) for t in known], "by": by}
        updates = {
            self.train: gr.update(interactive=active is None),
            self.stop: gr.update(interactive=active is not None and may(active)),
            self.timer: gr.Timer(active=active is not None),
            self.group: gr.update(visible=bool(known)),
        }
        if training is None:
            return updates | {self.status: render.status(trainview.NONE_YET), self.seen: now}
        now |= {"name": training.name, "state": str(training.state), "ready": training.has_adapter}
        now |= {"at": training.progress.updated}
        old = seen or {}
        if now["list"] != old.get("list") or training.name != name:
            updates[self.listing] = gr.update(choices=now["list"], value=training.name)
        if now != old:
            updates |= self.drawn(training, by) | self.told(training, active)
        if any(now[key] != old.get(key) for key in ("name", "state", "ready", "list")):
            updates |= self.details(training, may(training), active)
        return updates | {self.seen: now}

    def told(self, training: Training, active: Training | None) -> Updates:
        """The sentence about the displayed run, or about the active one if that is another."""
        words, tone = trainview.status(training)
        if active is not None and active.name != training.name:
            words, tone = f"{words} {trainview.under_way(active)}", "busy"
        return {self.status: render.status(words, tone)}

    def drawn(self, training: Training, by: str) -> Updates:
        """Numbers and curves."""
        return {
            self.tiles: trainview.phases(training) + render.tiles(trainview.numbers(training)),
            self.losses: runs.losses(training.progress, by, *trainview.streams(training)),
            self.gains: runs.gains(training.progress, by),
        }

    def details(self, training: Training, mine: bool, active: Training | None) -> Updates:
        """What changes only with the state: the available actions, and the facts."""
        ready = training.has_adapter
        return {
            self.use: gr.update(interactive=ready),
            self.zip: gr.update(interactive=ready),
            self.go_on: gr.update(interactive=training.resumable and mine and active is None),
            self.delete: gr.update(interactive=mine and not training.active),
            self.sure: gr.update(visible=False),
            self.facts: render.facts(trainview.facts(training)),
            self.card: trainview.model_card(training) or "The model card is written with the first adapter.",
        }


def owns(training: Training, owner: str | None, request: gr.Request, local: bool) -> bool:
    """Whether the visitor may stop, resume and delete a run: the browser that started it, and the machine's owner, may.

    ``local`` says that the page was started for this machine only: a proxy's requests come from this machine too.
    """
    host = getattr(request.client, "host", "")
    if local and host in ("127.0.0.1", "::1") and "x-forwarded-for" not in (request.headers or {}):
        return True
    return bool(owner) and training.plan is not None and training.plan.owner == owner


def layout(engines: Engines) -> FineTune:
    """Lay out the tab."""
    gr.Markdown(INTRO, elem_classes="ss-intro")
    form = finetune_form.layout(engines)
    with gr.Row(elem_classes="ss-toolbar", equal_height=True):
        train = gr.Button("Train", variant="primary", scale=0, min_width=120)
        stop = gr.Button("Stop training", variant="stop", interactive=False, scale=0, min_width=180)
        status = gr.HTML(render.status(trainview.NONE_YET), min_width=160)
    with gr.Column(visible=False) as group:
        with gr.Row():
            listing = gr.Dropdown([], label="Training", interactive=True, scale=3, min_width=240)
            by = gr.Radio(
                [("minutes", "minutes"), ("steps", "steps")], value="minutes", label="Curves over", scale=1,
                min_width=200, interactive=True,
            )  # fmt: skip
        tiles = gr.HTML()
        with gr.Row():
            losses = _plot("Losses")
            gains = _plot("Tokens per step on held-out prompts")
        with gr.Row():
            use = gr.Button("Use it in the Playground", size="sm", interactive=False, min_width=180)
            go_on = gr.Button("Resume", size="sm", interactive=False, min_width=100)
            pack = gr.Button("Download as zip", size="sm", interactive=False, min_width=150)
            delete = gr.Button("Delete", size="sm", interactive=False, min_width=100)
        with gr.Row(visible=False) as sure:
            yes = gr.Button("Delete it for good", variant="stop", size="sm", min_width=160)
            keep = gr.Button("Keep it", size="sm", min_width=120)
        facts = gr.HTML(js_on_load=render.KEEP_LOCAL)
        with gr.Accordion("Model card", open=False):
            card = gr.Markdown()
    copy = gr.DownloadButton(visible="hidden", elem_id="adapter-zip")
    return FineTune(
        form, train, stop, status, group, listing, by, tiles, losses, gains, use, go_on, pack, copy, delete, sure, yes,
        keep, facts, card, gr.Timer(PACE, active=False), gr.State(None),
    )  # fmt: skip


def _plot(title: str) -> gr.Plot:
    with gr.Column(min_width=320):
        gr.HTML(f'<h2 class="ss-heading">{title}</h2>')
        return gr.Plot(label=title, show_label=False, container=False, elem_classes="ss-plot")


def wire(tab: FineTune, opened: gr.Tab, tabs: gr.Tabs, demo: gr.Blocks, engines: Engines, play: Playground) -> None:
    """Connect the tab to the training runs on this machine, and to the Playground."""
    registry = Registry()
    finetune_form.wire(tab.form, demo, registry)
    _wire_trainings(tab, opened, registry, engines.rules)
    _wire_adapter(tab, tabs, registry, engines, play)


def _wire_trainings(tab: FineTune, opened: gr.Tab, registry: Registry, rules: Rules) -> None:
    """Start, watch, stop, resume, delete."""

    def look(name: str | None, by: str, owner: str, seen: Any, request: gr.Request) -> Updates:
        return tab.shown(registry, name, by, seen, lambda t: owns(t, owner, request, rules.local))

    def anew(name: str | None, by: str, owner: str, seen: Any, request: gr.Request) -> Updates:
        active = registry.active()
        return look(active.name if active else name, by, owner, None, request)

    def train(values: dict[Any, Any], request: gr.Request) -> Updates:
        try:
            rules.check_training()
            begun = registry.start(tab.form.plan(values, registry))
        except ValueError as error:
            return refused(tab, error)
        return look(begun.name, values[tab.by], values[tab.form.owner], None, request)

    def act(work: Callable[[str], Any]) -> Callable[..., Updates]:
        """A handler that acts on the chosen training run, if the visitor may."""

        def handler(name: str | None, by: str, owner: str, seen: Any, request: gr.Request) -> Updates:
            found = registry.get(name or "")
            try:
                rules.check_training()
                if found is not None and not owns(found, owner, request, rules.local):
                    raise RegistryError(f"{found.name} was begun in another browser: it can be changed there only.")
                if found is not None:
                    work(found.name)
            except ValueError as error:
                return refused(tab, error)
            return look(name, by, owner, None, request)

        return handler

    def stop(name: str | None, by: str, owner: str, seen: Any, request: gr.Request) -> Updates:
        active = registry.active()
        return act(registry.stop)(active.name if active else name, by, owner, seen, request)

    shown, looking = tab.outputs, tab.looking
    opened.select(anew, looking, shown, **QUIET)
    tab.timer.tick(look, looking, shown, trigger_mode="once", **QUIET)
    tab.listing.input(look, looking, shown, **QUIET)
    tab.by.input(look, looking, shown, **QUIET)
    gr.on(tab.form.changes, None, tab.status, tab.status, js=CORRECTED, api_visibility="private")
    tab.train.click(train, {*tab.form.inputs, tab.by}, shown, **QUIET)
    tab.stop.click(stop, looking, shown, **QUIET)
    tab.go_on.click(act(registry.resume), looking, shown, **QUIET)
    tab.delete.click(lambda: gr.update(visible=True), None, tab.sure, queue=False, **QUIET)
    tab.keep.click(lambda: gr.update(visible=False), None, tab.sure, queue=False, **QUIET)
    tab.yes.click(act(registry.delete), looking, shown, **QUIET)


def refused(tab: FineTune, error: ValueError) -> Updates:
    """Report why a request was refused, beside the buttons and as a notice."""
    gr.Warning(str(error))
    return {tab.status: render.status(str(error), f"bad {REFUSED}")}


def _wire_adapter(tab: FineTune, tabs: gr.Tabs, registry: Registry, engines: Engines, play: Playground) -> None:
    """Use the trained adapter, and download it."""
    folder = downloads()

    def use(name: str | None) -> Updates:
        found = registry.get(name or "")
        if found is None or found.plan is None:
            return refused(tab, RegistryError("There is no adapter to load: it is gone."))
        choice = engines.choice | {"model": found.plan.model, "adapter": found.name}
        try:
            engines.load(**choice)
        except (Busy, Refused) as error:
            return refused(tab, error)
        return {tabs: gr.update(selected="playground")} | play.panel.show(choice)

    def follow(name: str | None, task: str, wish: str, prompt: str) -> Iterator[Updates]:
        found = registry.get(name or "")
        if not found or not found.plan:
            return
        for state in engines.watch():
            followed = play.followed(state, task, prompt)
            told = play.loaded(state, engines.offer, found.plan.task, wish) | followed
            if state.info and not state.loading and not state.error:
                words = f"{found.name} is loaded: {render.model_line(state.info)}. Press Run to try it."
                told[play.status] = render.status(words, "good")
            yield told

    def pack(name: str | None) -> Updates:
        found = registry.get(name or "")
        try:
            engines.rules.check_training()
            if found is None or not found.has_adapter:
                raise RegistryError("There is no adapter to download: it is gone.")
        except ValueError as error:
            return refused(tab, error)
        return {tab.copy: str(trainview.pack(found, folder))}

    tab.use.click(use, tab.listing, [tabs, tab.status, *play.form], **QUIET).then(
        follow, [tab.listing, *play.chosen], play.form, concurrency_limit=None, js=TO_THE_TOP, **QUIET
    )  # a separate step: of two updates that arrive together, the page may lose the first, which changes the tab
    tab.zip.click(pack, tab.listing, [tab.copy, tab.status], **QUIET).success(None, js=FETCH, api_visibility="private")
