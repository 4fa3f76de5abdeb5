"""Output of commands: notes and progress on standard error, JSON without control characters, checks of files."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

STDOUT = Path("-")  # as an output file: standard output
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def note(words: object) -> None:
    """A line on standard error that is not an error."""
    click.echo(f"note: {one_line(words)}", err=True)


def one_line(words: object) -> str:
    """Text from any source as one line without control characters."""
    return harmless(" ".join(str(words).split()))


def harmless(text: str) -> str:
    """Text with control characters, including those that change the writing direction, escaped."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON for standard output; ASCII unless the encoding is UTF-8."""
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    return harmless(json.dumps(value, ensure_ascii=not unicode, indent=indent))


def progress(words: str, fraction: float | None) -> None:
    """Replace the status line of a terminal."""
    if sys.stderr.isatty():
        share = "" if fraction is None else f" {100 * fraction:3.0f} %"
        click.echo(f"\r\033[K{words}{share}", err=True, nl=False)


def progress_done() -> None:
    """Clear the status line."""
    if sys.stderr.isatty():
        click.echo("\r\033[K", err=True, nl=False)


def write_lines(file: Path | None, results: Iterator[dict[str, Any]]) -> None:
    """Write each result as soon as it exists, one JSON object per line; without a file, just compute them."""
    if file is None:
        for _ in results:
            pass
        return
    # backslashreplace escapes a lone surrogate exactly as JSON does.
    with _naming(file), click.open_file(str(file), "w", encoding="utf-8", errors="backslashreplace") as out:
        for result in results:
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
            out.flush()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """A context whose OSErrors name the file that is written: those of a full disk don't."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from None


@contextmanager
def saved(file: Path | None, result: dict[str, Any], printed: bool = True) -> Iterator[None]:
    """Write a result to its file, then run a block that prints it. If the file can't be written, that is raised after
    the block, and the result is printed as JSON unless the block has ``printed`` it, so that no work is lost. With the
    file ``-``, standard output is nothing but JSON: what the block prints goes to standard error."""
    problem = None
    try:
        write_lines(file, iter([result]))
    except OSError as error:
        problem = error
    with redirect_stdout(sys.stderr) if file == STDOUT else nullcontext():
        yield
    if problem:
        if not printed:
            click.echo(to_json(result))
        raise problem


def check_readable(data: Path | str | None, task_name: str | None, hub: bool = False) -> None:
    """Reject, before a model is loaded, an unknown task, and a file whose first row can't be read or lacks the task's
    columns. ``hub``: datasets of the Hub may be named. Raises ValueError."""
    from specstream.bench.tables import SPEC_BENCH
    from specstream.data.datasets import HUB, check_first_row
    from specstream.data.tasks import task

    chosen = task(task_name) if task_name is not None and (hub or task_name != SPEC_BENCH) else None
    if data is None:
        return
    if str(data).startswith(HUB) and not hub:
        raise ValueError(f"This command reads a file, not {data}: give --data FILE.jsonl.")
    check_first_row(str(data), chosen)


def check_writable(file: Path | None, **read: Path | str | None) -> None:
    """Reject, before the work starts, an output that can't be written or that is one of the files to ``read``.

    Raises ValueError or OSError.
    """
    if file is None or file == STDOUT:
        return
    check_apart("--json", file, **read)
    if file.is_dir():
        raise ValueError(f"{file} is a folder, and can't be written as a file: name a file in it.")
    if not file.parent.is_dir():
        if file.parent.exists():
            raise ValueError(f"{file.parent} is not a folder, so {file} can't be written: choose another file.")
        raise ValueError(f"The folder {file.parent} of the output file does not exist: create it first.")
    with file.open("a", encoding="utf-8"):
        pass


def check_apart(option: str, written: Path, **read: Path | str | None) -> None:
    """Raise ValueError if ``written`` is one of the files to ``read``, which are given by option name."""
    from specstream.data.json_lines import same_file

    for name, file in read.items():
        if file is not None and same_file(written, Path(file)):
            raise ValueError(
                f"--{name} and {option} name the same file, which would be overwritten: choose another one."
            )
