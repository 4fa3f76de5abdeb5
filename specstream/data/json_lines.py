"""Files of JSON lines that a process appends to, and that may end in the middle of a line. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from specstream.data.datasets import DataError, parse_row


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are the same file, links included."""
    if one.is_file() and other.is_file():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def end_line(file: Path) -> None:
    """Terminate an incomplete last line, left by a killed process, so that the next object starts a new line."""
    if not file.is_file() or not file.stat().st_size:
        return
    with file.open("r+b") as lines:
        lines.seek(-1, os.SEEK_END)
        if lines.read(1) != b"\n":
            lines.write(b"\n")


def add_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append objects to a file, one per line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def whole_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, if it exists; incomplete or damaged lines are skipped."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            with suppress(DataError):
                yield parse_row(line.decode(errors="replace"))
