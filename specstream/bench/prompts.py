"""The inputs of a benchmark: prompts, and conversations whose second question follows the first answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specstream.bench.tables import SPEC_BENCH
from specstream.data.chat import Chat
from specstream.data.datasets import DataError, TaskRow, by_task, read_rows, task_rows
from specstream.data.tasks import Task, check_characters, task
from specstream.decoding.encode import chat_prompt

if TYPE_CHECKING:  # results are read without torch
    from specstream.engine import Engine

NumberedRows = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """One prompt, or the user's turns of a conversation. ``ready``: the text already includes its template."""

    turns: tuple[str, ...]
    category: str = ""
    ready: bool = True

    def prompt(self, engine: Engine, answers: Sequence[str]) -> str:
        """The prompt of the next turn, given the ``answers`` to the turns before.

        Raises ValueError if the model's chat template rejects the conversation.
        """
        if self.ready:
            return self.turns[len(answers)]
        *asked, turn = self.turns[: len(answers) + 1]
        before = Chat(turns=tuple(zip(asked, answers, strict=True)))
        if getattr(engine.tokenizer, "chat_template", None):
            return chat_prompt(engine.tokenizer, turn, before)
        return "\n\n".join(m["content"] for m in before.messages(turn)) + "\n\n"


def prompts_as_cases(prompts: Sequence[str]) -> list[Case]:
    """One Case for each ready prompt."""
    return [Case((prompt,)) for prompt in prompts]


def spec_bench(file: Path, limit: int = 0) -> list[Case]:
    """Spec-Bench's question file as published: JSON lines with ``category`` and ``turns``. ``limit`` (0: all) applies
    to each category, so that a short run covers all of them. Raises DataError naming a bad line."""
    return [case for _, case in _questions(read_rows(file), file, limit)]


def _questions(rows: NumberedRows, file: Path, limit: int) -> Iterator[tuple[int, Case]]:
    """Line number and case of each question. Raises DataError."""
    taken: dict[str, int] = {}
    for number, row in rows:
        with _naming(f"{file}, line {number}"):
            case = _question(row)
        taken[case.category] = taken.get(case.category, 0) + 1
        if not limit or taken[case.category] <= limit:
            yield number, case
    if not taken:
        raise DataError(f"{file} holds no questions.")


def read_cases(engine: Engine, file: Path, task_name: str, limit: int = 0) -> list[Case]:
    """The first rows of a JSONL file (0: all) with a task's columns, or of Spec-Bench's question file.

    The file is read once, so it may be a pipe. Raises DataError naming a bad line, or one whose prompt does not fit the
    model's context.
    """
    rows = read_rows(file)
    first = next(rows, None)
    rows = chain([first] if first else [], rows)
    if task_name == SPEC_BENCH or (first and "turns" in first[1]):
        return [_fitting(engine, case, f"{file}, line {number}") for number, case in _questions(rows, file, limit)]
    chosen = task(task_name)
    found = by_task(rows, str(file), chosen, limit, answers=False)
    return prompts_as_cases([prompt_of(engine, chosen, row, str(file)) for row in found])


def task_of(cases: Sequence[Case], task_name: str) -> str:
    """The name of the cases' task; ``spec-bench`` if they are its questions."""
    return task_name if all(case.ready for case in cases) else SPEC_BENCH


def read_prompts(engine: Engine, file: Path, task_name: str, limit: int = 0) -> list[str]:
    """Prompts of the first rows of a JSONL file (0: all).

    Raises DataError naming a bad line, or one whose prompt does not fit the model's context.
    """
    chosen, data = task(task_name), str(file)
    return [prompt_of(engine, chosen, row, data) for row in task_rows(data, "", chosen, limit, answers=False)]


def prompt_of(engine: Engine, chosen: Task, row: TaskRow, data: str) -> str:
    """The prompt of a row of ``data``, in the model's own template if the task is ``asked``.

    Raises DataError naming the row if the model can't take the prompt.
    """
    with _naming(f"{data}, line {row.number}"):
        prompt = str(engine.prompt(chosen.name, row.columns["prompt"])) if chosen.asked else row.prompt
        engine.encode(prompt)
    return prompt


def _fitting(engine: Engine, case: Case, where: str) -> Case:
    """Return the case. Raises DataError unless its turns fit the model's context, at least with short answers."""
    with _naming(where):
        engine.encode(case.prompt(engine, ["."] * (len(case.turns) - 1)))
    return case


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn a ValueError about a row into a DataError that names the row."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{where}: {str(error).rstrip('.')}.") from None


def _question(row: dict[str, Any]) -> Case:
    """Raises ValueError if a row is not a question."""
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError("'turns' must be a list of texts")
    check_characters("turns", *turns)
    return Case(tuple(turns), str(row.get("category", "")), ready=False)
