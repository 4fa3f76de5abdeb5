"""What to train: the form of the Fine-tune tab, and its validation."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from specstream.data.checks import MOST_HELD_OUT, CheckedFile, check_file, keep_good
from specstream.data.datasets import HUB
from specstream.data.tasks import TASKS, task
from specstream.hub.catalogue import DEFAULT, catalogue, check_terms, layer_count
from specstream.model import memory
from specstream.stats import counted
from specstream.training.config import Config
from specstream.training.jobs import Plan, Registry

from ..components import controls
from ..components.handlers import QUIET, Updates
from ..components.model_panel import adapter_choices, labelled
from ..files import downloads, place
from ..html import render
from ..html import training as trainview
from ..jobs.engine_host import TOY, Engines

PUBLIC, OWN = "public", "own"
SOURCES = [("The public dataset of the task", PUBLIC), ("A file of my own (JSONL)", OWN)]
MODES = [
    ("Shared: tune the model for the task, together with its streams", "shared"),
    ("Lossless: leave the model as it is, and train only the drafting", "lossless"),
    ("Medusa heads: another way to draft, beside an adapter", "medusa"),
    ("Early exit: the first layers draft, beside an adapter", "exit"),
]
MODE_WORDS = {
    "shared": "The model learns to answer like the examples, and drafts best. This changes the texts that it writes.",
    "lossless": "The model keeps writing the same texts, word for word. It first answers the prompts itself, and its "
    "streams learn from these answers: this takes time beyond the minutes.",
    "medusa": "A head for each token ahead, to compare with streams. A copy of the adapter gets the heads.",
    "exit": "The first layers draft through a small map, to compare. A copy of the adapter gets the map.",
}
BESIDE = ("medusa", "exit")  # modes that train something for an existing adapter
BARE = "none"  # no adapter: the unchanged model
MAIN = ("gamma", "lora_rank")
MORE = (
    "layers", "start_rank", "pair_rank", "exit_rank", "draft_vocabulary", "alpha", "batch", "lr", "validate_every",
    "probes", "seed",
)  # fmt: skip
STREAMS_ONLY = ("lora_rank", "start_rank", "pair_rank", "alpha")
LEFT_OUT = {"medusa": (*STREAMS_ONLY, "layers", "exit_rank"), "exit": (*STREAMS_ONLY, "gamma")}  # without effect there
PRESETS = {"quick": ("Quick", 5), "good": ("Good", 30), "thorough": ("Thorough", 120)}  # names and minutes
PRESET = "good"
PRESET_WORDS = "Quick shows whether it works, Good is worth using, Thorough is for an adapter to keep."
HERE = {"validate_every": 50, "probes": 4}  # defaults of the page that differ from the command line's
WORDS = {  # simpler than those of the command line, which trains other things too
    "gamma": "How many tokens ahead the model drafts: a stream for each.",
    "lora_rank": "Size of what is learned on the model's layers (LoRA): more learns more and costs more; 0: nothing.",
    "layers": "How many of the top layers carry streams: more draft better and cost more.",
    "start_rank": "Size of the map that begins a stream; 0: none.",
    "pair_rank": "Size of the map that weighs a drafted token by the one above it; 0: none.",
    "exit_rank": "Size of the early exit that drops unlikely drafts; 0: none.",
}
OTHER_WORDS = {  # of settings that mean something else in a mode
    ("medusa", "gamma"): "How many tokens ahead the heads draft: a head for each.",
    ("exit", "layers"): "How many of the first layers draft: more draft better and cost more.",
    ("exit", "exit_rank"): "Size of the map behind them; 0: the full size.",
}
MOST_ANSWERS = 500  # prompts that an untuned model answers itself
OWNER = """() => {
  let key = localStorage.getItem("specstream-owner");
  if (!key) {
    key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("specstream-owner", key);
  }
  return key;
}"""


@dataclass
class Form:
    """What to train."""

    model: gr.Dropdown
    task: gr.Dropdown
    source: gr.Radio
    file: gr.File
    good: gr.Checkbox
    mode: gr.Radio
    preset: gr.Radio
    start: gr.Dropdown
    top: gr.Checkbox
    answers: gr.Number
    name: gr.Textbox
    settings: dict[str, gr.components.Component]
    hint: gr.HTML
    owner: gr.Textbox

    @property
    def inputs(self) -> set[Any]:
        own = [self.model, self.task, self.source, self.file, self.good, self.mode, self.start, self.top]
        return {*own, self.answers, self.name, self.owner, *self.settings.values()}

    @property
    def changes(self) -> list[Any]:
        """The visitor's corrections. Not what the page fills in itself, which may arrive after an answer to Train."""
        fields = (self.model, self.task, self.source, self.good, self.mode, self.preset, self.start, self.top)
        typed = (self.answers, self.name, *self.settings.values())
        return [*(part.input for part in (*fields, *typed)), self.file.change]

    def plan(self, values: Mapping[Any, Any], registry: Registry) -> Plan:
        """The request in the form. Raises ValueError with one sentence."""
        checked, config, base = self.check(values), self.config(values), self.base(values)
        check_terms(base)
        memory.check(base, "auto", "float32")
        options = changed(config) | {"hold_out": checked.held_out if checked else MOST_HELD_OUT}
        if config.mode in BESIDE and values[self.start] != BARE:
            options["start"] = values[self.start]
        if self.own_answers(values):
            limit = controls.whole(values[self.answers], "Prompts to answer", 1_000_000)
            options |= {"targets": "self", "limit": limit, "hold_out": min(options["hold_out"], limit // 10)}
        name = (values[self.name] or "").strip() or registry.free_name(wish(values[self.task], config.mode))
        data = str(self.rows(values, checked)) if checked else HUB + task(values[self.task]).hub
        return Plan(name, base, values[self.task], config.mode, data, config.minutes,
                    values[self.owner] or "", options)  # fmt: skip

    def base(self, values: Mapping[Any, Any]) -> str:
        """The base model; a folder by its absolute path. Raises ValueError if none is given."""
        model = (values[self.model] or "").strip()
        if not model or model == TOY:
            raise ValueError(
                "The toy model can't be trained: choose a base model." if model else "Choose a base model."
            )
        folder = Path(model).expanduser()
        return str(folder.resolve()) if folder.is_dir() else model

    def config(self, values: Mapping[Any, Any]) -> Config:
        """The settings. Raises ValueError for one outside its limits, including those of the model."""
        tuned = "top" if values[self.top] and values[self.mode] == "shared" else "all"
        given = {name: values[part] for name, part in self.settings.items()}
        config = Config(mode=values[self.mode], tuned_layers=tuned, **given)
        if not config.minutes:
            raise ValueError("Minutes must be above 0: say how long to train.")
        if "layers" not in LEFT_OUT.get(config.mode, ()):
            check_layers(self.base(values), config)
        return config

    def own_answers(self, values: Mapping[Any, Any]) -> bool:
        """Whether to learn the model's own answers, because its texts differ from those of the examples.

        Raises AdapterError where there is no such adapter.
        """
        if not task(values[self.task]).outputs or values[self.mode] == "lossless":
            return True
        return values[self.mode] in BESIDE and not tuned_by(values[self.start], self.base(values))

    def check(self, values: Mapping[Any, Any]) -> CheckedFile | None:
        """The check of an uploaded file; None for a public dataset. Raises ValueError with one sentence."""
        chosen = task(values[self.task])
        if values[self.source] == PUBLIC:
            check_public(chosen.label, chosen.hub)
            return None
        if not values[self.file]:
            raise NoFile("Choose a JSONL file: one JSON object a line.")
        found = check_file(
            Path(values[self.file]), chosen, answers=bool(chosen.outputs) and not self.own_answers(values)
        )
        if found.bad and not (values[self.good] and found.rows):
            raise BadRows(found)
        if not found.rows:
            raise ValueError("The file holds no rows: upload a JSONL file, one JSON object a line.")
        return found

    def rows(self, values: Mapping[Any, Any], checked: CheckedFile) -> Path:
        """The uploaded file, or a copy of it without its bad rows."""
        file = Path(values[self.file])
        if not checked.bad:
            return file
        chosen, out = task(values[self.task]), place(downloads(), f"good-{file.name}")
        keep_good(file, chosen, bool(chosen.outputs) and not self.own_answers(values), out)
        return out

    def expected(self, values: Mapping[Any, Any], registry: Registry) -> Updates:
        """The error of the form, or what to expect of it; and whether some rows can be left out."""
        good = gr.update(visible=False, value=False)
        try:
            checked, config, model = self.check(values), self.config(values), self.base(values)
            more = trainview.expectation(registry, model, config, values[self.task])
        except BadRows as bad:
            words = render.status(str(bad), "bad") + render.sentences(trainview.unusable(bad.checked))
            left = counted(bad.checked.rows, "good row")
            return {self.hint: words, self.good: gr.update(visible=bad.checked.rows > 0, label=f"Train on the {left}")}
        except ValueError as error:
            tone = "plain" if isinstance(error, NoFile) else "bad"
            return {self.hint: render.status(str(error), tone), self.good: good}
        rows = trainview.usable(checked) if checked else public_words(values[self.task])
        if checked and checked.bad:
            rows, good = f"{rows} {counted(checked.bad, 'bad row')} left out.", gr.skip()
        words = render.status(rows, "good" if checked else "plain") + "".join(map(render.status, more))
        return {self.hint: words, self.good: good}


class NoFile(ValueError):
    """A file is still to be chosen, which is no mistake before "Train" is pressed."""


class BadRows(ValueError):
    """Rows of a file can't be trained on."""

    def __init__(self, checked: CheckedFile) -> None:
        total = checked.rows + checked.bad
        super().__init__(f"{checked.bad:,} of {counted(total, 'row')} can't be used.")
        self.checked = checked


def check_public(label: str, hub: str) -> None:
    """Raises ValueError if a task has no public dataset, or the library that downloads it is missing."""
    if not hub:
        raise ValueError(f"{label} has no public dataset: upload a file of your own, with a prompt in each row.")
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            "Public datasets need the package datasets: pip install datasets, or upload a file of your own."
        )


def public_words(name: str) -> str:
    """Where a public dataset comes from."""
    chosen = TASKS[name]
    return (
        f"{chosen.hub} ({chosen.licence}) comes from the Hugging Face Hub and is fetched once. "
        "Without a network, upload a file of your own."
    )


def changed(config: Config) -> dict[str, Any]:
    """The settings that differ from the command line's defaults, without those that have no effect in the mode."""
    known = {f.name: f.default for f in fields(Config)}
    names = [n for n in (*MAIN, *MORE, "tuned_layers") if n not in LEFT_OUT.get(config.mode, ())]
    return {n: getattr(config, n) for n in names if getattr(config, n) != known[n]}


def check_layers(model: str, config: Config) -> None:
    """Raises ValueError for more layers than the model has; an exit needs at least one layer above it."""
    have = layer_count(model)
    most = have - (config.mode == "exit")
    if have and config.layers > most:
        raise ValueError(f"{model} has {counted(have, 'layer')}: choose 1 to {most} for Layers, not {config.layers}.")


def tuned_by(adapter: str, model: str) -> bool:
    """Whether an adapter was tuned to answer like the examples. Imports torch: for a handler's thread.

    Raises AdapterError where there is no such adapter.
    """
    from specstream.adapters.card import read_card
    from specstream.adapters.find import find_adapter

    folder = find_adapter(adapter, model)
    return folder is not None and read_card(folder).tuning[0] > 0


def wish(name: str, mode: str) -> str:
    """The default name of a new adapter, if it is free."""
    return f"my-{name}" + (f"-{mode}" if mode in BESIDE else "")


def layout(engines: Engines) -> Form:
    """Lay out the form."""
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
                info="What the examples look like, and how each is wrapped before the model sees it.",
            )  # fmt: skip
            source = gr.Radio(
                SOURCES, value=PUBLIC, label="Examples", info=columns("e2e", answers=True), interactive=True
            )
            file = gr.File(
                label="JSONL file", file_types=[".jsonl"], visible=False, height=140, elem_classes="ss-upload"
            )
        with gr.Column(scale=2, min_width=320):
            mode = gr.Radio(MODES, value="shared", label="Mode", info=MODE_WORDS["shared"], interactive=True)
            start = gr.Dropdown(
                [BARE], value=BARE, allow_custom_value=True, label="Adapter", interactive=True, visible=False,
                info="What they are trained for, by name; none: the model without an adapter.",
            )  # fmt: skip
            preset = gr.Radio(
                [(f"{name}: {minutes} minutes", key) for key, (name, minutes) in PRESETS.items()], value=PRESET,
                label="How thorough", info=PRESET_WORDS, interactive=True,
            )  # fmt: skip
    hint = gr.HTML(render.status(public_words("e2e")), elem_classes="ss-expected")
    good = gr.Checkbox(False, label="Train on the good rows", visible=False, interactive=True)
    with gr.Accordion("More settings", open=False), gr.Row():
        settings: dict[str, gr.components.Component] = {
            "minutes": controls.Number(
                PRESETS[PRESET][1], minimum=0.1, step=1, label="Minutes", interactive=True, min_width=200,
                info="How long to train. You can stop at any time and resume later.",
            )
        }  # fmt: skip
        settings |= {n: _setting(n) for n in (*MAIN, *MORE)}
        answers = controls.Number(
            MOST_ANSWERS, precision=0, minimum=1, label="Prompts to answer", interactive=True, min_width=200,
            info="Where the model's own answers are learned: how many prompts it answers first.",
        )  # fmt: skip
        top = gr.Checkbox(
            False, label="Train the top layers only (quicker)", interactive=True, min_width=200,
            info="The model learns in the layers that carry streams; those below stay as they are.",
        )  # fmt: skip
        name = gr.Textbox(
            label="Name", placeholder="my-e2e", interactive=True, min_width=200, info="Of the adapter, for the lists."
        )
    owner = gr.Textbox(visible=False)
    return Form(
        model, tasks, source, file, good, mode, preset, start, top, answers, name, settings, hint, owner
    )  # fmt: skip


def _setting(name: str) -> gr.components.Component:
    f = next(f for f in fields(Config) if f.name == name)
    part = controls.component(f, default=HERE.get(name))
    part.info = _words(name, "shared")
    return part


def _words(name: str, mode: str) -> str:
    """What a setting does, in a mode."""
    help = next(f.metadata["help"] for f in fields(Config) if f.name == name)
    return OTHER_WORDS.get((mode, name)) or WORDS.get(name, help)


def columns(name: str, answers: bool) -> str:
    """The columns that each row of a file needs; ``answers`` are needed unless the model's own are learned."""
    chosen = TASKS[name]
    wanted = [*chosen.inputs, *(chosen.outputs[:1] if answers else ())]
    *first, last = wanted
    return f"Each row has {', '.join(first) + ' and ' if first else ''}{last}, as texts."


def wire(form: Form, demo: gr.Blocks, registry: Registry) -> None:
    """Validate the request while it is filled in."""
    demo.load(None, None, form.owner, js=OWNER, api_visibility="private")

    def asked(values: dict[Any, Any]) -> Updates:
        mode, start = values[form.mode], begun_with(form, values)
        answers = needs_answers(form, values | {form.start: start[form.start].get("value", BARE)})
        return {
            form.file: gr.update(visible=values[form.source] == OWN),
            form.source: gr.update(info=columns(values[form.task], answers)),
            form.mode: gr.update(info=MODE_WORDS[mode]),
            form.name: gr.update(placeholder=registry.free_name(wish(values[form.task], mode))),
            form.top: gr.update(visible=mode == "shared"),
            **shown(form, mode),
            **start,
        }

    def expected(
        values: dict[Any, Any],
    ) -> Updates:  # separate from the rest, because it reads files and imports torch once
        return form.expected(values, registry)

    kind = [form.task.input, form.source.input, form.mode.input]
    numbers = [form.settings[name].change for name in ("minutes", "batch", "layers")]
    amount = [form.model.input, form.file.change, form.good.input, form.start.change, *numbers]
    changing = [form.file, form.source, form.mode, form.name, form.top, form.start, *form.settings.values()]
    gr.on([*kind, form.model.input], asked, form.inputs, changing, queue=False, **QUIET)
    gr.on([*kind, *amount], expected, form.inputs, [form.hint, form.good], trigger_mode="always_last", **QUIET)
    minutes = form.settings["minutes"]
    form.preset.input(lambda name: PRESETS[name][1], form.preset, minutes, queue=False, **QUIET)
    minutes.input(preset_of, minutes, form.preset, queue=False, **QUIET)


def preset_of(minutes: float | None) -> str | None:
    """The preset of so many minutes; None for other ones."""
    return next((name for name, (_, its) in PRESETS.items() if its == minutes), None)


def shown(form: Form, mode: str) -> Updates:
    """The settings that have an effect in a mode, with the mode's labels."""
    return {
        part: gr.update(visible=name not in LEFT_OUT.get(mode, ()), info=_words(name, mode))
        for name, part in form.settings.items()
        if name in (*MAIN, *MORE)
    }


def needs_answers(form: Form, values: Mapping[Any, Any]) -> bool:
    """Whether each row needs an answer, as far as the form determines it."""
    try:
        return not form.own_answers(values)
    except ValueError:
        return True


def begun_with(form: Form, values: Mapping[Any, Any]) -> Updates:
    """The adapters for which heads can be trained; that of the task is selected."""
    if values[form.mode] not in BESIDE:
        return {form.start: gr.update(visible=False)}
    have = [name for name in adapter_choices((values[form.model] or "").strip()) if name != "auto"]
    wanted = (values[form.start], values[form.task])
    chosen = next((name for name in wanted if name in have and name != BARE), BARE)
    return {form.start: gr.update(visible=True, choices=labelled(have), value=chosen)}
