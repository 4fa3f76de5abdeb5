"""Logged runs as the Sessions tab shows them: rows of the table, facts, the walk-through, files. No gradio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specstream.events import Agreement, Lane, Verdict
from specstream.params import METHODS
from specstream.runlog import RunLog, snapshot, write_jsonl, write_steps_csv
from ui.render import NOTHING, number
from ui.view import View, replay

HEADERS = ("Started (UTC)", "Prompt", "Model", "Method", "Tokens", "Tokens/s", "Speed-up", "Outcome")
WIDTHS = ("160px", "290px", "150px", "205px", "80px", "95px", "95px", "135px")
SHOWN_PROMPT = 70  # characters of a prompt in the table
OUTCOMES = {"identical": "identical", "tie": "numerical tie", "mismatch": "different"}


def row(run: Mapping[str, Any]) -> list[str]:
    """One run as a row of the table."""
    return [
        run["started_utc"][:16].replace("T", " "),
        shorten(run["prompt"]),
        run["model"],
        method_label(run["method"]),
        NOTHING if run["tokens"] is None else str(run["tokens"]),
        number(run["tokens_per_second"]),
        number(run["speedup"], 2, "×"),
        OUTCOMES.get(run["agreement"], run["status"]),
    ]


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * SHOWN_PROMPT].split())
    return line if len(line) <= SHOWN_PROMPT else line[: SHOWN_PROMPT - 1] + "…"


def method_label(name: str) -> str:
    return METHODS[name].label if name in METHODS else name


def facts(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of a run, as names and texts."""
    yield "Run", f"{run['id']}, {run['started_utc']}, {run['status']}"
    yield "Prompt", run["prompt"]
    yield "Task", run["task"] or "none"
    yield "Model", f"{run['model']}, adapter {run['adapter']}, {run['device']}, {run['dtype']}"
    yield "Settings", ", ".join(settings(run["settings"]))
    versions = (run["info"] or {}).get("versions", {})
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if run["error"]:
        yield "Error", run["error"]


def settings(values: Mapping[str, Any] | None) -> Iterator[str]:
    """Names and values, without the groups that they are in."""
    for name, value in (values or {}).items():
        if isinstance(value, Mapping):
            yield from settings(value)
        else:
            yield f"{name} {value}"


def verdict(run: Mapping[str, Any]) -> Verdict | None:
    """The verdict of a run; None for one that was cut off before."""
    if not run["agreement"]:
        return None
    measured = (run[name] for name in ("position", "margin", "speedup"))
    return Verdict(Agreement(run["agreement"]), run["compared"] or 0, run["message"] or "", *measured)


def view(runlog: RunLog, run: Mapping[str, Any]) -> View:
    """A logged run as the page shows a run."""
    lanes = {lane: runlog.events(run["id"], lane) for lane in Lane}
    note = f"From the log: run of {run['started_utc'][:16].replace('T', ' ')} UTC, {run['status']}."
    return replay(run["id"], method_label(run["method"]), lanes, verdict(run), note)


def export_run(runlog: RunLog, run: str, folder: Path) -> tuple[Path, Path]:
    """Write a run as JSON lines and its steps as CSV; the two files."""
    lines, table = folder / f"run-{run}.jsonl", folder / f"run-{run}-steps.csv"
    with lines.open("w", encoding="utf-8") as out:
        write_jsonl(runlog, out, [run])
    with table.open("w", encoding="utf-8", newline="") as out:
        write_steps_csv(runlog, out, [run])
    return lines, table


def export_database(runlog: RunLog, folder: Path) -> Path:
    """A consistent copy of the whole log."""
    return snapshot(runlog, folder / "runs.db")
