"""The check of a JSONL file before training: every bad row by its line. No torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from specstream.data.datasets import TEXT, DataError, parse_row
from specstream.data.tasks import Task

SHOWN = 5  # bad rows that are named
MOST_HELD_OUT = 32


@dataclass(frozen=True)
class CheckedFile:
    """What a file holds: usable rows, different prompts in them, and sentences on the first of ``bad`` rows."""

    rows: int
    prompts: int
    bad: int
    problems: tuple[str, ...]

    @property
    def held_out(self) -> int:
        """How many prompts to validate on instead of training on them: a tenth, and not more than is needed."""
        return min(MOST_HELD_OUT, self.prompts // 10)


def check_file(path: Path, task: Task, answers: bool) -> CheckedFile:
    """Read all rows. ``answers``: rows need the task's references too. Raises DataError for what is no text file."""
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
        raise DataError("The file is not a UTF-8 text file: upload a JSONL file, one JSON object a line.") from None
    except OSError as error:
        raise DataError(f"The file can't be read ({error.strerror}): upload it again.") from None
    return CheckedFile(rows, len(prompts), bad, tuple(problems))


def keep_good(path: Path, task: Task, answers: bool, out: Path) -> None:
    """Copy the rows of a file that can be trained on, as ``check_file`` counts them."""
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
