"""Runs as files: JSON lines, CSV, and a copy of the whole database."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from specstream.events import Event, Fate, Lane, Step, to_dict
from specstream.runlog.database import new_id
from specstream.runlog.serialization import dumps
from specstream.runlog.store import RunLog
from specstream.stats import PHASES

FORMULA = tuple("=+-@\t\r\n＝＋－＠")
STEP_COLUMNS = ("run_id", "lane", "step", "text", "tokens", "drafted", "accepted", "rows", "stream_rows") + tuple(
    f"{phase}_seconds" for phase in PHASES
)


def write_jsonl(log: RunLog, out: IO[str], ids: Iterable[str] | None = None) -> None:
    """One JSON object per run: all its columns, and ``events`` by lane. Without ``ids``: all runs."""
    for run in _runs(log, ids):
        lanes = {str(lane): [to_dict(e) for e in log.events(run["id"], lane)] for lane in Lane}
        out.write(dumps(run | {"events": lanes}) + "\n")


def write_runs_csv(log: RunLog, out: IO[str], ids: Iterable[str] | None = None) -> None:
    """One row per run; nested values are JSON. Open ``out`` with ``newline=""``."""
    writer = csv.writer(out)
    names: list[str] = []
    for run in _runs(log, ids):
        if not names:
            names = list(run)
            writer.writerow(names)
        writer.writerow(_cell(run[name]) for name in names)


def write_steps_csv(log: RunLog, out: IO[str], ids: Iterable[str] | None = None) -> None:
    """One row per step of both lanes. Open ``out`` with ``newline=""``."""
    writer = csv.writer(out)
    writer.writerow(STEP_COLUMNS)
    for run in _runs(log, ids):
        for lane in Lane:
            writer.writerows(_step_cells(run["id"], lane, event) for event in _steps(log.events(run["id"], lane)))


def snapshot(log: RunLog, path: Path) -> Path:
    """Copy the database to ``path`` as one consistent, compact file; an existing file is replaced."""
    fresh = path.with_name(f"{path.name}.{new_id()}")
    try:
        with log.file.connect() as db:
            db.execute("vacuum into ?", [str(fresh)])
        with log.file.errors():
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _runs(log: RunLog, ids: Iterable[str] | None) -> Iterator[dict[str, Any]]:
    return (log.run(run) for run in (log.ids() if ids is None else ids))


def _steps(events: list[Event]) -> Iterator[Step]:
    return (event for event in events if isinstance(event, Step))


def _cell(value: Any) -> Any:
    """A table cell. Text that a spreadsheet would evaluate as a formula gets a leading apostrophe."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return dumps(value) if isinstance(value, dict | list) else value


def _step_cells(run_id: str, lane: Lane, step: Step) -> list[Any]:
    accepted = sum(fate is Fate.ACCEPTED for fate in step.draft.fate)
    text = "".join(token.text for token in step.tokens)
    counts = [len(step.tokens), len(step.draft), accepted, step.rows, step.stream_rows]
    return [run_id, str(lane), step.index, _cell(text), *counts, *(step.seconds.get(phase, "") for phase in PHASES)]
