"""``bench``: methods against standard decoding, interleaved on the same prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specstream import processes
from specstream.cli import options
from specstream.cli.options import Loading, adapter_task, chosen_methods
from specstream.cli.output import STDOUT, check_readable, check_writable, note, progress, progress_done, saved, to_json
from specstream.params import METHODS, Method, Sampling

if TYPE_CHECKING:
    from specstream.bench.prompts import Case
    from specstream.bench.runner import Contender, MethodRuns
    from specstream.engine import Engine
    from specstream.info import EngineInfo

EVERYTHING = "all"  # among the names of methods


@click.command("bench")
@options.model_options
@click.option(
    "--methods",
    default="standard,streaming",
    show_default=True,
    help=f"Comma-separated names: {', '.join(METHODS)}; transformers' own: hf, hf-prompt-lookup, hf-assistant; all: "
    "every method that the model can run. A name may include settings and appear several times: "
    "streaming:budget=12:streams=deferred.",
)
@click.option("--assistant", help="The second model of hf-assistant (default: the draft model).")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A JSONL file of prompts.")
@options.task_option("or spec-bench for its questions.", required=True)
@options.limit_option(40, "Rows of --data to use (for spec-bench, per category); 0 is all.")
@options.repeats_option("Runs of each method on each prompt; the median counts.")
@click.option(
    "--memory", is_flag=True, help="Also measure each method's memory, in a process that loads only that method."
)
@options.json_option()
@options.sampling_options
@options.method_options
def bench_command(
    loading: Loading,
    sampling: Sampling,
    methods: str,
    assistant: str | None,
    data: Path,
    task_name: str,
    limit: int,
    repeats: int,
    memory: bool,
    json_file: Path | None,
    **settings: Any,
) -> None:
    """Time methods against standard decoding on the same prompts.

    They are interleaved: on every prompt each method runs in turn, so that a slower minute slows all of them.
    """
    names = _named(methods)
    chosen_methods([n for n in names if n != EVERYTHING], settings)  # reject bad names before the model is loaded
    check_readable(data, task_name)
    check_writable(json_file, data=data)
    engine = loading.engine(adapter_task(task_name))
    names, chosen = _expanded(names, settings, engine.info, assistant)

    from specstream import bench

    cases = bench.read_cases(engine, data, task_name, limit)
    contenders: list[Contender] = [bench.Ours(engine, m) for m in chosen]
    outside = [n for n in names if n in bench.REFERENCES]
    contenders += bench.references(outside, engine, loading.adapter_of(engine), assistant)
    rows = _timed(engine, cases, contenders, sampling, repeats)
    if not processes.is_first():
        return
    if memory:
        _measure_memory(rows, engine, cases, sampling, loading)
    results = bench.result_rows(rows, bench.task_of(cases, task_name))
    report = bench.described(engine) | {"repeats": repeats, "sampling": sampling.to_dict(), "rows": results}
    if processes.count() > 1:
        report["processes"] = processes.count()
        note(f"{processes.count()} processes ran at once: tokens per step are valid, times and speed-ups are not.")
    publish(report, json_file, [*bench.table(results), *bench.categories(results), *bench.differences(results)])


def _named(methods: str) -> list[str]:
    """The names in ``--methods``. Raises ValueError for none, and for settings of names that have none."""
    from specstream.bench.tables import REFERENCES

    names = list(dict.fromkeys(n.strip() for n in methods.split(",") if n.strip()))
    if not names:
        raise ValueError(f"--methods names no method: choose some of {', '.join((*METHODS, *REFERENCES, EVERYTHING))}.")
    for name in names:
        if (plain := name.split(":")[0].strip()) != name and plain in (*REFERENCES, EVERYTHING):
            raise ValueError(f"{plain} takes no settings of its own: write {plain}.")
    return names


def _expanded(
    names: Sequence[str], settings: dict[str, Any], info: EngineInfo, assistant: str | None
) -> tuple[list[str], list[Method]]:
    """The names with ``all`` expanded, and the methods among them. Raises ValueError for a method that can't run."""
    wanted = [name for n in names for name in (_everything(info, assistant) if n == EVERYTHING else [n])]
    chosen = chosen_methods(wanted, settings)
    if EVERYTHING in names:  # beside "all", a name with settings is also left out if it can't run
        chosen = [m for m in chosen if m.name not in info.unavailable]
    if missing := [info.unavailable[m.name] for m in chosen if m.name in info.unavailable]:
        raise ValueError(missing[0])
    return wanted, chosen


def _everything(info: EngineInfo, assistant: str | None) -> list[str]:
    """The names of all methods that the loaded model can run."""
    from specstream.bench.tables import REFERENCES

    ours = [name for name in METHODS if name not in info.unavailable]
    both = bool(assistant) or info.draft_parameters > 0  # transformers' assistant is also a second model
    outside = [name for name in REFERENCES if both or name != "hf-assistant"]
    return ours + (outside if info.model != "toy" and info.dtype != "int8" else [])


def _timed(
    engine: Engine, cases: list[Case], contenders: list[Contender], sampling: Sampling, repeats: int
) -> list[MethodRuns]:
    from tqdm import tqdm

    from specstream import bench

    total = bench.runs_of(cases, contenders, repeats)
    with tqdm(total=total, unit="run", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        return bench.bench(engine, cases, contenders, sampling, repeats, lambda: bar.update() and None)


def _measure_memory(
    rows: list[MethodRuns], engine: Engine, cases: list[Case], sampling: Sampling, loading: Loading
) -> None:
    """Measure our own methods only: a process that runs transformers' also contains our engine."""
    from specstream.bench.memory import MemoryRequest, measured, picked

    prompts = picked([case.prompt(engine, []) for case in cases])
    loaded = (engine.info.model, loading.adapter_of(engine), loading.device, loading.dtype, loading.draft_model)
    for row in rows:
        if (contender := row.contender).ours:
            progress(f"Measuring the memory of {contender.label}", None)
            row.memory = measured(
                MemoryRequest(*loaded, contender.name, contender.settings, sampling.to_dict(), prompts)
            )
    progress_done()


def publish(report: dict[str, Any], json_file: Path | None, lines: list[str]) -> None:
    """Write a result to its file, the log and standard output; the file first, because the output may be a pipe that
    is closed early. If the file can't be written, the result is still logged and printed."""
    with saved(json_file, report):
        _log(report)
        for line in lines:
            click.echo(line)
        if json_file != STDOUT:  # where it is already
            click.echo(to_json(report))


def _log(report: dict[str, Any]) -> None:
    """Store a result in the log. It is printed as well, so a log that can't be written deserves only a note."""
    from specstream.runlog import RunLog, RunLogError

    try:
        RunLog().add_benchmark(report)
    except RunLogError as error:
        note(error)
