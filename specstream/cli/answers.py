"""``answers``: write a model's own answers to a file that several training runs can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from specstream import processes
from specstream.cli import options
from specstream.data.tasks import NAMES


@click.command("answers")
@options.MODEL
@click.option("--task", required=True, help=f"{NAMES}.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The JSONL file to write; answers already in it are kept.",
)
@click.option("--data", help="Prompts to answer: a JSONL file with the task's columns, or hub:NAME.")
@options.own_answer_options
@click.option("--start", type=click.Path(path_type=Path), help="An adapter that tunes the model.")
@click.option(
    "--batch-tokens",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Total tokens of the texts decoded in one batch; 0: what suits the device. Answers depend on this number.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
def answers_command(**values: Any) -> None:
    """Have a model answer prompts, for `train --answers`. Run again, it continues; `accelerate launch` splits the
    work."""
    from specstream.training.answers import AnswersRequest, write_answers

    words = write_answers(AnswersRequest(**values))
    if processes.is_first():
        click.echo(words)
