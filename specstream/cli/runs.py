"""``runs``: the log of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specstream.cli.options import Command, together
from specstream.cli.output import one_line, to_json

if TYPE_CHECKING:
    from specstream.runlog import RunLog


@click.group("runs")
def runs_command() -> None:
    """The log of runs: list, show, export, delete."""


db_option = click.option(
    "--db",
    type=click.Path(path_type=Path),
    help="The database file (default: SPECSTREAM_DB or the user's data folder).",
)


def filter_options(command: Command) -> Command:
    return together(
        click.option("--search", help="Words to find in prompts, outputs and notes."),
        click.option("--method", help="Only runs of this method."),
        click.option("--model", help="Only runs of this model."),
        click.option("--since", metavar="DAY", help="Only runs of this day (UTC) or later, as in 2026-11-24."),
        click.option("--until", metavar="DAY", help="Only runs of this day (UTC) or earlier."),
        click.option("--starred", is_flag=True, help="Only runs with a star."),
    )(command)


def _open_log(db: Path | None) -> RunLog:
    """The log. Raises RunLogError for a file that does not exist: a mistyped name would create an empty log."""
    from specstream.runlog import RunLog, RunLogError

    if db is not None and db.name != ":memory:" and not db.exists():
        raise RunLogError(f"There is no log {db}: check the name, or omit --db for the log of this user.")
    return RunLog(db)


@runs_command.command("list")
@db_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many runs to list.")
@click.option(
    "--sort",
    default="newest",
    show_default=True,
    help="newest, oldest, speed-up, tokens per second, tokens per step or tokens.",
)
@filter_options
def runs_list(db: Path | None, limit: int, sort: str, **filters: Any) -> None:
    """List the newest runs, or those that match the filters."""
    log = _open_log(db)
    for run in log.runs(limit=limit, sort=sort, **filters):
        speed = f"{run['speedup']:.2f}x" if run["speedup"] else "-"
        prompt = one_line(run["prompt"][:400])[:50]
        line = f"{run['id']}  {run['started_utc'][:19]}  {run['status']:11}  {run['method']:9}  {speed:>6}"
        click.echo(f"{line}  {run['agreement'] or '-':9}  {prompt}")
    click.echo(f"{log.count(**filters)} runs in {log.path}", err=True)


@runs_command.command("show")
@click.argument("run_id")
@db_option
def runs_show(run_id: str, db: Path | None) -> None:
    """Print everything about one run, as JSON."""
    click.echo(to_json(_open_log(db).run(run_id), indent=2))


@runs_command.command("export")
@click.argument("run_id", metavar="ID|all")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="jsonl: with every step; csv: one row per run.",
)
@db_option
@filter_options
def runs_export(run_id: str, form: str, db: Path | None, **filters: Any) -> None:
    """Write one run, or all that match the filters, to standard output."""
    from specstream.runlog import write_jsonl, write_runs_csv

    log = _open_log(db)
    ids = log.ids(**filters) if run_id == "all" else [log.run(run_id)["id"]]
    with click.open_file("-", "w", encoding="utf-8") as out:
        (write_jsonl if form == "jsonl" else write_runs_csv)(log, out, ids)


@runs_command.command("delete")
@click.argument("run_id")
@db_option
@click.confirmation_option(prompt="Delete this run and all its steps for good?", help="Don't ask for confirmation.")
def runs_delete(run_id: str, db: Path | None) -> None:
    """Delete a run from the log."""
    _open_log(db).delete(run_id)
