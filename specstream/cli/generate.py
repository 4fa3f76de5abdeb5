"""``generate``: continue a prompt, or every prompt of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specstream.cli import options
from specstream.cli.options import Loading, chosen_method
from specstream.cli.output import STDOUT, check_readable, check_writable, harmless, note, write_lines
from specstream.params import Method, Sampling

if TYPE_CHECKING:
    from specstream.engine import Engine
    from specstream.stats import RunStats


@click.command("generate")
@options.model_options
@click.option("--method", "method_name", help=options.STREAMING_WHERE_POSSIBLE)
@click.option("--prompt", help="The prompt; with --task, it is put into the task's template.")
@click.option("--data", type=click.Path(path_type=Path), help="A JSONL file of prompts.")
@options.task_option()
@options.limit_option()
@options.json_option("Write one JSON object per prompt to this file; - is standard output.")
@options.sampling_options
@options.method_options
def generate_command(
    loading: Loading,
    sampling: Sampling,
    method_name: str | None,
    prompt: str | None,
    data: Path | None,
    task_name: str | None,
    limit: int,
    json_file: Path | None,
    **settings: Any,
) -> None:
    """Continue a prompt, or every prompt of a file."""
    _need_one(prompt, data, task_name)
    chosen = chosen_method(method_name, settings) if method_name else None
    options.check_settings(settings)
    check_readable(data, task_name)
    check_writable(json_file, data=data)
    engine = loading.engine(task_name)
    prompts = _prompts(engine, prompt, data, task_name, limit)
    chosen = chosen or chosen_method(engine.default_method().name, settings)
    if engine.info.compiling and not engine.info.compiled:
        click.echo(engine.info.compiling, err=True)
    write_lines(json_file, (_generate_one(engine, p, chosen, sampling, json_file != STDOUT) for p in prompts))


def _need_one(prompt: str | None, data: Path | None, task_name: str | None) -> None:
    if (prompt is None) == (data is None):
        raise click.UsageError("Give either --prompt TEXT or --data FILE.jsonl.")
    if data is not None and not task_name:
        raise click.UsageError("--data needs --task: the task says which columns to read.")


def _prompts(engine: Engine, prompt: str | None, data: Path | None, task_name: str | None, limit: int) -> list[str]:
    from specstream.bench.prompts import read_prompts

    if data is not None:
        return read_prompts(engine, data, str(task_name), limit)
    return [engine.prompt(task_name or "", str(prompt))]


def _generate_one(engine: Engine, prompt: str, chosen: Method, sampling: Sampling, echo: bool) -> dict[str, Any]:
    from specstream.session import text_of, token_ids
    from specstream.stats import summarize

    events = []
    for event in engine.generate(prompt, chosen, sampling):
        events.append(event)
        if echo:
            _echo(text_of([event]))
    stats = summarize(events)
    if echo:
        click.echo()
        click.echo(_summary(stats), err=True)
    _note_full_context(stats, engine)
    return {
        "prompt": prompt,
        "text": text_of(events),
        "token_ids": token_ids(events),
        "method": chosen.name,
        "stats": stats.to_dict(),
    }


def _echo(text: str) -> None:
    click.echo(harmless(text) if sys.stdout.isatty() else text, nl=False)


def _note_full_context(stats: RunStats, engine: Engine) -> None:
    from specstream.events import Reason

    if stats.reason is Reason.CONTEXT:
        note(f"the text ends here because the model's context of {engine.info.context:,} tokens is full.")


def _summary(stats: RunStats) -> str:
    rate, per_step = stats.tokens_per_second, stats.tokens_per_step
    words = [f"{stats.tokens} tokens in {stats.seconds:.2f} s"]
    words += [f"{rate:.1f} tokens/s after the first"] if rate else []
    words += [f"{per_step:.2f} tokens per step"] if per_step else []
    return f"[{', '.join(words)}]"
