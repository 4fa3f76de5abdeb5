"""Output of commands: notes and progress on standard error, JSON without control characters, checks of files."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

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
    with click.open_file(str(file), "w", encoding="utf-8", errors="backslashreplace") as out:
        for result in results:
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
            out.flush()


def check_writable(file: Path | None, **read: Path | str | None) -> None:
    """Reject, before the work starts, an output that can't be written or that is one of the files to ``read``.

    Raises ValueError or OSError.
    """
    if file is None or file == Path("-"):
        return
    check_apart("--json", file, **read)
    if not file.parent.is_dir():
        raise ValueError(f"The folder {file.parent} of the output file does not exist: create it first.")
    with file.open("a", encoding="utf-8"):
        pass


def check_apart(option: str, written: Path, **read: Path | str | None) -> None:
    """Raise ValueError if ``written`` is one of the files to ``read``, which are given by option name."""
    for name, file in read.items():
        if file is not None and _same_file(written, Path(file)):
            raise ValueError(
                f"--{name} and {option} name the same file, which would be overwritten: choose another one."
            )


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths are the same file, links included."""
    if one.is_file() and other.is_file():
        return one.samefile(other)
    return one.resolve() == other.resolve()
