"""What is typed for a task reads like a row of its dataset: adapters were trained on those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specstream.data.tasks import TASKS

ASSETS = Path(__file__).parents[1] / "assets"
EXAMPLES = [row for row in json.loads((ASSETS / "prompts.json").read_text()) if row["task"] == "sql"]
SCHEMA, QUESTION = "CREATE TABLE lakes (lake VARCHAR, depth INTEGER)", "Which lake is the deepest?"


@pytest.mark.parametrize("name", TASKS)
def test_columns_are_typed_in_the_order_of_the_template(name: str) -> None:
    task = TASKS[name]
    row = {column: f"text of {column}" for column in task.inputs}
    typed = "\n\n".join(row.values())
    assert task.prompt(typed) == task.row_prompt(row)
    places = [task.template.index(f"{{{column}}}") for column in task.inputs]
    assert places == sorted(places)


def test_a_schema_is_typed_before_the_question() -> None:
    want = f"Schema: {SCHEMA}\nQuestion: {QUESTION}\nSQL:"
    assert TASKS["sql"].prompt(f"{SCHEMA}\n\n{QUESTION}") == want


def test_a_question_may_come_without_a_schema() -> None:
    assert TASKS["sql"].prompt(QUESTION) == f"Schema: \nQuestion: {QUESTION}\nSQL:"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["label"])
def test_the_pages_examples_have_schema_and_question_in_their_places(example: dict[str, str]) -> None:
    schema, question = TASKS["sql"].prompt(example["prompt"]).split("\n")[:2]
    assert schema.startswith("Schema: CREATE TABLE") and question.endswith("?")
