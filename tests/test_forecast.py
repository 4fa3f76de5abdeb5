"""Forecasts of training: more rows give more, known results are not guessed, and no step gives more than it drafts."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specstream.adapters.card import Card
from specstream.training import forecast
from specstream.training.batches import Example
from specstream.training.command import Trained, expectation, summary
from specstream.training.config import Config
from specstream.training.forecast import Stage, an_hour, announced, seen_slope

BASE = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "vocab_size": 120}


def card(training: Any, metrics: Any, task: str = "e2e", gamma: int = 8) -> Card:
    return Card("base", BASE, task, "lossless", gamma, 3, 64, 16, 2.0, training=training, metrics=metrics)


def progress(rows: int, seconds: float, *validations: tuple[int, float]) -> dict[str, Any]:
    """The progress of a stage with batches of 10 rows, and its validations as (step, tokens per step)."""
    history = [{"step": step, "tokens_per_step": found} for step, found in validations]
    return {"examples": rows, "step": rows // 10, "seconds": seconds, "history": history}


@pytest.mark.parametrize("task", forecast.CURVES)
@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_a_curve_rises_within_what_a_step_can_give(task: str, gamma: int) -> None:
    found = [Stage(task, gamma).after(rows) for rows in (1, 100, 1000, 10_000, 10**9)]
    assert found == sorted(found) and found[0] >= 1 and found[-1] <= gamma + 1
    again = Stage(task, gamma, 5000, reached=gamma + 0.9).after(10**9)
    assert gamma + 0.9 <= again <= gamma + 1


def test_a_training_is_announced_with_its_rows_and_an_hours() -> None:
    words = announced("e2e", 4, 2.0, 8, 10)
    assert "about 2,400 rows in 10 minutes" in words and "3.0 tokens per step" in words and "with an hour's" in words
    assert "hour" not in announced("e2e", 4, 2.0, 8, 60)
    assert "in 1 minute." in announced("e2e", 4, 2.0, 8, 1)
    assert "2.0 tokens per step" in announced("e2e", 1, 2.0, 8, 10)  # one draft and the target's own token
    for nothing in (("e2e", 4, 60.0, 8, 1), ("code", 4, 2.0, 8, 10), ("e2e", 0, 2.0, 8, 10)):
        assert "tokens per step" not in announced(*nothing)  # few rows, no known curve, no streams


def test_what_is_trained_is_counted_before_it_starts() -> None:
    trainer: Any = SimpleNamespace(config=Config(epochs=1, batch=4), weights=1234)
    words = expectation([Example((1, 2), (3,))], trainer)
    assert words.startswith("1 row of 3 tokens on average, 4 per step, for 1 epoch; 1,234 weights to train.")
    trainer.config = Config(epochs=3, batch=4)
    two = expectation([Example((1, 2), (3,))] * 2, trainer)
    assert "2 rows of 3 tokens on average, 4 per step, for 3 epochs;" in two


def test_a_second_stage_is_announced_from_what_its_start_reached() -> None:
    start = Stage("e2e", 6, 30_000, 6.1)
    words = announced("e2e", 8, 2.5, 16, 16, start)
    assert "starts from reached 6.1 tokens per step; 6.2 are likely." in words
    assert "5.0 are likely" in announced("e2e", 4, 2.5, 16, 16, Stage("e2e", 8, 30_000, 7.4))  # fewer streams
    for other in (Stage("chat", 4, 5000, 2.0), Stage("e2e", 6, 30_000), Stage("e2e", 6, 0, 6.1)):
        assert "tokens per step" not in announced("e2e", 8, 2.5, 16, 16, other)


def test_a_stage_is_read_from_a_card_whatever_else_it_says() -> None:
    training = {"earlier": [{"progress": progress(5000, 60)}, {}, "odd"], "progress": progress(1000, 60)}
    assert Stage.of(card(training, {"tokens_per_step": 5.5})) == Stage("e2e", 8, 6000, 5.5)
    assert Stage.of(card(training, {}), progress(2000, 90)) == Stage("e2e", 8, 7000, None)
    for odd in ({}, {"earlier": 3, "progress": []}, {"earlier": [3], "progress": {"examples": 10**400}}):
        assert Stage.of(card(odd, {"tokens_per_step": "many"})) == Stage("e2e", 8)


def test_an_hour_is_told_from_what_was_reached() -> None:
    done = progress(1000, 900.0)
    assert "2.8 tokens per step" in an_hour(Stage("e2e", 4, 1000, 2.0), done)
    assert an_hour(Stage("e2e", 4, 1000, 2.0), progress(1000, 3600.0)) == ""
    assert an_hour(Stage("e2e", 4, 1000), done) == "" == an_hour(Stage("code", 4, 1000, 2.0), done)


def test_an_hour_of_a_second_stage_adds_little_to_all_rows_before() -> None:
    """The bundled adapter for E2E: 7.44 tokens per step after the last 6,000 of 42,000 rows, in 944 seconds."""
    done = progress(6000, 944.0, (300, 7.32), (600, 7.44))
    assert "7.6 tokens per step" in an_hour(Stage("e2e", 8, 42_000, 7.44), done)
    words = an_hour(Stage("e2e", 6, 6000, 6.98), progress(6000, 60.0))
    assert words == "More training of this kind is likely to gain little."  # 7 is all that 6 streams can give


def test_validations_that_no_longer_rise_promise_nothing() -> None:
    flat = progress(2000, 600.0, (100, 3.0), (150, 3.1), (200, 3.0))
    assert seen_slope(2000, flat) == 0
    assert an_hour(Stage("sql", 6, 2000, 3.1), flat) == "More training of this kind is likely to gain little."
    assert seen_slope(2000, progress(2000, 60.0, (100, 3.0))) == math.inf
    assert seen_slope(2000, progress(2000, 60.0, (100, 3.0), (200, 3.2))) == pytest.approx(0.2)


def test_the_summary_tells_the_whole_training_beside_the_best_step(tmp_path: Path) -> None:
    """The card is that of the best validation; the training went on after it."""
    best = card({"progress": progress(1000, 600.0) | {"best_step": 100}}, {"tokens_per_step": 3.0})
    end = progress(3000, 1800.0, (100, 3.0), (200, 2.9), (300, 2.9)) | {"best_step": 100}
    lines = summary(tmp_path, Trained(best, end, finished=True), "lossless")
    assert lines[0].endswith("step 100 of 300, 30 minutes.")
    assert "More training of this kind is likely to gain little." in lines
