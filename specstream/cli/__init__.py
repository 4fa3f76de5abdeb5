"""The command line: generate, bench, cost, evaluate, answers, train, adapters, runs, models. Errors are one line."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click

from specstream import processes
from specstream.data.tasks import NAMES
from specstream.params import METHODS, Method, Sampling, Streaming, method, parse
from specstream.training.config import Config

Command = Callable[..., Any]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
EVERYTHING = "all"  # among the methods of a benchmark


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit; no traceback for anything that a user can cause."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # None where it is closed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding such as latin-1 lacks is shown by its number
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:] if args is None else args)
    except BrokenPipeError:  # whoever reads has had enough
        code = 0
    try:
        sys.stdout.flush()
    except OSError:  # that is known by now; the interpreter would try once more when it ends
        _close_output()
    if code:
        sys.exit(code)


def _run(args: list[str]) -> int:
    """Run a command. Returns the exit code, and says what went wrong in one line."""
    try:
        with cli.make_context("python -m specstream", list(args)) as context:  # cli.main makes a closed pipe an error
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _failed(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt, EOFError):
        return _failed("stopped", 130)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return _failed(_sentence(error), 1)
    except Exception as error:  # whatever else goes wrong, in code of others or in ours: no traceback for a user
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        return _failed(_unexpected(error), 1)
    return 0


def _close_output() -> None:
    """Let what can't be written vanish."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or not a file of the system, in a test
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


def _unexpected(error: Exception) -> str:
    from specstream.hub.catalogue import out_of_memory

    if out_of_memory(error):
        return "there is not enough memory for this: choose a smaller model, a shorter prompt or fewer tokens."
    return f"something went wrong ({type(error).__name__}: {_sentence(error)})"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _failed(words: str, code: int) -> int:
    click.echo(f"error: {_one_line(words)}", err=True)
    return code


def _note(words: Any) -> None:
    click.echo(f"note: {_one_line(words)}", err=True)


def _one_line(words: Any) -> str:
    """Text from elsewhere as one line."""
    return _harmless(" ".join(str(words).split()))


def _harmless(text: str) -> str:
    """Text that can't steer a terminal: control characters, and those that turn the direction, are spelled out."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _json(value: Any, indent: int | None = None) -> str:
    """JSON for standard output, in ASCII where that has no other characters."""
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    return _harmless(json.dumps(value, ensure_ascii=not unicode, indent=indent))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Speculative Streaming: one language model drafts for itself and verifies its own drafts."""


def params_options(*kinds: type) -> Callable[[Command], Command]:
    """One option per field of the given parameter classes, with its default and help."""

    def decorate(command: Command) -> Command:
        for kind in reversed(kinds):
            for f in reversed(fields(kind)):
                if "label" in f.metadata:
                    command = _option(f)(command)
        return command

    return decorate


def _option(f: Any) -> Callable[[Command], Command]:
    assert f.default is not MISSING
    choices = f.metadata.get("choices")
    kind = click.Choice(choices) if choices else type(f.default)
    name = "--" + f.name.replace("_", "-")
    return click.option(name, f.name, type=kind, default=f.default, show_default=True, help=f.metadata["help"])


def method_options(command: Command) -> Command:
    """One option per setting of any method. Methods may share a name: each has a default of its own."""
    settings: dict[str, dict[str, Any]] = {}  # name: the field in every method that has it
    for name, kind in METHODS.items():
        for f in fields(kind):
            settings.setdefault(f.name, {})[name] = f
    for name, owners in reversed(settings.items()):
        first, *_ = owners.values()
        choices = first.metadata.get("choices")
        form = click.Choice(choices) if choices else type(first.default)
        words = f"{first.metadata['help']} ({', '.join(f'{owner}: {f.default}' for owner, f in owners.items())})"
        command = click.option("--" + name.replace("_", "-"), name, type=form, default=None, help=words)(command)
    return command


def model_options(command: Command) -> Command:
    """The options that choose what is loaded."""
    for option in (
        click.option(
            "--draft-model",
            default="none",
            show_default=True,
            help="A second, smaller model with the same tokenizer: a known name, a Hub id or a folder.",
        ),
        click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps."),
        click.option(
            "--adapter",
            default="auto",
            show_default=True,
            help="auto, none, a name of `adapters list`, a folder or hub:OWNER/NAME.",
        ),
        click.option("--model", default="smollm2-135m", show_default=True, help="A known name, a Hub id or a folder."),
    ):
        command = option(command)
    return command


def _load(model: str, adapter: str, device: str, dtype: str, draft_model: str, task_name: str | None = None) -> Any:
    """Load a model; with adapter auto the one that comes with the program for the task, where there is one."""
    from specstream.adapters.store import bundled
    from specstream.engine import load
    from specstream.model.devices import choose_device

    if adapter == "auto" and task_name in bundled(model):
        adapter = task_name
    if processes.count() > 1:
        processes.join(choose_device(device)[0])
    try:
        engine = load(model, adapter, device, dtype, progress=_progress, draft=draft_model)
    finally:
        _progress_done()
    for note in engine.info.notes:
        _note(note)
    return engine


def _progress(words: str, fraction: float | None) -> None:
    if sys.stderr.isatty():
        share = "" if fraction is None else f" {100 * fraction:3.0f} %"
        click.echo(f"\r\033[K{words}{share}", err=True, nl=False)


def _progress_done() -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", err=True, nl=False)


def _pick(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}


def _method(name: str, values: dict[str, Any], own: dict[str, Any] | None = None) -> Method:
    """A method with the settings that were given, to all methods or as its ``own``; None leaves its default."""
    given = _pick(METHODS[name], values) if name in METHODS else {}
    return method(name, **{k: v for k, v in given.items() if v is not None} | (own or {}))


def _methods(names: list[str], values: dict[str, Any]) -> list[Method]:
    """The methods among the names, each with its own settings: transformers' own are left out."""
    from specstream.bench.tables import REFERENCES

    return [_method(name, values, own) for name, own in (parse(n) for n in names if n not in REFERENCES)]


def _everything(info: Any, assistant: str | None) -> list[str]:
    """Names of all that can run on the loaded model."""
    from specstream.bench.tables import REFERENCES

    ours = [name for name in METHODS if name not in info.unavailable]
    both = bool(assistant) or info.draft_parameters > 0  # the library's assistant is a second model too
    outside = [name for name in REFERENCES if both or name != "hf-assistant"]
    return ours + (outside if info.model != "toy" else [])


def _need_one(prompt: str | None, data: Path | None, task_name: str | None) -> None:
    if (prompt is None) == (data is None):
        raise click.UsageError("Give either --prompt TEXT or --data FILE.jsonl.")
    if data is not None and not task_name:
        raise click.UsageError("--data needs --task: the task says which columns to read.")


@cli.command()
@model_options
@click.option(
    "--method", "method_name", default=None, help=f"{', '.join(METHODS)} (default: streaming where the model can)."
)
@click.option("--prompt", help="The prompt; with --task its template is put around it.")
@click.option("--data", type=click.Path(path_type=Path), help="A JSONL file of prompts.")
@click.option("--task", "task_name", help=f"{NAMES}.")
@click.option("--limit", type=click.IntRange(0), default=0, show_default=True, help="Rows of --data to use; 0 is all.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="Write one JSON object per prompt, - for standard output.",
)
@click.option("--stop", multiple=True, help="A stop string, or a special token by name; may be given several times.")
@params_options(Sampling)
@method_options
def generate(
    model: str,
    adapter: str,
    device: str,
    dtype: str,
    draft_model: str,
    method_name: str | None,
    prompt: str | None,
    data: Path | None,
    task_name: str | None,
    limit: int,
    json_file: Path | None,
    stop: tuple[str, ...],
    **values: Any,
) -> None:
    """Write a continuation of a prompt, or of every prompt of a file."""
    _need_one(prompt, data, task_name)
    sampling = Sampling(**_pick(Sampling, values), stop=stop)
    chosen = _method(method_name, values) if method_name else None
    _check_writable(json_file, data=data)
    engine = _load(model, adapter, device, dtype, draft_model, task_name)
    if data is not None:
        from specstream.bench.prompts import read_prompts

        prompts = read_prompts(engine, data, str(task_name), limit)
    else:
        prompts = [engine.prompt(task_name or "", str(prompt))]
    chosen = chosen or _method(engine.default_method().name, values)
    if engine.info.compiling and not engine.info.compiled:
        click.echo(engine.info.compiling, err=True)
    results = (_generate_one(engine, p, chosen, sampling, echo=json_file != Path("-")) for p in prompts)
    _write_lines(json_file, results)


def _generate_one(engine: Any, prompt: str, chosen: Method, sampling: Sampling, echo: bool) -> dict[str, Any]:
    from specstream.events import Finished, Reason, Step
    from specstream.session import token_ids
    from specstream.stats import summarize

    events, parts = [], []
    for event in engine.generate(prompt, chosen, sampling):
        events.append(event)
        new = "".join(t.text for t in event.tokens) if isinstance(event, Step) else ""
        new += event.tail if isinstance(event, Finished) else ""
        parts.append(new)
        if echo:
            click.echo(_harmless(new) if sys.stdout.isatty() else new, nl=False)
    stats = summarize(events)
    if echo:
        click.echo()
        click.echo(_summary(stats), err=True)
    if stats.reason is Reason.CONTEXT:
        _note(f"the text ends here because the model's context of {engine.info.context:,} tokens is full.")
    text = "".join(parts)
    return {
        "prompt": prompt,
        "text": text,
        "token_ids": token_ids(events),
        "method": chosen.name,
        "stats": stats.to_dict(),
    }


def _summary(stats: Any) -> str:
    rate, per_step = stats.tokens_per_second, stats.tokens_per_step
    words = [f"{stats.tokens} tokens in {stats.seconds:.2f} s"]
    words += [f"{rate:.1f} tokens/s after the first"] if rate else []
    words += [f"{per_step:.2f} tokens per step"] if per_step else []
    return f"[{', '.join(words)}]"


def _write_lines(file: Path | None, results: Iterator[dict[str, Any]]) -> None:
    """Every result as soon as it is there, one JSON object a line."""
    if file is None:
        for _ in results:
            pass
        return
    # JSON spells half of a surrogate pair as this way to treat errors does.
    with click.open_file(str(file), "w", encoding="utf-8", errors="backslashreplace") as out:
        for result in results:
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
            out.flush()


def _check_writable(file: Path | None, **read: Path | str | None) -> None:
    """Refuse an output that can't be written, or that is one of the files to ``read``, before the work starts."""
    if file is None or file == Path("-"):
        return
    _check_apart("--json", file, **read)
    if not file.parent.is_dir():
        raise ValueError(f"The folder {file.parent} of the output file does not exist: make it first.")
    with file.open("a", encoding="utf-8"):
        pass


def _check_apart(option: str, written: Path, **read: Path | str | None) -> None:
    """Refuse to write over what is read. ``read`` are files by the names of their options."""
    for name, file in read.items():
        if file is not None and _same_file(written, Path(file)):
            raise ValueError(f"--{name} and {option} name the same file, which would be overwritten: name another one.")


def _same_file(one: Path, other: Path) -> bool:
    """Whether two names mean the same file, by way of links too."""
    if one.is_file() and other.is_file():
        return one.samefile(other)
    return one.resolve() == other.resolve()


@cli.command()
@model_options
@click.option(
    "--methods",
    default="standard,streaming",
    show_default=True,
    help=f"Names, separated by commas: {', '.join(METHODS)}; hf, hf-prompt-lookup, hf-assistant are transformers' own. "
    "all is every one that the model can run. A name may bring settings, and come twice: "
    "streaming:budget=12:streams=deferred.",
)
@click.option("--assistant", help="The second model of hf-assistant (default: the draft model).")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A JSONL file of prompts.")
@click.option("--task", "task_name", required=True, help=f"{NAMES}, or spec-bench for its questions.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=40,
    show_default=True,
    help="Rows of --data to use; 0 is all. Of spec-bench: in each category.",
)
@click.option("--repeats", default=3, show_default=True, help="Runs of each method on each prompt; the median counts.")
@click.option("--memory", is_flag=True, help="Measure each method's memory too, in a process that loads it alone.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result as one JSON object.")
@click.option("--stop", multiple=True, help="A stop string, or a special token by name; may be given several times.")
@params_options(Sampling)
@method_options
def bench(
    model: str,
    adapter: str,
    device: str,
    dtype: str,
    draft_model: str,
    methods: str,
    assistant: str | None,
    data: Path,
    task_name: str,
    limit: int,
    repeats: int,
    memory: bool,
    json_file: Path | None,
    stop: tuple[str, ...],
    **values: Any,
) -> None:
    """Time methods against standard decoding, interleaved on the same prompts."""
    from tqdm import tqdm

    from specstream import bench as benchmark

    if repeats < 1:
        raise ValueError("--repeats must be at least 1.")
    names = list(dict.fromkeys(n.strip() for n in methods.split(",") if n.strip()))
    sampling = Sampling(**_pick(Sampling, values), stop=stop)
    _methods([n for n in names if n != EVERYTHING], values)  # refuses what is wrong before the model is loaded
    _check_writable(json_file, data=data)
    engine = _load(model, adapter, device, dtype, draft_model, _adapter_task(task_name))
    everything = EVERYTHING in names
    names = [name for n in names for name in (_everything(engine.info, assistant) if n == EVERYTHING else [n])]
    chosen = _methods(names, values)
    if everything:  # what stands beside it, with settings of its own, is left out too where it can't run
        chosen = [m for m in chosen if m.name not in engine.info.unavailable]
    if missing := [engine.info.unavailable[m.name] for m in chosen if m.name in engine.info.unavailable]:
        raise ValueError(missing[0])
    cases = benchmark.read_cases(engine, data, task_name, limit)
    contenders: list[Any] = [benchmark.Ours(engine, m) for m in chosen]
    outside = [n for n in names if n in benchmark.REFERENCES]
    contenders += benchmark.references(
        outside, engine, engine.info.adapter if adapter == "auto" else adapter, assistant
    )
    total = benchmark.runs_of(cases, contenders, repeats)
    with tqdm(total=total, unit="run", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        rows = benchmark.bench(engine, cases, contenders, sampling, repeats, lambda: bar.update() and None)
    if not processes.is_first():
        return
    if memory:
        loaded = engine.info.adapter if adapter == "auto" else adapter
        _measure_memory(rows, engine, cases, sampling, loaded, device, dtype, draft_model)
    results = benchmark.result_rows(rows, benchmark.task_of(cases, task_name))
    report = benchmark.described(engine) | {"repeats": repeats, "sampling": sampling.to_dict(), "rows": results}
    if processes.count() > 1:
        report["processes"] = processes.count()
        _note(f"{processes.count()} processes ran beside each other: tokens per step hold, times and speed-ups don't.")
    if json_file:  # first: standard output may be a pipe that ends early
        _write_lines(json_file, iter([report]))
    _log_benchmark(report)
    for line in (*benchmark.table(results), *benchmark.categories(results), *benchmark.differences(results)):
        click.echo(line)
    click.echo(_json(report))


def _measure_memory(
    rows: Any, engine: Any, cases: Any, sampling: Sampling, adapter: str, device: str, dtype: str, draft_model: str
) -> None:
    """Of our own methods: transformers' are called from a process that holds our engine too."""
    from specstream.bench.memory import Request, measured, picked

    prompts = picked([case.prompt(engine, []) for case in cases])
    for row in rows:
        if (contender := row.contender).ours:
            _progress(f"Measuring the memory of {contender.label}", None)
            what = (contender.name, contender.settings, sampling.to_dict(), prompts)
            row.memory = measured(Request(engine.info.model, adapter, device, dtype, draft_model, *what))
    _progress_done()


@cli.command()
@model_options
@click.option("--seconds", type=click.FloatRange(0), default=60.0, show_default=True, help="How long to measure.")
@click.option("--data", type=click.Path(path_type=Path), help="A JSONL file of prompts to continue.")
@click.option("--task", "task_name", help=f"{NAMES}, or spec-bench for its questions.")
@click.option("--limit", type=click.IntRange(0), default=16, show_default=True, help="Rows of --data to use; 0 is all.")
@click.option(
    "--tune", is_flag=True, help="Choose the tree for this machine, on half of --data, and try it on the rest."
)
@click.option("--method", "method_name", default="streaming", show_default=True, help="The method to tune.")
@click.option("--repeats", default=3, show_default=True, help="Runs on each prompt when the choice is tried.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result as one JSON object.")
@params_options(Sampling)
@method_options
def cost(
    model: str,
    adapter: str,
    device: str,
    dtype: str,
    draft_model: str,
    seconds: float,
    data: Path | None,
    task_name: str | None,
    limit: int,
    tune: bool,
    method_name: str,
    repeats: int,
    json_file: Path | None,
    **values: Any,
) -> None:
    """Measure what a step costs by its number of drafted nodes, and choose the tree that suits this machine."""
    from specstream.bench import described, read_cases, step_cost, tables
    from specstream.bench import tune as tuning

    if (data is None) != (task_name is None):
        raise ValueError("--data and --task belong together: the task says which columns to read.")
    if tune and data is None:
        raise ValueError("--tune needs prompts: give --data FILE.jsonl and --task NAME.")
    sampling, chosen = Sampling(**_pick(Sampling, values)), _method(method_name, values)
    if tune:
        step_cost.largest(chosen)  # refuses a method without a tree before a minute is spent
    _check_writable(json_file, data=data)
    engine = _load(model, adapter, device, dtype, draft_model, _adapter_task(task_name))
    if tune and method_name in engine.info.unavailable:
        raise ValueError(engine.info.unavailable[method_name])
    cases = read_cases(engine, data, str(task_name), limit) if data else []
    params = chosen if isinstance(chosen, Streaming) else Streaming()
    costs = step_cost.measure(engine, tuning.first_turns(engine, cases), seconds, params=params)
    report = described(engine) | {"task": task_name, "cost": step_cost.report(engine, costs)}
    lines = [*tables.cost_table(report["cost"])]
    if tune:
        report["tuned"] = tuning.tried(engine, costs, cases, chosen, sampling, repeats)
        lines += ["", *tables.tuning_table(report["tuned"])]
    if json_file:
        _write_lines(json_file, iter([report]))
    _log_benchmark(report)
    for line in lines:
        click.echo(line)
    click.echo(_json(report))


@cli.command()
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result as one JSON object.")
def invariance(device: str, json_file: Path | None) -> None:
    """Print which operations give a row the same bits whatever is decoded beside it, on this machine."""
    from specstream.bench.provenance import machine
    from specstream.model import invariance as bits
    from specstream.model.devices import choose_device

    _check_writable(json_file)
    where, _ = choose_device(device)
    click.echo(bits.heading(where) + "\n")
    found = list(bits.findings(where))
    _write_lines(json_file, iter([{"machine": machine(), "device": where, "operations": bits.report(found)}]))
    for line in (*bits.table(found), "", bits.verdict(found)):
        click.echo(line)


def _adapter_task(task_name: str | None) -> str | None:
    """The task whose adapter suits: Spec-Bench's questions are asked as chat."""
    from specstream.bench.tables import SPEC_BENCH

    return "chat" if task_name == SPEC_BENCH else task_name


def _log_benchmark(report: dict[str, Any]) -> None:
    """Keep a result in the log. It is printed anyway: a log that can't be written is only worth a note."""
    from specstream.runlog import RunLog, RunLogError

    try:
        RunLog().add_benchmark(report)
    except RunLogError as error:
        _note(error)


@cli.command()
@click.option("--model", default="smollm2-135m", show_default=True, help="A known name, a Hub id or a folder.")
@click.option("--task", required=True, help=f"{NAMES}.")
@click.option("--data", help="A JSONL file with the task's columns, or hub:NAME (default: the task's public dataset).")
@click.option("--dev", help="A JSONL file, or hub:NAME, to validate on; the best adapter is then kept.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder of the adapter and its checkpoint (default: adapters/TASK).",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option(
    "--start", type=click.Path(path_type=Path), help="An adapter to begin with: a name of `adapters list` or a folder."
)
@click.option(
    "--targets",
    type=click.Choice(["references", "self"]),
    default="references",
    show_default=True,
    help="What the streams learn to predict: the data's references, or the model's own answers.",
)
@click.option(
    "--temperatures",
    type=float,
    multiple=True,
    default=[0.0],
    show_default=True,
    help="Of the model's own answers; may be given several times.",
)
@click.option("--own-prompts", type=click.IntRange(0), default=0, show_default=True, help="Prompts to have it write.")
@click.option(
    "--answers", type=click.Path(path_type=Path), help="Own answers made by `answers`, to train on instead of --data."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--max-length", type=click.IntRange(2), default=512, show_default=True, help="Longest row in tokens.")
@click.option("--max-answer", type=click.IntRange(1), default=192, show_default=True, help="Longest own answer.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Rows of --data to use, spread over it; 0 is all.",
)
@click.option(
    "--hold-out",
    type=click.IntRange(-1),
    default=-1,
    show_default="a tenth of the prompts, at most 32",
    help="Prompts of --data to validate on instead of training on them, where no --dev is given.",
)
@click.option(
    "--progress",
    type=click.Path(path_type=Path),
    help="Append what happens to this file, one JSON object a line.",
)
@params_options(Config)
def train(task: str, data: str | None, out: Path | None, resume: bool, **values: Any) -> None:
    """Train streams (and, in shared mode, the model's LoRA) on a task; or heads beside an adapter, to compare with."""
    from specstream.training.command import Request, default_data, summary, timed, train_adapter

    config = Config(**_pick(Config, values))
    if progress := values["progress"]:
        _check_apart("--progress", progress, data=data, dev=values["dev"])
    request = Request(
        task=task,
        data=data or ("" if values["answers"] else default_data(task)),
        out=out or Path("adapters") / task,
        resume=resume,
        command=tuple(sys.argv[1:]),
        **_pick(Request, values),
    )
    trained = train_adapter(request, config)
    if not processes.is_first():
        return
    for line in summary(request.out, trained.card, config.mode):
        click.echo(line)
    if trained.finished and trained.prompts and processes.count() == 1 and config.mode in ("shared", "lossless"):
        click.echo(timed(request, trained.prompts))


@cli.command()
@click.option("--model", default="smollm2-135m", show_default=True, help="A known name, a Hub id or a folder.")
@click.option("--task", required=True, help=f"{NAMES}.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The JSONL file; what it has is kept.")
@click.option("--data", help="Prompts to answer: a JSONL file with the task's columns, or hub:NAME.")
@click.option(
    "--own-prompts",
    "count",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Prompts to have the model write; for code, instructions that are made from parts.",
)
@click.option("--limit", type=click.IntRange(0), default=0, show_default=True, help="Rows of --data to use; 0 is all.")
@click.option(
    "--temperatures",
    type=click.FloatRange(0, 10),
    multiple=True,
    default=[0.0],
    show_default=True,
    help="Every prompt is answered at each; may be given several times.",
)
@click.option("--start", type=click.Path(path_type=Path), help="An adapter that tunes the model.")
@click.option("--max-length", type=click.IntRange(2), default=512, show_default=True, help="Longest prompt in tokens.")
@click.option("--max-answer", type=click.IntRange(1), default=192, show_default=True, help="Longest answer.")
@click.option(
    "--batch-tokens",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tokens of the texts that are written together; 0: what suits the device. Another number, other answers.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
def answers(**values: Any) -> None:
    """Have a model answer prompts, for `train --answers`. Started again, it goes on; `accelerate launch` shares it."""
    from specstream.training.answers import Plan, write_answers

    words = write_answers(Plan(**values))
    if processes.is_first():
        click.echo(words)


@cli.group()
def runs() -> None:
    """The log of sessions: list, show, export, delete."""


def db_option(command: Command) -> Command:
    return click.option(
        "--db",
        type=click.Path(path_type=Path),
        help="The database file (default: SPECSTREAM_DB or the user's data folder).",
    )(command)


def _open_log(db: Path | None) -> Any:
    from specstream.runlog import RunLog

    return RunLog(db)


def filter_options(command: Command) -> Command:
    options = (
        click.option("--search", help="Words to find in prompts, outputs and notes."),
        click.option("--method", help="Only runs of this method."),
        click.option("--model", help="Only runs of this model."),
        click.option("--since", metavar="DAY", help="Only runs of this day (UTC) or later, as in 2026-11-24."),
        click.option("--until", metavar="DAY", help="Only runs of this day (UTC) or earlier."),
        click.option("--starred", is_flag=True, help="Only runs with a star."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@runs.command("list")
@db_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@click.option("--sort", default="newest", show_default=True, help="oldest, speed-up, tokens, tokens per second, ...")
@filter_options
def runs_list(db: Path | None, limit: int, sort: str, **filters: Any) -> None:
    """Runs, one a line: the newest, or those that the filters let through."""
    log = _open_log(db)
    for run in log.runs(limit=limit, sort=sort, **filters):
        speed = f"{run['speedup']:.2f}x" if run["speedup"] else "-"
        prompt = _one_line(run["prompt"][:400])[:50]
        line = f"{run['id']}  {run['started_utc'][:19]}  {run['status']:11}  {run['method']:9}  {speed:>6}"
        click.echo(f"{line}  {run['agreement'] or '-':9}  {prompt}")
    click.echo(f"{log.count(**filters)} runs in {log.path}", err=True)


@runs.command("show")
@click.argument("run_id")
@db_option
def runs_show(run_id: str, db: Path | None) -> None:
    """One run with all that is known of it, as JSON."""
    click.echo(_json(_open_log(db).run(run_id), indent=2))


@runs.command("export")
@click.argument("run_id", metavar="ID|all")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@db_option
@filter_options
def runs_export(run_id: str, form: str, db: Path | None, **filters: Any) -> None:
    """A run, or all that the filters let through, to standard output: JSONL with every step, or CSV, a row per run."""
    from specstream.runlog import write_jsonl, write_runs_csv

    log = _open_log(db)
    ids = log.ids(**filters) if run_id == "all" else [log.run(run_id)["id"]]
    with click.open_file("-", "w", encoding="utf-8") as out:
        (write_jsonl if form == "jsonl" else write_runs_csv)(log, out, ids)


@runs.command("delete")
@click.argument("run_id")
@db_option
@click.confirmation_option(prompt="Delete this run and all its steps for good?", help="Do not ask.")
def runs_delete(run_id: str, db: Path | None) -> None:
    """Remove a run from the log."""
    _open_log(db).delete(run_id)


@cli.group()
def models() -> None:
    """Models that are known by name: list, pull."""


@models.command("list")
def models_list() -> None:
    """Known models and the adapters that come with them."""
    from specstream.adapters.store import bundled
    from specstream.hub.catalogue import catalogue

    for entry in catalogue():
        have = ", ".join(bundled(entry.name)) or "no adapter yet"
        click.echo(f"{entry.name:16} {entry.hub_id:40} {entry.size:>8}  {entry.licence:12} {have}")


@models.command("pull")
@click.argument("name")
@click.option("--accept-licence", is_flag=True, help="You have read the model's licence, and accept it.")
def models_pull(name: str, accept_licence: bool) -> None:
    """Download a model, so that it loads without a network."""
    from specstream.hub.catalogue import accept_terms, resolve

    if accept_licence:
        accept_terms(name)
    try:
        source = resolve(name, _progress)
    finally:
        _progress_done()
    click.echo(f"{name}: {source.origin}")


@cli.command()
@model_options
@click.option("--method", "method_name", help=f"{', '.join(METHODS)} (default: streaming where the model can).")
@click.option("--data", help="A JSONL file with the task's columns, or hub:NAME.")
@click.option("--split", default="validation", show_default=True, help="The split of a hub: dataset.")
@click.option("--task", "task_name", help=f"{NAMES}.")
@click.option("--limit", type=click.IntRange(0), default=0, show_default=True, help="Rows of --data to use; 0 is all.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result, with every text, here.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Compare with this earlier result, prompt by prompt; without --data, --json names the result to compare.",
)
@params_options(Sampling)
@method_options
def evaluate(json_file: Path | None, against: Path | None, **options: Any) -> None:
    """Measure the quality of a task's texts against its references."""
    from specstream.bench import evaluation

    data, task_name = options["data"], options["task_name"]
    if (data is None) != (task_name is None) or (data is None and not (json_file and against)):
        raise click.UsageError("Give --data and --task; or --json and --against to compare two earlier results.")
    if data and json_file:
        _check_apart("--json", json_file, against=against)
    other = evaluation.read_result(against) if against else None
    result = _evaluate(json_file, **options) if data else evaluation.read_result(Path(str(json_file)))
    if not processes.is_first():
        return
    for line in evaluation.result_lines(result):
        click.echo(line)
    if other:
        for line in evaluation.comparison_lines(evaluation.compare(result, other), str(against)):
            click.echo(line)


def _evaluate(json_file: Path | None, data: str, split: str, task_name: str, limit: int, **options: Any) -> Any:
    from tqdm import tqdm

    from specstream.bench import evaluation
    from specstream.data.tasks import task

    evaluation.scorer(task(task_name))  # before the work starts, not after
    sampling, name = Sampling(**_pick(Sampling, options)), options["method_name"]
    chosen = _method(name, options) if name else None
    _check_writable(json_file, data=data)
    names = ("model", "adapter", "device", "dtype", "draft_model")
    engine = _load(**{name: options[name] for name in names}, task_name=task_name)
    items = evaluation.read_items(engine, data, split, task(task_name), limit)
    chosen = chosen or _method(engine.default_method().name, options)
    with tqdm(total=len(items), unit="prompt", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        result = evaluation.evaluate(engine, items, task_name, chosen, sampling, lambda: bar.update() and None)
    if processes.is_first():
        _write_lines(json_file, iter([result]))
    return result


@cli.group()
def adapters() -> None:
    """Trained streams: list, push to and pull from the Hugging Face Hub."""


@adapters.command("list")
def adapters_list() -> None:
    """Adapters that come with the program, your own, and those that were pulled."""
    from specstream.adapters.hub import fetched
    from specstream.adapters.local import mine
    from specstream.adapters.store import AdapterError, bundled, files, read_card
    from specstream.hub.catalogue import catalogue

    have = [(task, folder) for entry in catalogue() for task, folder in bundled(entry.name).items()]
    for name, folder in [*have, *mine().items(), *fetched().items()]:
        try:
            card = read_card(folder)
        except AdapterError as error:
            _note(f"{folder}: {error}")
            continue
        size = sum(file.stat().st_size for f in files(card) if (file := folder / f).is_file()) / 1e6
        line = f"{name:24} {card.base:16} {card.task:10} {card.mode:8} {card.gamma:2} streams  {size:5.1f} MB"
        click.echo(_one_line("  ".join(filter(None, (line, *card.heads, card.licence)))))


@adapters.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="For you and those whom you let in only.")
def adapters_push(folder: Path, repo_id: str, private: bool) -> None:
    """Upload an adapter: its weights, card and README.md, nothing else of the folder."""
    from specstream.adapters.hub import push

    click.echo(push(folder, repo_id, private))


@adapters.command("pull")
@click.argument("repo_id", metavar="OWNER/NAME")
def adapters_pull(repo_id: str) -> None:
    """Download an adapter, so that it loads without a network."""
    from specstream.adapters.hub import HUB, fetch

    folder = fetch(repo_id)
    click.echo(f"{folder}: use it with --adapter {HUB}{repo_id.removeprefix(HUB)}")
