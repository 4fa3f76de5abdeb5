"""Several processes share prompts: their results equal those of one process, in the same order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specstream import processes
from specstream.cli import main
from tests.launching import in_two_processes
from tests.trainings import rows, save_model

SCRIPT = """
import json, sys
from specstream.cli import main
for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""


TIMED = ("second", "speed", "cost", "fastest", "slowest", "time_utc", "slower", "break_even", "outside_share")


def commands(model: Path, data: Path, out: Path) -> list[list[str]]:
    """Own answers, quality and a benchmark on three prompts; output goes to a folder."""
    given = ["--model", str(model), "--device", "cpu", "--dtype", "float32"]
    task = ["--task", "sql", "--data", str(data)]
    short = ["--adapter", "none", "--max-new-tokens", "12", "--json"]
    return [
        ["answers", *given, *task, "--temperatures", "0", "--temperatures", "1", "--max-answer", "9"]
        + ["--batch-tokens", "60", "--out", str(out / "answers.jsonl")],
        ["evaluate", *given, *task, *short, str(out / "evaluate.json")],
        ["bench", *given, *task, "--methods", "prompt_lookup", "--repeats", "1", *short, str(out / "bench.json")],
    ]


def timeless(value: Any) -> Any:
    """Without measured times and numbers derived from them."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(mark in k for mark in TIMED)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def test_two_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_DB", str(tmp_path / "runs.db"))
    model, data = save_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    data.write_text(rows(7))
    out = {name: tmp_path / name for name in ("one", "two")}
    for folder in out.values():
        folder.mkdir()
    for command in commands(model, data, out["one"]):
        main(command)
    script = tmp_path / "commands.py"
    script.write_text(SCRIPT)
    in_two_processes(script, json.dumps(commands(model, data, out["two"])))
    assert (out["one"] / "answers.jsonl").read_text() == (out["two"] / "answers.jsonl").read_text()
    assert len((out["one"] / "answers.jsonl").read_text().splitlines()) == 14
    evaluated = [json.loads((folder / "evaluate.json").read_text()) for folder in out.values()]
    assert timeless(evaluated[0]) == timeless(evaluated[1]) and len(evaluated[0]["rows"]) == 7
    benched = [json.loads((folder / "bench.json").read_text()) for folder in out.values()]
    assert benched[1].pop("processes") == 2
    for row in (row for report in benched for row in report["rows"]):
        row.pop("interval", None)
    assert timeless(benched[0]) == timeless(benched[1])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_one_process_works_in_order_and_lazily(count: int) -> None:
    seen: list[int] = []
    found = processes.shared(range(count), lambda item: seen.append(item) or 2 * item)
    assert seen == [] and list(found) == [2 * n for n in range(count)] and processes.is_first()
