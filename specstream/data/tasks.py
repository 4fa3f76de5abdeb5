"""The tasks that adapters are trained for: prompt template, dataset columns, quality metric, data and licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """One task.

    ``template`` contains the input columns in braces. ``inputs`` and ``outputs`` are the dataset's column names, inputs
    in the order of the template; the first of ``outputs`` that a row has is its reference, or list of references.
    ``hub`` is the public dataset's name, ``metric`` the name of the task's quality metric (``bench.evaluation``), empty
    without references.
    ``asked``: the prompt is a message to a chat model, formatted by the model's own template if it has one.
    """

    name: str
    label: str
    template: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    hub: str
    licence: str
    metric: str = ""
    asked: bool = False

    def prompt(self, text: str) -> str:
        """The prompt for input typed by a user. A blank line separates the columns of a task that has several; if there
        are fewer parts than columns, the first columns are empty: a question may come without a schema."""
        parts = text.strip().split("\n\n", len(self.inputs) - 1)
        parts = [""] * (len(self.inputs) - len(parts)) + parts
        return self.template.format(**dict(zip(self.inputs, parts, strict=True)))

    def row_prompt(self, row: Mapping[str, Any]) -> str:
        """The prompt of a dataset row. Raises ValueError naming a column that can't be used."""
        for column in self.inputs:
            if not isinstance(value := row.get(column) or "", str):
                raise ValueError(f"the column {column!r} must be a text")
            if not value.strip():
                raise ValueError(f"the column {column!r} is missing or empty")
            check_characters(column, row[column])
        return self.template.format(**{c: row[c].strip() for c in self.inputs})

    def references(self, row: Mapping[str, Any]) -> list[str]:
        """The reference texts of a dataset row; empty for a task without references."""
        for column in self.outputs:
            value = row.get(column)
            if value:
                texts = [value] if isinstance(value, str) else value
                if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
                    raise ValueError(f"the column {column!r} must be a text or a list of texts")
                check_characters(column, *texts)
                return texts
        if self.outputs:
            raise ValueError(f"the column {self.outputs[0]!r} is missing or empty")
        return []


def check_characters(column: str, *texts: str) -> None:
    """Raise ValueError for a lone surrogate, which JSON can express (``"\\ud83d"``) and no tokenizer accepts."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the column {column!r} holds half a character (a lone surrogate)") from None


TASKS: dict[str, Task] = {
    t.name: t
    for t in (
        Task(
            "e2e",
            "Restaurant descriptions (E2E NLG)",
            "Facts: {meaning_representation}\nText:",
            ("meaning_representation",),
            ("human_reference", "human_references"),
            "tuetschek/e2e_nlg_cleaned",
            "CC BY-SA 4.0",
            "rouge",
        ),
        Task(
            "sql",
            "Questions to SQL",
            "Schema: {context}\nQuestion: {question}\nSQL:",
            ("context", "question"),
            ("answer",),
            "b-mc2/sql-create-context",
            "CC BY 4.0",
            "exact match",
        ),
        Task(
            "dialogsum",
            "Dialogue summaries (DialogSum)",
            "Dialogue:\n{dialogue}\nSummary:",
            ("dialogue",),
            ("summary", "summaries"),
            "knkarthick/dialogsum",
            "CC BY-NC-SA 4.0",
            "rouge",
        ),
        Task("chat", "Chat", "{prompt}", ("prompt",), (), "", "", asked=True),
        Task("code", "Short code", "{prompt}", ("prompt",), (), "", "", asked=True),
    )
}


NAMES = ", ".join(TASKS)  # in help texts


def task(name: str) -> Task:
    """A task by name. Raises ValueError for an unknown one."""
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}: choose one of {NAMES}.")
    return TASKS[name]
