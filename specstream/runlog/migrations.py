"""The schema, as numbered forward-only migrations. A released one is never edited: add another."""

from __future__ import annotations

import json

from sqlite_utils import Database, Migrations
from sqlite_utils.db import ForeignKey

from specstream.runlog.serialization import dumps

migrations = Migrations("specstream.runlog")


@migrations()
def m001_runs(db: Database) -> None:
    """One row per run. The integer key serves full-text search; the text id is shown to users."""
    db.table("runs").create(
        {
            "number": int,
            "id": str,
            "started_utc": str,
            "finished_utc": str,
            "status": str,
            "prompt": str,
            "task": str,
            "method": str,
            "settings_json": str,
            "model": str,
            "adapter": str,
            "device": str,
            "dtype": str,
            "info_json": str,
            "visitor": str,
            "writer": str,
            "output": str,
            "token_ids_json": str,
            "stats_json": str,
            "tokens": int,
            "steps": int,
            "tokens_per_step": float,
            "tokens_per_second": float,
            "baseline_output": str,
            "baseline_token_ids_json": str,
            "baseline_stats_json": str,
            "baseline_tokens_per_second": float,
            "agreement": str,
            "compared": int,
            "position": int,
            "margin": float,
            "speedup": float,
            "message": str,
            "error": str,
            "note": str,
            "star": int,
        },
        pk="number",
        not_null={"id", "started_utc", "status", "prompt", "method", "note", "star"},
        defaults={"note": "", "star": 0},
    )
    db.table("runs").create_index(["id"], unique=True)
    db.table("runs").create_index(["status"])
    db.table("runs").create_index(["visitor"])


@migrations()
def m002_steps(db: Database) -> None:
    """The contents of a run: its one or two lanes, and every step of each with its tree."""
    db.table("lanes").create(
        {
            "run_id": str,
            "lane": str,
            "method": str,
            "prompt_tokens": int,
            "settings_json": str,
            "reason": str,
            "message": str,
            "tail": str,
        },
        pk=("run_id", "lane"),
        not_null={"method", "prompt_tokens", "settings_json"},
        foreign_keys=[ForeignKey("lanes", "run_id", "runs", "id", on_delete="CASCADE")],
    )
    db.table("steps").create(
        {
            "run_id": str,
            "lane": str,
            "idx": int,
            "tokens_json": str,
            "draft_json": str,
            "seconds_json": str,
            "rows": int,
            "stream_rows": int,
        },
        pk=("run_id", "lane", "idx"),
        not_null={"tokens_json", "draft_json", "seconds_json", "rows", "stream_rows"},
        foreign_keys=[ForeignKey("steps", "run_id", "runs", "id", on_delete="CASCADE")],
    )


@migrations()
def m003_search(db: Database) -> None:
    """Full-text search over prompt, output and note; triggers keep it up to date."""
    db.table("runs").enable_fts(["prompt", "output", "note"], create_triggers=True, tokenize="porter")


@migrations()
def m004_benchmarks(db: Database) -> None:
    """Benchmarks, and one row per method of each."""
    db.table("benchmarks").create(
        {
            "id": str,
            "measured_utc": str,
            "task": str,
            "model": str,
            "adapter": str,
            "device": str,
            "dtype": str,
            "commit_id": str,
            "report_json": str,
        },
        pk="id",
        not_null={"measured_utc", "report_json"},
    )
    db.table("benchmark_rows").create(
        {
            "benchmark_id": str,
            "idx": int,
            "method": str,
            "prompts": int,
            "tokens": int,
            "steps": int,
            "seconds": float,
            "tokens_per_second": float,
            "tokens_per_step": float,
            "speedup": float,
            "identical": int,
            "total": int,
        },
        pk=("benchmark_id", "idx"),
        not_null={"method"},
        foreign_keys=[ForeignKey("benchmark_rows", "benchmark_id", "benchmarks", "id", on_delete="CASCADE")],
    )


@migrations()
def m005_listing(db: Database) -> None:
    """An index for every filter and sort order of the list of runs, so that paging through thousands is fast."""
    runs = db.table("runs")
    db.execute("drop index idx_runs_visitor")
    for column in ("visitor", "method", "model", "star"):
        runs.create_index([column, "started_utc"])
    for column in ("started_utc", "speedup", "tokens_per_second", "tokens_per_step", "tokens"):
        runs.create_index([column])


@migrations()
def m006_benchmark_visitor(db: Database) -> None:
    """The owner of a benchmark: on a shared page, each visitor sees only their own."""
    db.table("benchmarks").add_column("visitor", str)


@migrations()
def m007_copied_nodes(db: Database) -> None:
    """A tree says of each node whether it is a copy, not once for all, and a setting turns copies on or off."""
    db.execute("""update steps set draft_json = replace(draft_json, '"copied":false', '"copied":[]')""")
    copied = list(db.query("""select rowid, draft_json from steps where draft_json like '%"copied":true%'"""))
    for step in copied:
        draft = json.loads(step["draft_json"])
        draft["copied"] = [True] * len(draft["tokens"])
        db.execute("update steps set draft_json = ? where rowid = ?", [dumps(draft), step["rowid"]])
    lookup = "json_extract(settings_json, '$.method.lookup')"  # -1: the default
    for table in ("runs", "lanes"):
        for copies, condition in (("on", "> 0"), ("off", "= 0")):
            db.execute(
                f"update {table} set settings_json = json_set(settings_json, '$.method.copies', '{copies}') "
                f"where {lookup} {condition}"
            )
        db.execute(f"update {table} set settings_json = json_remove(settings_json, '$.method.lookup')")
