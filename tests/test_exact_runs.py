"""The script of exact runs: it continues where it stopped, and it detects a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scripts import exact_runs
from scripts.exact_runs import Group
from specstream.engine import Engine
from specstream.model import attention
from specstream.params import Standard

METHODS = {
    "streaming, deferred",
    "streaming, in-pass",
    "streaming, pruned",
    "prompt lookup",
    "Medusa heads",
    "early exit",
}


def call(out: Path, *words: str) -> Result:
    return CliRunner().invoke(exact_runs.main, ["--out", str(out), "--only", "tiny, llama, float32", *words])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_short_run_of_every_method_is_exact_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    assert call(out, "--runs", "1").exit_code == 0
    first = lines(out)
    assert len(first) == 1 and set(first[0]["runs"]) == METHODS
    out.write_text(out.read_text() + '{"group": "cut o')
    done = call(out, "--runs", "7")
    assert done.exit_code == 0 and "12 runs" in done.output
    cases = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    assert cases[0] == first[0] and [c["case"] for c in cases] == [0, 1]
    assert not any(run["different"] or run["bits"] for case in cases for run in case["runs"].values())
    assert call(out, "--runs", "7").output == done.output


def test_stock_attention_is_seen_in_the_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "NAME", "sdpa")
    out = tmp_path / "runs.jsonl"
    done = call(out, "--runs", "6")
    assert sum(run["bits"] for case in lines(out) for run in case["runs"].values()) > 0
    assert "tiny, llama, float32" in done.output


def test_a_token_that_differs_fails_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Engine.generate

    def shortened(self: Engine, prompt: str, method: Any, sampling: Any, *rest: Any) -> Any:
        events = list(own(self, prompt, method, sampling, *rest))
        return iter(events if isinstance(method, Standard) else [*events[:1], *events[2:]])

    monkeypatch.setattr(Engine, "generate", shortened)
    done = call(tmp_path / "runs.jsonl", "--runs", "6")
    assert done.exit_code == 1
    counts = lines(tmp_path / "runs.jsonl")[0]["runs"]
    assert all(run["different"] > 0 for run in counts.values())


def test_shards_share_the_models_and_none_is_done_twice() -> None:
    parts = [exact_runs.GROUPS[i::3] for i in range(3)]
    assert sorted(g.name for part in parts for g in part) == sorted(g.name for g in exact_runs.GROUPS)
    assert Group("tiny", "llama", "float32") in exact_runs.GROUPS
    assert {g.part for g in exact_runs.GROUPS if g.model == exact_runs.REAL} == set(exact_runs.TEXTS)


@pytest.mark.parametrize("words", ["2/2", "1", "a/b", "-1/2"])
def test_a_shard_that_is_none_is_refused(tmp_path: Path, words: str) -> None:
    done = call(tmp_path / "runs.jsonl", "--shard", words)
    assert done.exit_code == 2 and "is not a shard" in done.output


def test_neither_a_file_to_write_nor_to_show_is_refused() -> None:
    assert "--show" in CliRunner().invoke(exact_runs.main, []).output
