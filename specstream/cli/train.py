"""``train``: train an adapter, or heads beside one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from specstream import processes
from specstream.cli import options
from specstream.cli.output import check_apart
from specstream.data.tasks import NAMES
from specstream.training.config import Config


@click.command("train")
@options.MODEL
@click.option("--task", required=True, help=f"{NAMES}.")
@click.option("--data", help="A JSONL file with the task's columns, or hub:NAME (default: the task's public dataset).")
@click.option("--dev", help="A JSONL file, or hub:NAME, for validation; the best adapter is then kept.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder of the adapter and its checkpoint (default: adapters/TASK).",
)
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in --out.")
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    help="An adapter to start from: a name from `adapters list` or a folder.",
)
@click.option(
    "--targets",
    type=click.Choice(["references", "self"]),
    default="references",
    show_default=True,
    help="What the streams learn to predict: the data's references, or the model's own answers.",
)
@click.option(
    "--answers", type=click.Path(path_type=Path), help="A file written by `answers`, to train on instead of --data."
)
@options.own_answer_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option(
    "--hold-out",
    type=click.IntRange(-1),
    default=-1,
    show_default="a tenth of the prompts, at most 32",
    help="Without --dev: how many prompts of --data to use for validation instead of training.",
)
@click.option(
    "--progress",
    type=click.Path(path_type=Path),
    help="Append progress to this file, one JSON object per line.",
)
@options.params_options(Config)
def train_command(task: str, data: str | None, out: Path | None, resume: bool, **values: Any) -> None:
    """Train an adapter on a task, or heads beside one.

    An adapter is streams and, in shared mode, a LoRA of the model. Medusa heads and early exits are for comparison.
    """
    from specstream.training.command import TrainingRequest, default_data, summary, timed, train_adapter

    config = Config(**options.pick(Config, values))
    if progress := values["progress"]:
        check_apart("--progress", progress, data=data, dev=values["dev"], answers=values["answers"])
    request = TrainingRequest(
        task=task,
        data=data or ("" if values["answers"] else default_data(task)),
        out=out or Path("adapters") / task,
        resume=resume,
        command=tuple(sys.argv[1:]),
        **options.pick(TrainingRequest, values),
    )
    trained = train_adapter(request, config)
    if not processes.is_first():
        return
    for line in summary(request.out, trained, config.mode):
        click.echo(line)
    if trained.finished and trained.prompts and processes.count() == 1 and config.mode in ("shared", "lossless"):
        click.echo(timed(request, trained.prompts))
