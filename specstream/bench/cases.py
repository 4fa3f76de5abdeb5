"""What is asked in a benchmark: prompts, and conversations whose second question follows the first answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream.bench.tables import SPEC_BENCH
from specstream.chat import Chat
from specstream.tasks import Task, task
from specstream.text import chat_prompt
from specstream.training.sources import TaskRow, task_rows


class CaseError(ValueError):
    """A file of questions can't be used; the message is one sentence."""


@dataclass(frozen=True)
class Case:
    """One prompt, or the user's turns of a conversation. ``ready``: the text is the prompt, with its template."""

    turns: tuple[str, ...]
    category: str = ""
    ready: bool = True

    def prompt(self, engine: Any, answers: Sequence[str]) -> str:
        """The prompt of the turn after ``answers``, the ones given to the turns before.

        Raises ValueError where the model's chat template refuses the conversation.
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
    """Spec-Bench's question file as it is: JSON lines with ``category`` and ``turns``. ``limit`` (0: all) is for each
    category, so that a short run sees all of them. Raises CaseError naming a bad line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CaseError(f"{file} can't be read ({error}).") from None
    cases: list[Case] = []
    taken: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        case = _question(line, f"{file}, line {number}")
        taken[case.category] = taken.get(case.category, 0) + 1
        if not limit or taken[case.category] <= limit:
            cases.append(case)
    if not cases:
        raise CaseError(f"{file} holds no questions.")
    return cases


def read_cases(engine: Any, file: Path, task_name: str, limit: int = 0) -> list[Case]:
    """The first rows of a JSONL file (0: all): of a task's columns, or Spec-Bench's questions as they are."""
    if task_name == SPEC_BENCH or _has_turns(file):
        return spec_bench(file, limit)
    return prompts_as_cases(read_prompts(engine, file, task_name, limit))


def task_of(cases: Sequence[Case], task_name: str) -> str:
    """What the cases are: of the task, or Spec-Bench's where these are its questions."""
    return task_name if all(case.ready for case in cases) else SPEC_BENCH


def _has_turns(file: Path) -> bool:
    """Is the file's first row a question of Spec-Bench's form? What can't be read is left to the reader to refuse."""
    try:
        with file.open(encoding="utf-8") as lines:
            row = json.loads(next((line for line in lines if line.strip()), "null"))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and "turns" in row


def read_prompts(engine: Any, file: Path, task_name: str, limit: int = 0) -> list[str]:
    """Prompts of the first rows of a JSONL file (0: all). Raises DataError naming a bad line."""
    chosen = task(task_name)
    return [prompt_of(engine, chosen, row) for row in task_rows(str(file), "", chosen, limit, answers=False)]


def prompt_of(engine: Any, chosen: Task, row: TaskRow) -> str:
    """The prompt of a row; for ``chat`` in the model's own template."""
    return str(engine.prompt("chat", row.columns["prompt"])) if chosen.name == "chat" else row.prompt


def _question(line: str, where: str) -> Case:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CaseError(f"{where}: not JSON ({error.msg}).") from None
    turns = row.get("turns") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise CaseError(f"{where}: 'turns' must be a list of texts.")
    return Case(tuple(turns), str(row.get("category", "")), ready=False)
