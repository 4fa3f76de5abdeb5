"""A training run as the page shows it: sentences, numbers, facts, files. No gradio."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from specstream.adapters import local
from specstream.adapters.find import bundled
from specstream.data.checks import CheckedFile
from specstream.data.tasks import TASKS
from specstream.info import top_layers
from specstream.model import memory
from specstream.stats import counted
from specstream.training.config import Config
from specstream.training.jobs import Registry, State, Training, has_checkpoint

from ..files import place
from .render import NOTHING, STARTED, number

PROBED = 32  # drafted tokens a step in validation: BUDGET in specstream/training/probe.py, which needs torch

README = "README.md"
MODES = {
    "shared": "the model is fine-tuned together with its streams",
    "lossless": "the model's own texts stay as they are",
    "medusa": "Medusa heads for an adapter",
    "exit": "an early exit for an adapter",
}
HEADS = {"medusa": "Medusa heads", "exit": "an early exit"}
DONE = {
    State.STOPPED: "stopped",
    State.FINISHED: "finished",
    State.DIED: "ended too early",
    State.DAMAGED: "damaged",
    State.RUNNING: "under way",
    State.STOPPING: "stopping",
}
NONE_YET = "Nothing has been trained yet: choose what to train and press Train."


def duration(seconds: float) -> str:
    """A duration in words, to the minute above one; the caller says what it is."""
    if seconds < 60:
        count, unit = max(1, round(seconds)), "second"
    elif seconds < 5400:
        count, unit = round(seconds / 60), "minute"
    else:
        return str(timedelta(minutes=round(seconds / 60)))[:-3] + " hours"
    return f"{count} {unit}{'s' * (count != 1)}"


def choice(training: Training) -> tuple[str, str]:
    """A training run in the list of all: its label and its name."""
    return f"{training.name}: {DONE[training.state]}", training.name


def under_way(training: Training) -> str:
    """One sentence for all visitors about an active training run."""
    left = training.progress.left
    rest = f"about {duration(left)} left" if left is not None else _phase(training)
    return f"A training run is under way ({training.name}): {rest}."


def _phase(training: Training) -> str:
    """The current activity, before the time left is known."""
    progress = training.progress
    if progress.closing:
        return "its time is used up, and the adapter is being tried on held-out rows"
    if progress.begun:
        return "the first steps are being made"
    share = "" if progress.share is None else f" {progress.share:.0%}"
    words = progress.words or "Starting"
    return f"{words[:1].lower()}{words[1:]}{share}"


def status(training: Training) -> tuple[str, str]:
    """The state of a training run in a sentence, and its tone."""
    progress = training.progress
    at = f"at step {progress.step}, after {progress.fraction:.0%} of its time"
    match training.state:
        case State.RUNNING:
            return under_way(training), "busy"
        case State.STOPPING:
            return "Stopping: the step under way is ended and everything is saved.", "busy"
        case State.STOPPED:
            if not has_checkpoint(training.folder):
                return "Stopped before anything was saved: Resume begins it again.", "plain"
            return f"Stopped {at}: Resume continues exactly there.", "plain"
        case State.FINISHED:
            return (
                f"Finished: {counted(progress.step, 'step')} in {duration(progress.seconds)}.{_result(training)}",
                "good",
            )
        case State.DIED:
            again = "continues from what was saved" if has_checkpoint(training.folder) else "begins it again"
            return f"The training ended too early. {training.reason} Resume {again}.", "bad"
    return f"{training.reason} It can only be deleted.", "bad"


def _result(training: Training) -> str:
    """The result of a training run."""
    best = training.progress.best
    if best is None:
        return " It was too short, or had too few rows, to measure tokens per step."
    return (
        f" On held-out prompts a pass brings {best:.2f} tokens; standard decoding brings 1. Use it in the Playground."
    )


PHASES = ("Prepare", "Train", "Try it on held-out rows", "Done")


def phases(training: Training) -> str:
    """The phases of a training run, the current one with its progress."""
    progress = training.progress
    at = 3 if training.state is State.FINISHED else 2 if progress.closing else 1 if progress.begun else 0
    now = f"{progress.fraction:.0%}" if at == 1 else escape(_phase(training)) if training.active and at != 3 else ""
    items = (
        f'<li class="{"ss-done" if n < at or at == 3 else "ss-at" if n == at else ""}"'
        f"{' aria-current=step' if n == at else ''}>{name}{f' <small>{now}</small>' if n == at and now else ''}</li>"
        for n, name in enumerate(PHASES)
    )
    return f'<ol class="ss-phases-of" aria-label="Phases of the training">{"".join(items)}</ol>'


def numbers(training: Training) -> Iterator[tuple[str, str, str]]:
    """Numbers to read at a glance: name, value, explanation."""
    progress = training.progress
    last = progress.points[-1].losses if progress.points else []
    count, _, name = streams(training)
    drafting = last[1 : 1 + max(count, 1)]
    loss = sum(drafting) / len(drafting) if drafting else None
    of = f"{counted(progress.rows, 'row')}, {progress.held_out:,} held out" if progress.rows else "rows are being read"
    yield "Steps", f"{progress.step:,}", of
    yield (
        f"Loss of the {name}s" if count else "Loss of the exit",
        number(loss, 2),
        "lower is better; below 3 it drafts usefully",
    )
    yield "Tokens per step", number(progress.best, 2), "the best on held-out prompts; standard decoding: 1"
    yield "Time left", _left(training), _spent(training)
    took = memory.gigabytes(progress.memory) if progress.memory else NOTHING
    yield "Memory", took, "the most that the training took so far"


def streams(training: Training) -> tuple[int, bool, str]:
    """The number of trained streams or heads (0: only the exit), whether the model is trained too, and their name."""
    if (plan := training.plan) is None:
        return 0, True, "stream"
    count = 0 if plan.mode == "exit" else int(plan.options.get("gamma", Config.gamma))
    return count, plan.mode == "shared", "head" if plan.mode == "medusa" else "stream"


def _left(training: Training) -> str:
    left = training.progress.left
    return NOTHING if left is None or not training.active else duration(left)


def _spent(training: Training) -> str:
    budget = training.plan.minutes if training.plan else 0
    return f"{training.progress.seconds / 60:.1f} of {budget:g} {'minute' if budget == 1 else 'minutes'} used"


def facts(training: Training) -> Iterator[tuple[str, str]]:
    """The request, and the facts about the adapter."""
    plan, card = training.plan, _card(training.folder)
    if plan:
        yield "Base model", plan.model
        yield "Task", TASKS[plan.task].label if plan.task in TASKS else plan.task
        yield "Mode", f"{plan.mode}: {MODES.get(plan.mode, '')}"
        yield "Data", plan.data
        yield "Settings", ", ".join(f"{_label(name)} {value}" for name, value in plan.options.items())
    yield STARTED, training.created or NOTHING
    if card:
        yield "Streams", f"{card.get('gamma')}, in {top_layers(card.get('layers', 0))}" if card.get("gamma") else "none"
        yield "Heads", ", ".join(HEADS.get(kind, kind) for kind in card.get("heads") or {}) or "none"
        yield "Licence of the data", str(card.get("licence") or "as your file")
        yield "Command", str(card.get("command"))
    yield "Folder", str(training.folder)


def _label(name: str) -> str:
    """A setting with the form's label, or the name of the option."""
    known = {f.name: f.metadata["label"].lower() for f in fields(Config)}
    return known.get(name, name.replace("_", " "))


def _card(folder: Path) -> dict[str, Any]:
    """The card of the adapter; empty while there is none."""
    try:
        found = json.loads((folder / local.CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def model_card(training: Training) -> str:
    """The text of the adapter's README.md, without its front matter; empty while there is none."""
    try:
        text = (training.folder / README).read_text(encoding="utf-8")
    except OSError:
        return ""
    return text.split("\n---\n", 1)[-1].strip()


def pack(training: Training, folder: Path) -> Path:
    """The adapter as a zip file: its weights, its card and its README.md."""
    file = place(folder, f"{training.name}.zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in (*sorted(training.folder.glob("*.safetensors")), training.folder / local.CARD,
                     training.folder / README):  # fmt: skip
            if part.is_file():
                archive.write(part, f"{training.name}/{part.name}")
    return file


# ---- before it begins ------------------------------------------------------------------------------------------------


def usable(checked: CheckedFile) -> str:
    """The number of rows of a file, and how they are used."""
    are = "1 of their prompts is" if checked.held_out == 1 else f"{checked.held_out:,} of their prompts are"
    held = f"{are} held out to measure tokens per step."
    few = "They are too few to hold some out, so tokens per step is not measured on the way."
    return f"{counted(checked.rows, 'row')} can be used. {held if checked.held_out else few}"


def unusable(checked: CheckedFile) -> list[str]:
    """The problems of a file: nothing is left out silently."""
    more = checked.bad - len(checked.problems)
    rest = ["1 more row has such a fault." if more == 1 else f"{more:,} more rows have such faults."] if more else []
    again = "Correct the file and upload it again, or train on the good rows."
    return [*checked.problems, *rest, again if checked.rows else "Correct the file and upload it again."]


def expectation(registry: Registry, model: str, config: Config, task: str) -> list[str]:
    """What to expect of training, in sentences: tokens per step, then steps and memory, from the last run of the same
    model and mode on this machine, or from the bundled adapter.

    Imports torch, and may ask the Hub for the size of a model. Raises ModelError for a model that can't be used.
    """
    wanted, free = memory.need(model, dtype="float32"), f"{memory.gigabytes(memory.free('auto'))} are free now."
    past = registry.like(model, config.mode)
    return list(filter(None, (_gain(past, model, task), _cost(past, wanted, free, config))))


def _gain(past: Training | None, model: str, task: str) -> str:
    """The tokens per step of another adapter, which indicate what this one may reach."""
    if past is not None and past.progress.best:
        seconds = past.progress.seconds
        return f"{past.name} reached {past.progress.best:.2f} tokens per step after {duration(seconds)} of training."
    folder = bundled(model).get(task)
    known = _card(folder).get("metrics", {}).get("tokens_per_step") if folder else None
    if not known:
        return ""
    return (
        f"The bundled adapter for this task reached {known:.2f} tokens per step on the held-out prompts of its "
        f"training, greedy, with trees of {PROBED} tokens."
    )


def _cost(past: Training | None, wanted: memory.Need | None, free: str, config: Config) -> str:
    if past is None:
        words = "The weights alone take {}, a training several times that;" if wanted else "Memory:"
        weights = words.format(memory.gigabytes(wanted.weights) if wanted else "")
        return f"How many steps fit into the time is seen once the training runs. {weights} {free}"
    rate = past.progress.step / past.progress.seconds
    rows = "" if _batch(past) == config.batch else f" of {counted(_batch(past), 'row')}"
    took = f"It took up to {memory.gigabytes(past.progress.memory)} of memory;" if past.progress.memory else "Memory:"
    return (
        f"The last training of this model here ({past.name}) made {60 * rate:,.0f} steps{rows} a minute: about "
        f"{60 * rate * config.minutes:,.0f} in this time. {took} {free}"
    )


def _batch(training: Training) -> int:
    return int(training.plan.options.get("batch", Config.batch)) if training.plan else 0
