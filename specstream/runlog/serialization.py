"""Events to rows and back. The summary of a finished run is computed from its rows, never from memory."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import Any

from sqlite_utils import Database

from specstream.events import Event, Finished, Lane, Reason, Started, Step, from_dict, to_dict
from specstream.stats import summarize

Columns = dict[str, Any]


def clean(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def dumps(value: Any) -> str:
    """Compact JSON that every reader accepts."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    return clean(text)


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor NaN: they become the largest float and 0."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0 if math.isnan(value) else math.copysign(sys.float_info.max, value)
    return value


def write_events(db: Database, run_id: str, batch: Iterable[tuple[Lane, Event]]) -> None:
    """Insert events of a run, in order. The caller has opened a transaction."""
    steps: list[Columns] = []
    for lane, event in batch:
        place = {"run_id": run_id, "lane": str(lane)}
        values = to_dict(event)
        if isinstance(event, Step):
            steps.append(place | _step_row(values))
        elif isinstance(event, Started):
            settings = dumps(values["settings"])
            row = place | {"method": event.method, "prompt_tokens": event.prompt_tokens, "settings_json": settings}
            db.table("lanes").insert(row)
        else:
            end = {"reason": values["reason"], "message": clean(event.message), "tail": clean(event.tail)}
            db.table("lanes").update((run_id, str(lane)), end)
    if steps:
        db.table("steps").insert_all(steps)


def _step_row(values: Columns) -> Columns:
    return {
        "idx": values["index"],
        "tokens_json": dumps(values["tokens"]),
        "draft_json": dumps(values["draft"]),
        "seconds_json": dumps(values["seconds"]),
        "rows": values["rows"],
        "stream_rows": values["stream_rows"],
    }


def read_events(db: Database, run_id: str, lane: Lane) -> list[Event]:
    """The events of a lane: without Finished if the run was interrupted, empty if it never ran."""
    place = [run_id, str(lane)]
    out: list[Columns] = []
    for row in db.table("lanes").rows_where("run_id = ? and lane = ?", place):
        settings = json.loads(row["settings_json"])
        out.append({"kind": "started", "settings": settings} | _only(row, "method", "prompt_tokens"))
        end = {"kind": "finished"} | _only(row, "reason", "message", "tail")
        steps = db.table("steps").rows_where("run_id = ? and lane = ?", place, order_by="idx")
        out += [_step_values(step) for step in steps]
        out += [end] if row["reason"] else []
    return [from_dict(values) for values in out]


def _only(row: Columns, *names: str) -> Columns:
    return {name: row[name] for name in names}


def _step_values(row: Columns) -> Columns:
    decoded = {name: json.loads(row[f"{name}_json"]) for name in ("tokens", "draft", "seconds")}
    return {"kind": "step", "index": row["idx"]} | decoded | _only(row, "rows", "stream_rows")


def summary(db: Database, run_id: str) -> Columns:
    """The columns of a run that are computed from its steps."""
    row = _lane_columns(read_events(db, run_id, Lane.METHOD), "")
    baseline = _lane_columns(read_events(db, run_id, Lane.BASELINE), "baseline_")
    names = ("baseline_output", "baseline_token_ids_json", "baseline_stats_json", "baseline_tokens_per_second")
    return row | {name: baseline[name] for name in names if name in baseline}


def _lane_columns(events: list[Event], prefix: str) -> Columns:
    if not events:
        return {}
    stats = summarize(events)
    tokens = [t for e in events if isinstance(e, Step) for t in e.tokens]
    tail = "".join(e.tail for e in events if isinstance(e, Finished))
    columns = {
        "output": "".join(t.text for t in tokens) + tail,
        "token_ids_json": dumps([t.id for t in tokens]),
        "stats_json": dumps(stats.to_dict()),
        "tokens": stats.tokens,
        "steps": stats.steps,
        "tokens_per_step": stats.tokens_per_step,
        "tokens_per_second": stats.tokens_per_second,
    }
    return {prefix + name: value for name, value in columns.items()}


def outcome(db: Database, run_id: str) -> tuple[str, str | None]:
    """The status of a run that has ended, and the message if it was an error."""
    lanes = list(db.table("lanes").rows_where("run_id = ?", [run_id]))
    for lane in lanes:
        if lane["reason"] == Reason.ERROR:
            return "error", lane["message"]
    cut = not lanes or any(lane["reason"] in (None, Reason.STOPPED) for lane in lanes)
    return "stopped" if cut else "finished", None
