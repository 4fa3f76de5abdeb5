"""Rows from a JSONL file or from a dataset on the Hugging Face Hub. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from specstream.data.tasks import Task
from specstream.hub.download import first_line, hub_reachable

HUB = "hub:"
TEXT = "utf-8-sig"  # UTF-8, skipping the byte-order mark that some editors write
CONVERTED = "refs/convert/parquet"  # the Hub's own copy, in Parquet, of a dataset that consists of a loading script


class DataError(ValueError):
    """Bad training data; the message names the file and the line."""


class HubName(NamedTuple):
    """A dataset on the Hub: its id, and its configuration and revision if given."""

    name: str
    config: str | None
    revision: str | None

    @classmethod
    def parse(cls, data: str) -> HubName:
        """Read ``hub:NAME[:CONFIG][@REVISION]``. Raises DataError."""
        found = re.fullmatch(r"hub:(\w[\w.-]*(?:/\w[\w.-]*)?)(?::([^:@]+))?(?:@(\S+))?", data.strip())
        if not found:
            raise _error(f"{data!r} is not the name of a dataset: write hub:NAME, hub:NAME:CONFIG or hub:NAME@REVISION")
        return cls(*found.groups())


def rows(data: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and columns of every row of a JSONL file, or of one split of a dataset on the Hub.

    ``data`` is a path, which has no splits, or ``hub:NAME[:CONFIG][@REVISION]``, which needs the library ``datasets``.
    A dataset is downloaded completely into the library's cache instead of streamed: training reads all of it, usually
    more than once, and must work offline. Raises DataError with one sentence.
    """
    if not data.startswith(HUB):
        yield from read_rows(Path(data))
        return
    for number, row in enumerate(_fetch(HubName.parse(data), split), 1):
        yield number, dict(row)


class TaskRow(NamedTuple):
    """A row as a task reads it. ``references`` is empty unless they were requested."""

    number: int
    columns: dict[str, Any]
    prompt: str
    references: list[str]


def task_rows(data: str, split: str, task: Task, limit: int = 0, answers: bool = True) -> Iterator[TaskRow]:
    """The first ``limit`` rows (0: all) as a task reads them, with their references if ``answers``.

    ``data`` and ``split`` as in ``rows``. Raises DataError with the number of a bad row, and for data without rows.
    """
    yield from by_task(rows(data, split), data, task, limit, answers)


def by_task(
    numbered: Iterator[tuple[int, dict[str, Any]]], data: str, task: Task, limit: int = 0, answers: bool = True
) -> Iterator[TaskRow]:
    """``task_rows`` for rows that are already being read from ``data``."""
    number = 0
    for number, row in islice(numbered, limit or None):
        try:
            yield TaskRow(number, row, task.row_prompt(row), task.references(row) if answers else [])
        except ValueError as error:
            raise DataError(f"{data}, line {number}: {error}.") from None
    if not number:
        raise DataError(f"{data} holds no rows.")


def check_first_row(data: str, task: Task | None, answers: bool = False) -> None:
    """Raise DataError for a file that can't be read or, with a task, whose first row lacks its columns, before a model
    is loaded. Spec-Bench's questions are recognised where they are read; a dataset of the Hub and what can be read only
    once are not opened."""
    path = Path(data)
    if data.startswith(HUB) or path.is_fifo() or path.is_char_device():
        return
    first = next(read_rows(path), None)
    if task and not (first and "turns" in first[1]):
        next(by_task(iter([first] if first else []), data, task, answers=answers))


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every row of a JSONL file, or of a pipe, which can be read only once.

    Raises DataError for a bad row or an unreadable file.
    """
    try:
        with path.open(encoding=TEXT) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _numbered(path, number, line)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text file: give a JSONL file.") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}).") from None


def _numbered(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        return parse_row(line)
    except DataError as error:
        raise DataError(f"{path}, line {number}: {error}.") from None


def parse_row(line: str) -> dict[str, Any]:
    """The object of one line. Raises DataError."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON ({error.msg})") from None
    except RecursionError:
        raise DataError("not valid JSON (nested too deeply)") from None
    except ValueError:  # Python refuses integers with thousands of digits
        raise DataError("a number in it has too many digits") from None
    if not isinstance(row, dict):
        raise DataError("expected an object with columns")
    return row


def _fetch(wanted: HubName, split: str) -> Any:
    """A split as the library returns it. Raises DataError."""
    try:
        import datasets
    except ImportError:
        raise _error(
            "Datasets from the Hub need the package datasets, which is not installed: "
            "pip install datasets, or give a JSONL file"
        ) from None
    datasets.config.HF_HUB_OFFLINE = not hub_reachable()  # else it retries for most of a minute before using its cache
    try:
        return _load(wanted, split)
    except Exception as error:  # the library, the network and the dataset can fail in any way
        raise _error(_why(wanted, split, error)) from error


def _load(wanted: HubName, split: str) -> Any:
    """The dataset; if it consists of a script, which is never run, the Hub's own conversion to Parquet."""
    import datasets

    try:
        return datasets.load_dataset(wanted.name, wanted.config, split=split, revision=wanted.revision)
    except RuntimeError as error:
        if "script" not in str(error) or wanted.revision:
            raise
        return datasets.load_dataset(wanted.name, wanted.config, split=split, revision=CONVERTED)


def _why(wanted: HubName, split: str, error: Exception) -> str:
    import datasets

    words, name = str(error), wanted.name
    if "gated" in words.lower():
        return f"The dataset {name} is gated: ask for access on its page on the Hub, then log in with `hf auth login`"
    if "Unknown split" in words:
        have = re.search(r"\[(.*?)\]", words)
        known = f" ({have[1]})" if have else ""
        return f"The dataset {name} has no split {split!r}: name one of its splits{known}"
    if "Config name is missing" in words or "BuilderConfig" in words:
        have = re.search(r"\[(.*?)\]", words)
        known = f" ({have[1]})" if have else ""
        return f"The dataset {name} has several configurations: name one, as in hub:{name}:CONFIG{known}"
    if isinstance(error, ConnectionError) or datasets.config.HF_HUB_OFFLINE:
        return (
            f"The dataset {name} is not on this machine and the Hugging Face Hub can't be reached: "
            "connect to the internet, or give a JSONL file"
        )
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return f"There is no public dataset {name}{_at(wanted)} on the Hugging Face Hub: check the name"
    return f"The dataset {name} can't be loaded ({first_line(error)}): choose another one or give a JSONL file"


def _at(wanted: HubName) -> str:
    return f" with the revision {wanted.revision}" if wanted.revision else ""


def _error(words: str) -> DataError:
    return DataError(f"{words}.")
