"""``cost``: the cost of a step on this machine, and the tree that suits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from specstream.cli import options
from specstream.cli.bench import publish
from specstream.cli.options import Loading, adapter_task, chosen_method
from specstream.cli.output import check_readable, check_writable
from specstream.params import Method, Sampling, Streaming


@click.command("cost")
@options.model_options
@click.option(
    "--seconds",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    callback=options.a_number,
    help="How long to measure.",
)
@click.option("--data", type=click.Path(path_type=Path), help="A JSONL file of prompts to continue.")
@options.task_option("or spec-bench for its questions.")
@options.limit_option(16)
@click.option(
    "--tune", is_flag=True, help="Choose the tree for this machine on half of --data, and test it on the rest."
)
@click.option("--method", "method_name", default="streaming", show_default=True, help="The method to tune.")
@options.repeats_option("Runs on each prompt when the choice is tested.")
@options.json_option()
@options.sampling_options
@options.method_options
def cost_command(
    loading: Loading,
    sampling: Sampling,
    seconds: float,
    data: Path | None,
    task_name: str | None,
    limit: int,
    tune: bool,
    method_name: str,
    repeats: int,
    json_file: Path | None,
    **settings: Any,
) -> None:
    """Measure the time of a step by the size of its tree.

    With --tune, also choose the tree that suits this machine.
    """
    from specstream.bench import described, read_cases, step_cost, tables
    from specstream.bench.tune import first_turns, tried

    chosen = chosen_method(method_name, settings)
    _check(data, task_name, tune, chosen)
    check_readable(data, task_name)
    check_writable(json_file, data=data)
    engine = loading.engine(adapter_task(task_name))
    if tune and chosen.name in engine.info.unavailable:
        raise ValueError(engine.info.unavailable[chosen.name])
    cases = read_cases(engine, data, str(task_name), limit) if data else []
    params = chosen if isinstance(chosen, Streaming) else Streaming()
    costs = step_cost.measure(engine, first_turns(engine, cases), seconds, params=params)
    report = described(engine) | {"task": task_name, "cost": step_cost.report(engine, costs)}
    lines = [*tables.cost_table(report["cost"])]
    if tune:
        report["tuned"] = tried(engine, costs, cases, chosen, sampling, repeats)
        lines += ["", *tables.tuning_table(report["tuned"])]
    publish(report, json_file, lines)


def _check(data: Path | None, task_name: str | None, tune: bool, chosen: Method) -> None:
    """Raise ValueError for options that don't go together, before any measurement starts."""
    from specstream.bench import step_cost

    if (data is None) != (task_name is None):
        raise ValueError("--data and --task belong together: the task says which columns to read.")
    if tune and data is None:
        raise ValueError("--tune needs prompts: give --data FILE.jsonl and --task NAME.")
    if tune:
        step_cost.largest(chosen)  # raises for a method without a tree
