"""Checking a JSONL file before training: bad rows are reported by line. No torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from specstream.data.datasets import TEXT, DataError, parse_row
from specstream.data.tasks import Task

SHOWN = 5  # bad rows that are reported
MOST_HELD_OUT = 32


@dataclass(frozen=True)
class CheckedFile:
    """The number of usable rows, distinct prompts and ``bad`` rows, with sentences about the first bad ones."""

    rows: int
    prompts: int
    bad: int
    problems: tuple[str, ...]

    @property
    def held_out(self) -> int:
        """How many prompts to hold out for validation: a tenth, at most ``MOST_HELD_OUT``."""
        return min(MOST_HELD_OUT, self.prompts // 10)


def check_file(path: Path, task: Task, answers: bool) -> CheckedFile:
    """Check all rows. ``answers``: rows need references too. Raises DataError if the file is not a text file."""
    rows, bad = 0, 0
    prompts: set[str] = set()
    problems: list[str] = []
    try:
        with path.open(encoding=TEXT) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    prompts.add(_prompt(line, task, answers))
                    rows += 1
                except ValueError as error:
                    bad += 1
                    problems += [f"Line {number}: {str(error).rstrip('.')}."] if len(problems) < SHOWN else []
    except UnicodeDecodeError:
        raise DataError("The file is not a UTF-8 text file: upload a JSONL file, one JSON object per line.") from None
    except OSError as error:
        raise DataError(f"The file can't be read ({error.strerror}): upload it again.") from None
    return CheckedFile(rows, len(prompts), bad, tuple(problems))


def keep_good(path: Path, task: Task, answers: bool, out: Path) -> None:
    """Copy the usable rows of a file, those that ``check_file`` counts in ``rows``."""
    with path.open(encoding=TEXT) as file, out.open("w", encoding="utf-8") as kept:
        for line in file:
            with suppress(ValueError):
                _prompt(line, task, answers)
                kept.write(line.rstrip("\n") + "\n")


def _prompt(line: str, task: Task, answers: bool) -> str:
    """The prompt of a row. Raises ValueError for a row that can't be trained on."""
    row = parse_row(line)
    prompt = task.row_prompt(row)
    if answers:
        task.references(row)
    return prompt
