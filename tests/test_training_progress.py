"""A training run that is watched and stopped: its progress file, and resuming exactly where it stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from specstream.adapters.card import read_card
from specstream.training import progress
from specstream.training.batches import DataError, hold_out
from specstream.training.command import stop_requests
from specstream.training.progress import Progress, Tail, Writer, take_in
from specstream.training.trainer import Trainer
from tests.test_training import DATA, trainer


def step(number: int, loss: float, seconds: float | None = None, fraction: float = 0.1) -> dict[str, Any]:
    spent = float(number) if seconds is None else seconds
    return {"kind": "step", "step": number, "seconds": spent, "losses": [loss, 2 * loss], "hits": [0.5, 0.5],
            "fraction": fraction, "lr": 0.1}  # fmt: skip


def begin(number: int = 0) -> dict[str, Any]:
    return {"kind": "begin", "step": number, "seconds": float(number), "rows": 20, "held_out": 3}


def validation(number: int, tokens_per_step: float | None = None) -> dict[str, Any]:
    found = {} if tokens_per_step is None else {"tokens_per_step": tokens_per_step}
    return {"kind": "validation", "step": number, "seconds": 1, "losses": [1.0, 2.0], "hits": [0.1, 0.2], **found}


def lines_of(events: list[dict[str, Any]]) -> list[str]:
    """As Writer writes them, an event a second."""
    return [json.dumps(event | {"time": 100.0 + at, "memory": 7}) for at, event in enumerate(events)]


def read(lines: list[str]) -> Progress:
    progress = Progress()
    for line in lines:
        take_in(progress, line)
    return progress


def told(events: list[dict[str, Any]]) -> Progress:
    return read(lines_of(events))


def test_steps_are_written_at_a_pace_with_their_mean_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(x / 10 for x in range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = tmp_path / "new folder" / "progress.jsonl"
    writer = Writer(file, lambda: 4096)
    for number in range(1, 30):
        writer(step(number, float(number)))
    writer({"kind": "end", "stopped": False, "step": 29})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    assert rows[-1]["kind"] == "end" and steps[-1]["step"] == 29  # nothing is held back at the end
    assert 2 < len(steps) < 8 and steps[0]["step"] == 1
    before = steps[1]["step"]
    assert steps[2]["losses"][0] == pytest.approx((before + 1 + steps[2]["step"]) / 2)
    assert steps[0]["memory"] == 4096 and "hits" not in steps[0]


def test_the_last_step_is_told_at_once(tmp_path: Path) -> None:
    """A validation of minutes may follow: until it ended the page said that a second was left."""
    file = tmp_path / "progress.jsonl"
    writer = Writer(file)
    for event in (begin(), step(1, 2.0, fraction=0.9), step(2, 2.0, fraction=1.0)):
        writer(event)
    found = Tail(file).read()
    assert found.closing and found.left is None


def test_a_training_from_its_lines() -> None:
    found = told([
        {"kind": "phase", "words": "The model answers the prompts", "fraction": 0.5},
        begin(), step(1, 9.0, fraction=0.1), step(2, 7.0, fraction=0.3), validation(2, 1.5),
    ])  # fmt: skip
    assert (found.rows, found.held_out, found.step, found.memory) == (20, 3, 2, 7)
    assert found.begun and not found.ended and found.words == ""
    assert [p.losses for p in found.points] == [[9.0, 18.0], [7.0, 14.0]]
    assert found.best == 1.5
    done = told([begin(), step(1, 1.0, fraction=1.0), {"kind": "end", "stopped": True}])
    assert done.ended and done.stopped


def test_time_left_is_that_of_the_budget_also_after_a_training_went_on() -> None:
    assert told([begin()]).left is None
    assert told([begin(), step(1, 1.0)]).left == pytest.approx(9.0)
    assert told([begin(), step(1, 1.0, fraction=0.2), step(2, 1.0, fraction=0.4)]).left == pytest.approx(3.0)
    again = [begin(), step(1, 1.0, fraction=0.2), step(2, 1.0, fraction=0.4), begin(2), step(3, 1.0, fraction=0.5)]
    assert told(again[:-1]).left is None
    assert told(again).left == pytest.approx(3.0)
    slow = json.dumps(json.loads(lines_of([*again, step(4, 1.0, seconds=3.1, fraction=0.51)])[-1]) | {"time": 140.0})
    assert read([*lines_of(again), slow]).left == pytest.approx(3.1 * 0.49 / 0.51)  # a first step that took long


def test_no_time_is_named_once_the_budget_is_used_up() -> None:
    """What comes then, a validation and a checkpoint, may take minutes."""
    used_up = told([begin(), step(1, 1.0, fraction=0.2), step(2, 1.0, fraction=1.0)])
    assert used_up.closing and used_up.left is None
    assert not told([begin(), step(1, 1.0, fraction=1.0), {"kind": "end", "stopped": False}]).closing


def test_time_left_has_the_last_validation_in_it() -> None:
    lines = lines_of([begin(), step(1, 1.0, fraction=0.2), step(2, 1.0, fraction=0.4), validation(2)])
    late = json.dumps(json.loads(lines[-1]) | {"time": 142.0})  # forty seconds after the step
    assert read([*lines[:-1], late]).left == pytest.approx((2.0 + 40.0) * 0.6 / 0.4 + 40.0)


def test_what_came_after_the_checkpoint_is_forgotten_when_a_training_goes_on() -> None:
    found = told([begin(), step(1, 9.0), step(2, 8.0), validation(2, 1.2), step(3, 7.0), validation(3, 1.9), begin(2)])
    assert [p.step for p in found.points] == [1, 2] and [v.step for v in found.validations] == [2]
    assert found.step == 2 and found.best == 1.2


def test_damaged_lines_are_passed_over() -> None:
    good = lines_of([begin(), step(1, 9.0), step(2, 8.0)])
    bad = ["", "{", "[1]", "null", '{"kind": "step"}', '{"time": 1, "kind": "step", "step": "x"}', good[2][:40],
           '{"time": 1, "kind": "of a later version"}', '{"time": 1, "kind": 5}']  # fmt: skip
    found = read([good[0], *bad, good[1]])
    assert [p.step for p in found.points] == [1]


def test_a_growing_file_is_read_once_and_a_new_one_from_its_start(tmp_path: Path) -> None:
    file, lines = tmp_path / "progress.jsonl", lines_of([begin(), step(1, 9.0), step(2, 8.0)])
    tail = Tail(file)
    assert tail.read() == Progress()
    file.write_text(lines[0] + "\n" + lines[1] + "\n" + lines[2][:30])
    assert tail.read().step == 1  # the last line is still being written
    file.write_text("".join(line + "\n" for line in lines))
    assert [p.step for p in tail.read().points] == [1, 2]
    assert [p.step for p in tail.read().points] == [1, 2]
    file.write_text(lines[0] + "\n")
    assert tail.read().points == [] and tail.read().rows == 20
    file.unlink()
    assert tail.read() == Progress()


def test_nothing_decoded_is_no_number() -> None:
    found = told([begin(), validation(1, float("nan")), validation(2)])
    assert [v.tokens_per_step for v in found.validations] == [None, None] and found.best is None


def validated(out: Path, seen: list[dict], stop_at: int = 0) -> Trainer:
    """A training run with validations, started or resumed, up to a step."""
    run = trainer(out, epochs=3, validate_every=5, probes=1)
    run.resume()
    run.train(DATA, DATA[:2], seen.append, lambda: run.progress.step == stop_at)
    return run


def test_stopping_at_a_step_and_going_on_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """The best validation before the stop is remembered, and none is made because of it."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    seen: dict[Path, list[dict]] = {whole: [], part: []}
    uninterrupted = validated(whole, seen[whole])
    stopped = validated(part, seen[part], stop_at=4)  # the last step of an epoch
    assert stopped.progress.step == 4 and not stopped.finished
    assert read_card(part).training["progress"]["step"] == 4  # usable before any validation
    assert validated(part, seen[part], stop_at=7).progress.step == 7
    resumed = validated(part, seen[part])
    assert resumed.finished
    for a, b in zip(uninterrupted.adapter.parameters(), resumed.adapter.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert read_card(whole).metrics == read_card(part).metrics
    losses = [[(e["kind"], e["step"], e["losses"]) for e in events] for events in seen.values()]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("step", [5, 12])  # of a validation on the way, and of the last one
def test_a_stop_during_a_validation_keeps_the_training(tmp_path: Path, step: int) -> None:
    """It may take longer than the grace time after Stop, so it is cut short and repeated later."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    seen: dict[Path, list[dict]] = {whole: [], part: []}
    validated(whole, seen[whole])
    stopped = validated(part, seen[part], stop_at=step)
    assert stopped.progress.step == step and not stopped.finished
    assert [event["step"] for event in seen[part] if event["kind"] == "validation"] == ([] if step == 5 else [5, 10])
    assert validated(part, seen[part]).finished
    assert [(e["kind"], e["step"]) for e in seen[part]] == [(e["kind"], e["step"]) for e in seen[whole]]
    assert read_card(whole).metrics == read_card(part).metrics


def test_the_checkpoint_comes_before_the_last_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*anything: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "validate", killed)
    run = trainer(tmp_path, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run.train(DATA, DATA[:2], lambda event: None)
    again = trainer(tmp_path, epochs=1)
    assert again.resume() and again.progress.step == run.progress.step


def test_a_stop_request_is_heard_once() -> None:
    before, interrupt = (signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
    with stop_requests() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process
        assert signal.getsignal(signal.SIGINT) != interrupt
    assert signal.getsignal(signal.SIGINT) == interrupt


def test_held_out_rows_are_spread_and_keep_together() -> None:
    rest, held = hold_out(list("aabbccdd"), 2)
    assert (rest, held) == (list("bbdd"), list("ac"))
    assert hold_out(DATA, 0) == (DATA, [])
    with pytest.raises(DataError, match="3 rows can't be held out of 2 distinct ones"):
        hold_out(["a", "b", "b"], 3)
