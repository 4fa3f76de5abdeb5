"""The Fine-tune tab: train streams for a model, in a process that outlives the page, and use what comes of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from specstream.models import DEFAULT, catalogue
from specstream.tasks import TASKS, task
from specstream.training.check import MOST_HELD_OUT, Checked, check_file
from specstream.training.config import Config
from specstream.training.registry import Plan, Registry, RegistryError, Training
from specstream.training.sources import HUB
from ui import charts, controls, render, trainview
from ui.engines import TOY, Busy, Engines
from ui.files import downloads
from ui.playground import Playground
from ui.rules import Refused

TAB = "finetune"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
PACE = 2.0  # seconds between looks at a training under way
INTRO = (
    "Teach a model to draft for itself: its streams are trained on examples of one task. What comes of it is a small "
    "adapter, and the model itself is not changed on disk. A training goes on when this page is closed. It shares this "
    "machine with the Playground and gives way to it: while both work, each is slower."
)
PUBLIC, OWN = "public", "own"
SOURCES = [("The public dataset of the task", PUBLIC), ("A file of my own (JSONL)", OWN)]
MODES = [
    ("Shared: tune the model for the task, together with its streams", "shared"),
    ("Lossless: leave the model as it is, and train only the drafting", "lossless"),
]
MODE_WORDS = {
    "shared": "The model learns to answer like the examples, and drafts best. Its texts change by that.",
    "lossless": "Every text stays, word for word, what the model writes today. It first answers the prompts itself, "
    "and its streams learn from these answers: that comes on top of the minutes.",
}
MAIN = ("gamma", "lora_rank")
MORE = (
    "layers", "start_rank", "exit_rank", "draft_vocabulary", "alpha", "batch", "lr", "validate_every", "probes", "seed",
)  # fmt: skip
MINUTES = 20.0  # of a training, as it comes
HERE = {"validate_every": 50}  # where the page's defaults are not those of the command line
MOST_ANSWERS = 500  # prompts that a model answers itself, as it comes
OWNER = """() => {
  let key = localStorage.getItem("specstream-owner");
  if (!key) {
    key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("specstream-owner", key);
  }
  return key;
}"""
FETCH = "() => setTimeout(() => document.querySelector('#adapter-zip').click(), 200)"
Updates = dict[Any, Any]


@dataclass
class Form:
    """What to train."""

    model: gr.Dropdown
    task: gr.Dropdown
    source: gr.Radio
    file: gr.File
    mode: gr.Radio
    answers: gr.Number
    name: gr.Textbox
    settings: dict[str, gr.components.Component]
    hint: gr.HTML
    owner: gr.Textbox

    @property
    def inputs(self) -> set[Any]:
        own = [self.model, self.task, self.source, self.file, self.mode, self.answers, self.name, self.owner]
        return {*own, *self.settings.values()}

    def plan(self, values: Mapping[Any, Any], registry: Registry) -> Plan:
        """What the form asks for. Raises ValueError with one sentence."""
        checked = self.check(values)
        config = self.config(values)
        own_answers = config.mode == "lossless" or not task(values[self.task]).outputs
        options = changed(config) | {"hold_out": checked.held_out if checked else MOST_HELD_OUT}
        if own_answers:
            limit = controls_whole(values[self.answers])
            options |= {"targets": "self", "limit": limit, "hold_out": min(options["hold_out"], limit // 10)}
        name = (values[self.name] or "").strip() or registry.free_name(f"my-{values[self.task]}")
        data = str(values[self.file]) if checked else HUB + task(values[self.task]).hub
        return Plan(name, self.base(values), values[self.task], config.mode, data, config.minutes,
                    values[self.owner] or "", options)  # fmt: skip

    def base(self, values: Mapping[Any, Any]) -> str:
        """The base model; a folder by its whole path. Raises ValueError where none is named."""
        model = (values[self.model] or "").strip()
        if not model or model == TOY:
            raise ValueError(
                "The toy model can't be trained: choose a base model." if model else "Choose a base model."
            )
        folder = Path(model).expanduser()
        return str(folder.resolve()) if folder.is_dir() else model

    def config(self, values: Mapping[Any, Any]) -> Config:
        """The settings. Raises ValueError for one out of its limits."""
        config = Config(mode=values[self.mode], **{name: values[part] for name, part in self.settings.items()})
        if not config.minutes:
            raise ValueError("Minutes must be above 0: say how long to train.")
        return config

    def check(self, values: Mapping[Any, Any]) -> Checked | None:
        """A look at every row of an own file; None for a public dataset. Raises ValueError with one sentence."""
        chosen = task(values[self.task])
        if values[self.source] == PUBLIC:
            check_public(chosen.label, chosen.hub)
            return None
        if not values[self.file]:
            raise ValueError("No file is chosen: upload a JSONL file, one JSON object a line.")
        found = check_file(Path(values[self.file]), chosen, answers=values[self.mode] == "shared")
        if found.bad:
            raise BadRows(found)
        if not found.rows:
            raise ValueError("The file holds no rows: upload a JSONL file, one JSON object a line.")
        return found

    def expected(self, values: Mapping[Any, Any], registry: Registry) -> str:
        """What is wrong with the form, or what to expect of it."""
        try:
            checked, config, model = self.check(values), self.config(values), self.base(values)
        except BadRows as bad:
            return render.status(str(bad), "bad") + render.sentences(trainview.unusable(bad.checked))
        except ValueError as error:
            return render.status(str(error), "bad")
        rows = trainview.usable(checked) if checked else public_words(values[self.task])
        more = trainview.expectation(registry, model, config.minutes, config.batch)
        return render.status(rows, "good" if checked else "plain") + render.status(more)


class BadRows(ValueError):
    """Rows of a file can't be trained on."""

    def __init__(self, checked: Checked) -> None:
        total = checked.rows + checked.bad
        super().__init__(f"{checked.bad:,} of {total:,} rows can't be used: nothing was begun.")
        self.checked = checked


def check_public(label: str, hub: str) -> None:
    """Raises ValueError where a task has no public dataset, or the library that fetches them is missing."""
    if not hub:
        raise ValueError(f"{label} has no public dataset: upload a file of your own, with a prompt in each row.")
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            "Public datasets need the package datasets (pip install -r requirements-extra.txt): install it, "
            "or upload a file of your own."
        )


def public_words(name: str) -> str:
    """Where a public dataset comes from."""
    chosen = TASKS[name]
    return (
        f"{chosen.hub} ({chosen.licence}) comes from the Hugging Face Hub and is fetched once. "
        "Without a network, upload a file of your own."
    )


def controls_whole(value: Any) -> int:
    """A number of prompts. Raises ValueError for anything else."""
    if not isinstance(value, int | float) or value != int(value) or not 1 <= value <= 1_000_000:
        raise ValueError(f"Prompts to answer must be a whole number from 1 to 1,000,000, not {value!r}.")
    return int(value)


def changed(config: Config) -> dict[str, Any]:
    """The settings that are not those of the command line."""
    known = {f.name: f.default for f in fields(Config)}
    return {n: getattr(config, n) for n in (*MAIN, *MORE) if getattr(config, n) != known[n]}


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
        """What decides what is shown."""
        return [self.listing, self.by, self.form.owner, self.seen]

    def shown(
        self, registry: Registry, name: str | None, by: str, seen: Any, may: Callable[[Training], bool]
    ) -> Updates:
        """The page as the trainings stand. What has not changed since ``seen`` is not sent again."""
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
        """The sentence on the one that is shown; on the one under way where that is another."""
        words, tone = trainview.status(training)
        if active is not None and active.name != training.name:
            words, tone = f"{words} {trainview.under_way(active)}", "busy"
        return {self.status: render.status(words, tone)}

    def drawn(self, training: Training, by: str) -> Updates:
        """Numbers and curves."""
        return {
            self.tiles: render.tiles(trainview.numbers(training)),
            self.losses: charts.losses(training.progress, by, trainview.gamma(training)),
            self.gains: charts.gains(training.progress, by),
        }

    def details(self, training: Training, mine: bool, active: Training | None) -> Updates:
        """What changes with the state only: what can be done with it, and what is known of it."""
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


def owns(training: Training, owner: str | None, request: gr.Request) -> bool:
    """Who may stop a training, go on with it and delete it: the browser that began it, and whoever sits at the machine
    that the page runs on."""
    headers = request.headers or {}
    host = getattr(request.client, "host", "")
    if host in ("127.0.0.1", "::1") and "x-forwarded-for" not in headers:
        return True
    return bool(owner) and training.plan is not None and training.plan.owner == owner


def layout(engines: Engines) -> FineTune:
    """Lay out the tab."""
    gr.Markdown(INTRO, elem_classes="ss-intro")
    form = _form(engines)
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
            go_on = gr.Button("Go on", size="sm", interactive=False, min_width=100)
            pack = gr.Button("Download as zip", size="sm", interactive=False, min_width=150)
            delete = gr.Button("Delete", size="sm", interactive=False, min_width=100)
        with gr.Row(visible=False) as sure:
            yes = gr.Button("Delete it for good", variant="stop", size="sm", min_width=160)
            keep = gr.Button("Keep it", size="sm", min_width=120)
        facts = gr.HTML()
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


def _form(engines: Engines) -> Form:
    loaded = engines.choice["model"]
    names = list(dict.fromkeys([loaded if loaded != TOY else DEFAULT, *(entry.name for entry in catalogue())]))
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            model = gr.Dropdown(
                names, value=names[0], allow_custom_value=True, label="Base model", interactive=True,
                info="A name from the list, a Hugging Face Hub id or a folder.",
            )  # fmt: skip
            tasks = gr.Dropdown(
                [(t.label, name) for name, t in TASKS.items()], value="e2e", label="Task", interactive=True,
                info="The form of the examples, and the template that is put round them.",
            )  # fmt: skip
            source = gr.Radio(SOURCES, value=PUBLIC, label="Examples", info=columns("e2e", "shared"), interactive=True)
            file = gr.File(label="JSONL file", file_types=[".jsonl"], visible=False, height=140)
        with gr.Column(scale=2, min_width=320):
            mode = gr.Radio(MODES, value="shared", label="Mode", info=MODE_WORDS["shared"], interactive=True)
            settings: dict[str, gr.components.Component] = {
                "minutes": gr.Number(
                    MINUTES, minimum=0.1, step=1, label="Minutes", interactive=True,
                    info="How long to train. You can stop at any time and go on later.",
                )
            }  # fmt: skip
            settings |= {n: _setting(n, slider=n == "gamma") for n in MAIN}
    with gr.Accordion("More settings", open=False), gr.Row():
        settings |= {n: _setting(n) for n in MORE}
        answers = gr.Number(
            MOST_ANSWERS, precision=0, minimum=1, label="Prompts to answer", interactive=True, min_width=200,
            info="In lossless mode: how many prompts the model answers first.",
        )  # fmt: skip
        name = gr.Textbox(
            label="Name", placeholder="my-e2e", interactive=True, min_width=200, info="Of the adapter, for the lists."
        )
    hint = gr.HTML(render.status(public_words("e2e")))
    return Form(model, tasks, source, file, mode, answers, name, settings, hint, gr.Textbox(visible=False))


def _setting(name: str, slider: bool = False) -> gr.components.Component:
    f = next(f for f in fields(Config) if f.name == name)
    return controls.component(f, slider=slider, default=HERE.get(name))


def columns(name: str, mode: str) -> str:
    """What each row of a file must hold."""
    chosen = TASKS[name]
    wanted = [*chosen.inputs, *(chosen.outputs[:1] if mode == "shared" else ())]
    *first, last = wanted
    return f"Each row has {', '.join(first) + ' and ' if first else ''}{last}, as texts."


def wire(tab: FineTune, opened: gr.Tab, tabs: gr.Tabs, demo: gr.Blocks, engines: Engines, play: Playground) -> None:
    """Connect the tab to the trainings on this machine, and to the Playground."""
    registry, form = Registry(), tab.form
    demo.load(None, None, form.owner, js=OWNER, api_visibility="private")
    _wire_form(form, registry)
    _wire_trainings(tab, opened, registry)
    _wire_adapter(tab, tabs, registry, engines, play)


def _wire_form(form: Form, registry: Registry) -> None:
    """What is asked for, checked as it is put together."""

    def asked(values: dict[Any, Any]) -> Updates:
        mode = values[form.mode]
        return {
            form.file: gr.update(visible=values[form.source] == OWN),
            form.source: gr.update(info=columns(values[form.task], mode)),
            form.mode: gr.update(info=MODE_WORDS[mode]),
            form.name: gr.update(placeholder=registry.free_name(f"my-{values[form.task]}")),
            form.hint: form.expected(values, registry),
        }

    outputs = [form.file, form.source, form.mode, form.name, form.hint]
    minutes, batch = form.settings["minutes"], form.settings["batch"]
    gr.on(
        [form.task.input, form.source.input, form.mode.input, form.model.input, form.file.change, minutes.change,
         batch.change], asked, form.inputs, outputs, trigger_mode="always_last", **QUIET,
    )  # fmt: skip


def _wire_trainings(tab: FineTune, opened: gr.Tab, registry: Registry) -> None:
    """Begin, watch, stop, go on, delete."""

    def look(name: str | None, by: str, owner: str, seen: Any, request: gr.Request) -> Updates:
        return tab.shown(registry, name, by, seen, lambda t: owns(t, owner, request))

    def anew(name: str | None, by: str, owner: str, seen: Any, request: gr.Request) -> Updates:
        active = registry.active()
        return look(active.name if active else name, by, owner, None, request)

    def train(values: dict[Any, Any], request: gr.Request) -> Updates:
        try:
            begun = registry.start(tab.form.plan(values, registry))
        except ValueError as error:
            return refused(tab, error)
        return look(begun.name, values[tab.by], values[tab.form.owner], None, request)

    def act(work: Callable[[str], Any]) -> Callable[..., Updates]:
        """A handler that does something with the training that is chosen, where the visitor may."""

        def handler(name: str | None, by: str, owner: str, seen: Any, request: gr.Request) -> Updates:
            found = registry.get(name or "")
            try:
                if found is not None and not owns(found, owner, request):
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
    tab.train.click(train, {*tab.form.inputs, tab.by}, shown, **QUIET)
    tab.stop.click(stop, looking, shown, **QUIET)
    tab.go_on.click(act(registry.resume), looking, shown, **QUIET)
    tab.delete.click(lambda: gr.update(visible=True), None, tab.sure, queue=False, **QUIET)
    tab.keep.click(lambda: gr.update(visible=False), None, tab.sure, queue=False, **QUIET)
    tab.yes.click(act(registry.delete), looking, shown, **QUIET)


def refused(tab: FineTune, error: ValueError) -> Updates:
    """What was asked for is not done: why, beside the buttons and as a notice."""
    gr.Warning(str(error))
    return {tab.status: render.status(str(error), "bad")}


def _wire_adapter(tab: FineTune, tabs: gr.Tabs, registry: Registry, engines: Engines, play: Playground) -> None:
    """Use what was trained, and take it away."""
    folder = downloads()

    def use(name: str | None) -> Iterator[Updates]:
        found = registry.get(name or "")
        if found is None or found.plan is None:
            return
        choice = engines.choice | {"model": found.plan.model, "adapter": found.name}
        try:
            engines.load(**choice)
        except (Busy, Refused) as error:
            yield refused(tab, error)
            return
        yield {tabs: gr.update(selected="playground")} | play.panel.show(choice)
        for state in engines.watch():
            yield play.loaded(state, found.plan.task)

    def pack(name: str | None) -> Updates:
        found = registry.get(name or "")
        if found is None or not found.has_adapter:
            return refused(tab, RegistryError("There is no adapter to download: it is gone."))
        return {tab.copy: str(trainview.pack(found, folder))}

    tab.use.click(use, tab.listing, [tabs, tab.status, *play.form], concurrency_limit=None, **QUIET)
    tab.zip.click(pack, tab.listing, [tab.copy, tab.status], **QUIET).success(None, js=FETCH, api_visibility="private")
