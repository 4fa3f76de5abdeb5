"""The schema as a document: the tables of an empty database, and the meaning of each column."""

from __future__ import annotations

from collections.abc import Iterator

from sqlite_utils import Database
from sqlite_utils.db import Table

from specstream.runlog.migrations import migrations

TABLES = {
    "runs": "One row per run: its request, the model it ran on, and its result.",
    "lanes": "The one or two decodings of a run.",
    "steps": "Every target pass of a lane, with its draft tree.",
    "benchmarks": "One row per benchmark.",
    "benchmark_rows": "The results of a benchmark, one row per method; [metrics](metrics.md) has the formulas.",
}
COLUMNS = {
    "runs": {
        "number": "increasing integer, the key of the full-text index",
        "id": "the id shown to users: a ULID, 26 characters that sort by age",
        "started_utc": "ISO 8601 with milliseconds",
        "finished_utc": "the same format; empty while the run is running, or if it was interrupted",
        "status": "running, finished, stopped (by the user), interrupted (the process died) or error",
        "prompt": "the prompt text",
        "task": "the task whose prompt template was used",
        "method": "the decoding method of the method lane",
        "settings_json": "sampling and method parameters",
        "model": "name of the base model",
        "adapter": "name of the stream adapter",
        "device": "where it ran",
        "dtype": "the number format it ran in",
        "info_json": "everything about the loaded model, versions included",
        "visitor": "key of the browser session, if there was one",
        "writer": "name of the writing process's lock file",
        "output": "text of the method lane",
        "token_ids_json": "its token ids",
        "stats_json": "its metrics",
        "tokens": "emitted tokens of the method lane",
        "steps": "its target passes after the prompt pass",
        "tokens_per_step": "tokens after the first / steps",
        "tokens_per_second": "tokens after the first / seconds of the steps",
        "baseline_output": "text of standard decoding of the same prompt",
        "baseline_token_ids_json": "its token ids",
        "baseline_stats_json": "its metrics",
        "baseline_tokens_per_second": "as above",
        "agreement": "identical, tie, mismatch or unknown",
        "compared": "tokens that were compared",
        "position": "index of the first token that differs",
        "margin": "gap between the two largest scores of standard decoding there",
        "speedup": "measured wall time of standard decoding / of the method",
        "message": "the verdict as a sentence",
        "error": "what went wrong, as a sentence",
        "note": "the user's note",
        "star": "1 for a marked run",
    },
    "lanes": {
        "run_id": "the run",
        "lane": "method or baseline",
        "method": "its decoding method",
        "prompt_tokens": "length of the prompt",
        "settings_json": "the parameters in force",
        "reason": "why it ended: eos, stop_string, length, context, stopped or error; empty if it was cut off",
        "message": "a sentence for an error",
        "tail": "text emitted after that of the last token",
    },
    "steps": {
        "run_id": "the run",
        "lane": "method or baseline",
        "idx": "0 is the prompt pass",
        "tokens_json": "emitted tokens: id, text, origin (draft or target), depth, node, logprob",
        "draft_json": "the draft tree, one entry per node: tokens, parents, probs, fate, target_probs, texts, copied",
        "seconds_json": "seconds per phase: draft, draft_pass, verify, accept, keep",
        "rows": "rows computed in the lower layers",
        "stream_rows": "stream rows added in the top layers",
    },
    "benchmarks": {
        "id": "a ULID, which sorts by age",
        "measured_utc": "ISO 8601",
        "task": "the task of the prompts",
        "model": "name of the base model",
        "adapter": "name of the stream adapter",
        "device": "where it ran",
        "dtype": "the number format it ran in",
        "commit_id": "the commit of the program",
        "report_json": "the whole result, as `bench --json` or `cost --json` writes it",
        "visitor": "key of the browser session that measured it; empty from the command line",
    },
    "benchmark_rows": {
        "benchmark_id": "the benchmark",
        "idx": "row of the table; 0 is standard decoding",
        "method": "the method, or another library's",
        "prompts": "number of prompts",
        "tokens": "emitted tokens",
        "steps": "target passes after the prompt passes",
        "seconds": "sum over the prompts, of the median repeat of each",
        "tokens_per_second": "as in `runs`",
        "tokens_per_step": "as in `runs`",
        "speedup": "seconds of standard decoding / of the method",
        "identical": "prompts with the same tokens as standard decoding",
        "total": "prompts compared",
    },
}


def markdown() -> str:
    """The page ``docs/schema.md``."""
    with Database(memory=True, execute_plugins=False) as db:
        migrations.apply(db)
        steps = ", ".join(f"`{m.name}`" for m in migrations.applied(db))
        lines = [
            "# Schema of the log",
            "",
            "Generated by `python -m specstream.runlog > docs/schema.md`.",
            f"Columns that end in `_json` hold JSON. Migrations, in order: {steps}.",
            "`runs_fts` is the full-text index of `runs` over "
            f"{', '.join(f'`{c}`' for c in db.table('runs_fts').columns_dict)}; triggers keep it up to date.",
        ]
        for name, words in TABLES.items():
            lines += ["", f"## {name}", "", words, "", *_table(db.table(name), COLUMNS[name])]
    return "\n".join(lines) + "\n"


def _table(table: Table, words: dict[str, str]) -> Iterator[str]:
    references = {fk.column: f" → `{fk.other_table}.{fk.other_column}`" for fk in table.foreign_keys}
    yield "| column | type | meaning |"
    yield "|---|---|---|"
    for column in table.columns:
        key = ", key" if column.is_pk else ""
        yield f"| `{column.name}` | {column.type}{key} | {words[column.name]}{references.get(column.name, '')} |"
