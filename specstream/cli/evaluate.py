"""``evaluate``: the quality of a task's texts, scored against references."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from specstream import processes
from specstream.cli import options
from specstream.cli.options import Loading, chosen_method
from specstream.cli.output import check_apart, check_readable, check_writable, saved
from specstream.params import Sampling


@click.command("evaluate")
@options.model_options
@click.option("--method", "method_name", help=options.STREAMING_WHERE_POSSIBLE)
@click.option("--data", help="A JSONL file with the task's columns, or hub:NAME.")
@click.option("--split", default="validation", show_default=True, help="The split of a hub: dataset.")
@options.task_option()
@options.limit_option()
@options.json_option("Write the result, with every text, here.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Compare with this earlier result, prompt by prompt; without --data, --json names the result to compare.",
)
@options.sampling_options
@options.method_options
def evaluate_command(json_file: Path | None, against: Path | None, **chosen: Any) -> None:
    """Score the quality of a task's texts against references."""
    from specstream.bench import evaluation

    data, task_name = chosen["data"], chosen["task_name"]
    if (data is None) != (task_name is None) or (data is None and not (json_file and against)):
        raise click.UsageError("Give --data and --task; or --json and --against to compare two earlier results.")
    if data and json_file:
        check_apart("--json", json_file, against=against)
    other = evaluation.read_result(against) if against else None
    result = _evaluate(json_file, **chosen) if data else evaluation.read_result(Path(str(json_file)))
    if not processes.is_first():
        return
    with saved(json_file if data else None, result, printed=False):
        for line in evaluation.result_lines(result):
            click.echo(line)
        if other:
            for line in evaluation.comparison_lines(evaluation.compare(result, other), str(against)):
                click.echo(line)


def _evaluate(
    json_file: Path | None,
    loading: Loading,
    sampling: Sampling,
    method_name: str | None,
    data: str,
    split: str,
    task_name: str,
    limit: int,
    **settings: Any,
) -> dict[str, Any]:
    from tqdm import tqdm

    from specstream.bench import evaluation
    from specstream.data.tasks import task

    evaluation.scorer(task(task_name))  # raises before the model is loaded
    chosen = chosen_method(method_name, settings) if method_name else None
    options.check_settings(settings)
    check_readable(data, task_name, hub=True)
    check_writable(json_file, data=data)
    engine = loading.engine(task_name)
    items = evaluation.read_items(engine, data, split, task(task_name), limit)
    chosen = chosen or chosen_method(engine.default_method().name, settings)
    with tqdm(total=len(items), unit="prompt", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        return evaluation.evaluate(engine, items, task_name, chosen, sampling, lambda: bar.update() and None)
