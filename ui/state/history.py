"""Logged runs for the Sessions tab: their names, facts, views and files. No gradio."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from specstream.data.tasks import TASKS
from specstream.events import Agreement, Lane, Verdict
from specstream.params import METHODS, Sampling
from specstream.runlog import RunLog, snapshot, write_jsonl, write_runs_csv, write_steps_csv

from ..files import place
from ..html.render import STARTED
from . import origin
from .view import View, replay

NAMES = {"baseline": "Also run standard decoding"}  # settings that are neither of a method nor of sampling
SHOWN_PROMPT = 70  # characters of a prompt in the table
ALIKE = 0.05  # a ratio this close to 1 counts as equal
OUTCOMES = {"identical": "same text", "tie": "texts differ where two words were equally likely",
            "mismatch": "different text"}  # fmt: skip


def title(run: Mapping[str, Any]) -> str:
    """A recognisable name for a run: the subject of its prompt, without the task's format."""
    prompt = run["prompt"]
    facts = re.findall(r"(\w[\w ]*)\[([^\]]*)\]", prompt) if run["task"] == "e2e" else []
    if facts:
        return shorten(", ".join(value for _, value in facts[:3]))
    if run["task"] == "sql":
        prompt = prompt.strip().rsplit("\n", 1)[-1]
    if run["task"] == "dialogsum":
        prompt = re.sub(r"#\w+#:\s*", "", prompt)
    return shorten(prompt)


def came(run: Mapping[str, Any]) -> str:
    """The outcome of a run, in one line."""
    same = outcome(run)
    return f"{pace(run['speedup'])} · {same}" if run["speedup"] else same


def pace(ratio: float) -> str:
    """A measured speed-up in words."""
    if abs(ratio - 1) <= ALIKE:
        return "as fast as standard decoding"
    return f"{ratio:.1f}× faster" if ratio > 1 else f"{1 / ratio:.1f}× slower than standard decoding"


def outcome(run: Mapping[str, Any]) -> str:
    """How a run's text compares with that of standard decoding, or how the run ended."""
    return OUTCOMES.get(run["agreement"], run["status"])


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * SHOWN_PROMPT].split())
    return line if len(line) <= SHOWN_PROMPT else line[: SHOWN_PROMPT - 1] + "…"


def method_label(name: str) -> str:
    return METHODS[name].label if name in METHODS else name


def facts(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts about a run, as names and texts."""
    yield "Run", f"{run['id']}, {run['status']}"
    yield STARTED, run["started_utc"]
    yield from conversation((run["settings"] or {}).get("chat"))
    yield "Prompt", run["prompt"]
    if branch := (run["settings"] or {}).get("branch"):
        yield "Goes on after", f"{branch['after']} (from run {branch['of']})"
    yield "Task", task(run)
    yield "Model", model_words(run)
    if run["speedup"]:
        yield "Measured", "once, by this run; what Measure again finds is not kept"
    yield "Settings", changed(run["settings"], run["method"]) or "default settings"
    versions = (run["info"] or {}).get("versions", {})
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if run["error"]:
        yield "Error", run["error"]


def model_words(run: Mapping[str, Any]) -> str:
    """The model and machine of a run, in one line."""
    return f"{run['model']}, adapter {run['adapter']}, {run['device']}, {run['dtype']}"


def flat(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings by name, without their groups, and without the conversation or the given start of the text."""
    out: dict[str, Any] = {}
    for name, value in (values or {}).items():
        if name not in ("chat", "branch"):
            out |= flat(value) if isinstance(value, Mapping) else {name: value}
    return out


def changed(settings: Mapping[str, Any] | None, method: str) -> str:
    """The non-default settings of a method's run, with the labels of the form; empty if there are none."""
    groups = settings or {}
    given = flat({name: groups[name] for name in ("method", "sampling") if name in groups})
    kinds = (METHODS[method], Sampling) if method in METHODS else (Sampling,)
    known = {f.name: f for kind in kinds for f in fields(kind)}
    return ", ".join(
        f"{label(name, method)} {said(value)}"
        for name, value in given.items()
        if name in known and value != _plain(known[name].default)
    )


def label(name: str, method: str) -> str:
    """A setting's name in the form."""
    known = [f for kind in (METHODS.get(method, Sampling), Sampling) for f in fields(kind) if f.name == name]
    return str(known[0].metadata.get("label", name)) if known else NAMES.get(name, name.replace("_", " "))


def said(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(repr, value)) or "none" if isinstance(value, list | tuple) else str(value)


def task(run: Mapping[str, Any]) -> str:
    """A run's task as the form names it."""
    return TASKS[run["task"]].label if run["task"] in TASKS else "none: the prompt as it is"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def conversation(chat: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The conversation before a chat message."""
    if chat and chat["system"]:
        yield "System prompt", chat["system"]
    if chat and chat["turns"]:
        yield "Said before", "\n\n".join(f"You: {asked}\nModel: {replied}" for asked, replied in chat["turns"])


def verdict(run: Mapping[str, Any]) -> Verdict | None:
    """The verdict of a run; None if the run was cut off before it."""
    if not run["agreement"]:
        return None
    measured = (run[name] for name in ("position", "margin", "speedup"))
    return Verdict(Agreement(run["agreement"]), run["compared"] or 0, run["message"] or "", *measured)


def view(runlog: RunLog, run: Mapping[str, Any]) -> View:
    """The view of a logged run."""
    lanes = {lane: runlog.events(run["id"], lane) for lane in Lane}
    note = f"From the log: run of {run['started_utc'][:16].replace('T', ' ')} UTC, {run['status']}."
    shown = replay(run["id"], method_label(run["method"]), lanes, verdict(run), note)
    shown.log_id, shown.origin = run["id"], origin.of_row(run)
    return shown


def export_run(runlog: RunLog, run: str, folder: Path) -> tuple[Path, Path]:
    """Write a run as JSON lines and its steps as CSV. Returns the two files."""
    lines, table = place(folder, f"run-{run}.jsonl"), place(folder, f"run-{run}-steps.csv")
    with lines.open("w", encoding="utf-8") as out:
        write_jsonl(runlog, out, [run])
    with table.open("w", encoding="utf-8", newline="") as out:
        write_steps_csv(runlog, out, [run])
    return lines, table


def export_runs(runlog: RunLog, ids: Sequence[str], folder: Path, form: str) -> Path:
    """Write these runs to one file. ``form``: jsonl, with every step, or csv, a row for each run."""
    file = place(folder, f"runs-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.{form}")
    with file.open("w", encoding="utf-8", newline="") as out:
        (write_jsonl if form == "jsonl" else write_runs_csv)(runlog, out, ids)
    return file


def export_database(runlog: RunLog, folder: Path) -> Path:
    """A consistent copy of the whole log."""
    return snapshot(runlog, place(folder, "runs.db"))
