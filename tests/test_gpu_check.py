"""The script for a CUDA machine, as far as it runs without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from scripts import gpu_check
from scripts.gpu_check import DONE, FAILED, LEFT_OUT, TASKS, Part

PRINTS = ("-c", "import os; print(os.environ['SPECSTREAM_TEST_DEVICE'])")


def test_a_part_leaves_its_output_and_how_it_ended(tmp_path: Path) -> None:
    done = gpu_check.run(Part("a", PRINTS, 60), tmp_path, "cuda", 60)
    assert done["state"] == DONE and (tmp_path / "a.txt").read_text() == "cuda\n"
    failed = gpu_check.run(Part("b", ("-c", "raise SystemExit('it is broken')"), 60), tmp_path, "cpu", 60)
    assert failed["state"] == FAILED and failed["words"] == "it is broken"


def test_a_part_that_lasts_too_long_is_ended_and_one_without_time_is_left_out(tmp_path: Path) -> None:
    slow = Part("slow", ("-c", "import time; time.sleep(60)"), 1)
    assert gpu_check.run(slow, tmp_path, "cpu", 60)["words"] == "not done within 1 s"
    assert gpu_check.run(slow, tmp_path, "cpu", 0)["state"] == LEFT_OUT


@pytest.mark.parametrize("data", [True, False])
def test_what_is_not_at_hand_is_named(data: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_has_model", lambda: True)
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "dev.jsonl").write_text("{}\n")
    found = {p.name: p for p in gpu_check.parts("cuda", tmp_path if data else None, False, tmp_path)}
    assert list(found) == ["invariance", "cost", "tests", *TASKS]
    assert bool(found["sql"].lacks) != data and found["chat"].lacks
    monkeypatch.setattr(gpu_check, "_has_model", lambda: False)
    lacks = {p.name for p in gpu_check.parts("cuda", tmp_path, False, tmp_path) if p.lacks}
    assert lacks == {"cost", *TASKS}


def test_it_tells_every_part_and_fails_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Part("a", PRINTS, 60), Part("b", ("-c", "raise SystemExit(1)"), 60), Part("c", PRINTS, 60, "a model")]
    monkeypatch.setattr(gpu_check, "parts", lambda *args: iter(made))
    done = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 1 and [line.split()[1] for line in done.output.splitlines()[1:]] == [DONE, FAILED, "left"]
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [r["state"] for r in told] == [DONE, FAILED, LEFT_OUT]


@pytest.mark.parametrize("part", ["tests", "sql"])
def test_the_commands_are_ones_that_the_programs_know(part: str, tmp_path: Path) -> None:
    from specstream.cli import find_command

    words = next(p.words for p in gpu_check.parts("cpu", tmp_path, True, tmp_path) if p.name == part)
    if part == "tests":
        assert all(Path(w).is_file() for w in words if w.startswith("tests/")) and sys.executable
        return
    command = find_command(words[2])
    with command.make_context(words[2], list(words[3:])) as context:
        assert context.params["methods"] == "streaming,hf"
