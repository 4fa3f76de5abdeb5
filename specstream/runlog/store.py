"""RunLog: start, find and replay runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from sqlite_utils import Database

from specstream.events import Event, Lane
from specstream.info import EngineInfo
from specstream.runlog import serialization
from specstream.runlog.database import LogFile, RunLogError, default_path, new_id, switched_off
from specstream.runlog.filters import NEWEST, Filter, order
from specstream.runlog.recorder import NullRecorder, Recorder, now

LISTED = (
    "number, id, started_utc, finished_utc, status, prompt, task, method, model, adapter, device, dtype, visitor, "
    "output, tokens, steps, tokens_per_step, tokens_per_second, baseline_tokens_per_second, agreement, speedup, "
    "error, note, star"
)
LAST = "~"  # sorts after every character of an id
LARGEST = 2**63 - 1  # the largest integer of SQLite
MEASURED = (
    "method", "prompts", "tokens", "steps", "seconds", "tokens_per_second", "tokens_per_step", "speedup", "identical",
    "total",
)  # fmt: skip


class RunLog:
    """The log in one database file. Safe to share between threads: every call opens its own connection.

    Opening migrates the file and marks runs whose writer has died as interrupted. Without ``path`` the file is
    ``default_path()``. With ``enabled`` False, or ``SPECSTREAM_LOG=off``, new runs are not logged; reading still
    works. Every method raises RunLogError, with one sentence, if the file can't be read or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, enabled: bool | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.enabled = not switched_off("SPECSTREAM_LOG") if enabled is None else enabled
        self.file = LogFile(self.path)
        self._recover()

    def _recover(self) -> None:
        with self.file.connect() as db:
            running = list(db.query("select number, id, writer from runs where status = 'running'"))
            alive = self.file.living_writers()  # after the query: a writer takes its lock before it inserts a row
            dead = [run for run in running if run["writer"] not in alive]
            for run in dead:
                with self.file.writing(db):
                    db.table("runs").update(
                        run["number"], {"status": "interrupted"} | serialization.summary(db, run["id"])
                    )

    def start(
        self,
        info: EngineInfo,
        prompt: str,
        task: str,
        method: str,
        settings: dict[str, Any],
        visitor: str | None = None,
    ) -> NullRecorder:
        """Start a run. ``prompt`` is the text as typed, ``settings`` are plain values."""
        if not self.enabled:
            return NullRecorder()
        run_id = new_id()
        row = {
            "id": run_id,
            "started_utc": now(),
            "status": "running",
            "prompt": serialization.clean(prompt),
            "task": task,
            "method": method,
            "settings_json": serialization.dumps(settings),
            "model": info.model,
            "adapter": info.adapter,
            "device": info.device,
            "dtype": info.dtype,
            "info_json": serialization.dumps(info.to_dict()),
            "visitor": visitor,
            "writer": self.file.writer(),
        }
        with self.file.connect() as db, self.file.writing(db):
            db.table("runs").insert(row)
        with self.file.errors():
            return Recorder(self.file, run_id)

    def runs(self, limit: int = 50, offset: int = 0, sort: str = NEWEST, **filters: Any) -> list[dict[str, Any]]:
        """A page of runs, without their steps. Filters: the fields of ``Filter``; orders: ``SORTS``."""
        where, values = Filter(**filters).where()
        sql = f"select {LISTED} from runs where {where} order by {order(sort)} limit ? offset ?"
        with self.file.connect() as db:
            found = db.query(sql, [*values, min(max(0, limit), LARGEST), min(max(0, offset), LARGEST)])
            return [row | {"star": bool(row["star"])} for row in found]

    def count(self, **filters: Any) -> int:
        """How many runs there are; filters as for ``runs``."""
        where, values = Filter(**filters).where()
        with self.file.connect() as db:
            return db.table("runs").count_where(where, values)

    def ids(self, sort: str = "oldest", **filters: Any) -> list[str]:
        """The ids of all runs that match the filters, by default oldest first."""
        where, values = Filter(**filters).where()
        with self.file.connect() as db:
            sql = f"select id from runs where {where} order by {order(sort)}"
            return [row["id"] for row in db.query(sql, values)]

    def used(self, column: Literal["method", "model"], visitor: str | None = None) -> list[str]:
        """The methods or models in the log, sorted."""
        where, values = Filter(visitor=visitor).where()
        sql = f"select distinct {column} as name from runs where {where} order by name"
        with self.file.connect() as db:
            return [row["name"] for row in db.query(sql, values) if row["name"]]

    def run(self, run: str, visitor: str | None = None) -> dict[str, Any]:
        """Everything about a run, by its id or an unambiguous prefix of it. JSON columns are decoded.

        For a run in progress, this is what has been saved so far. With ``visitor``, only that visitor's runs exist,
        here and in the methods below.
        """
        with self.file.connect() as db:
            row = _find(db, run, visitor)
            if row["status"] == "running":
                row |= serialization.summary(db, row["id"])
        return _decoded(row) | {"star": bool(row["star"])}

    def events(self, run: str, lane: Lane | str = Lane.METHOD, visitor: str | None = None) -> list[Event]:
        """The events of a lane: Started, Steps, and Finished unless the run was cut off. Empty if it never ran."""
        with self.file.connect() as db:
            return serialization.read_events(db, _find(db, run, visitor)["id"], Lane(lane))

    def set_note(self, run: str, note: str, visitor: str | None = None) -> None:
        """Replace the note of a run."""
        self._set(run, visitor, {"note": serialization.clean(note)})

    def set_star(self, run: str, star: bool = True, visitor: str | None = None) -> None:
        """Star a run, or remove its star."""
        self._set(run, visitor, {"star": int(star)})

    def _set(self, run: str, visitor: str | None, values: dict[str, Any]) -> None:
        with self.file.connect() as db, self.file.writing(db):
            db.table("runs").update(_find(db, run, visitor)["number"], values)

    def delete(self, run: str, visitor: str | None = None) -> None:
        """Delete a run and its steps. Raises RunLogError if it is still being written."""
        with self.file.connect() as db, self.file.writing(db):
            row = _find(db, run, visitor)
            if row["status"] == "running":
                raise RunLogError(f"Run {row['id']} is still being written: stop it first.")
            db.table("runs").delete(row["number"])

    def add_benchmark(self, report: dict[str, Any], visitor: str | None = None) -> str:
        """Store a result of ``bench --json`` or ``cost --json``. Returns its id; "" if the log is switched off."""
        if not self.enabled:
            return ""
        key, measured = new_id(), report.get("rows", [])
        head = {name: report.get(name) for name in ("model", "adapter", "device", "dtype", "task")}
        head |= {"task": measured[0]["task"]} if measured else {}
        head |= {"id": key, "measured_utc": report["time_utc"], "commit_id": report["commit"], "visitor": visitor}
        head |= {"report_json": serialization.dumps(report)}
        methods = [
            {"benchmark_id": key, "idx": i} | {name: row[name] for name in MEASURED} for i, row in enumerate(measured)
        ]
        with self.file.connect() as db, self.file.writing(db):
            db.table("benchmarks").insert(head)
            db.table("benchmark_rows").insert_all(methods)
        return key

    def benchmarks(self, limit: int = 50, visitor: str | None = None) -> list[dict[str, Any]]:
        """All benchmarks, newest first, without their results; ``prompts`` is None for a mere cost curve."""
        sql = (
            "select id, measured_utc, task, model, adapter, device, dtype, commit_id, prompts from benchmarks "
            "left join benchmark_rows on benchmark_id = id and idx = 0 where ?1 is null or visitor = ?1 "
            "order by id desc limit ?2"
        )
        with self.file.connect() as db:
            return list(db.query(sql, [visitor, max(0, limit)]))

    def benchmark(self, key: str, visitor: str | None = None) -> dict[str, Any]:
        """A whole result by its id. Raises RunLogError if there is none."""
        sql = "select report_json from benchmarks where id = ?1 and (?2 is null or visitor = ?2)"
        with self.file.connect() as db:
            for row in db.query(sql, [key, visitor]):
                return json.loads(row["report_json"])
        raise RunLogError(f"There is no benchmark {key!r} in the log.")


def _find(db: Database, run: str, visitor: str | None = None) -> dict[str, Any]:
    wanted = serialization.clean(run).strip().upper()
    where, values = Filter(visitor=visitor).where()
    sql = f"select * from runs where id >= ? and id < ? and ? <> '' and {where} limit 2"
    found = list(db.query(sql, [wanted, wanted + LAST, wanted, *values]))
    if not found:
        raise RunLogError(f"There is no run {run.strip()!r} in the log: list the runs to see their ids.")
    if len(found) > 1:
        raise RunLogError(f"More than one run begins with {run.strip()!r}: give more of the id.")
    return found[0]


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Rename columns ``x_json`` to ``x`` and decode them; None where there is no value yet."""
    return {
        name.removesuffix("_json"): json.loads(value) if name.endswith("_json") and value is not None else value
        for name, value in row.items()
    }
