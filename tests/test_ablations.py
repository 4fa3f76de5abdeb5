"""The ablation script trains, stores its results, and makes its tables from those only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.tiny import save

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(300)
def test_trainings_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    save(tiny.tiny("llama"), model)
    PreTrainedTokenizerFast.from_pretrained(model, eos_token="1").save_pretrained(model)
    row = {"meaning_representation": "1 2 3", "human_reference": "4 5 6 7 8"}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 4)
    data = str(tmp_path / "rows.jsonl")
    words = ["--task", "e2e", "--data", data, "--dev", data, "--out", str(tmp_path / "out"), "--only", "exit"]
    words += ["--rows", "4", "--seeds", "1", "--", "--model", str(model), "--layers", "1", "--batch", "2"]
    command = [sys.executable, "scripts/ablations.py", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout
    lines = first.splitlines()
    assert lines[0].startswith("| exit |") and lines[2].startswith("| none | ") and lines[3].startswith("| rank 8 | ")
    assert [len(line.split("|")[3].split()) for line in lines[2:4]] == [5, 6]  # the early exit has a loss too
    for made in (tmp_path / "out").glob("*/seed-0/events.jsonl"):
        made.unlink()
    (tmp_path / "rows.jsonl").unlink()  # nothing could be trained now
    again = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout
    assert again == first
