"""Forecasts of training: more rows give more, and known results are not guessed."""

from __future__ import annotations

import pytest

from specstream.training import forecast


@pytest.mark.parametrize("task", forecast.CURVES)
def test_a_curve_rises_and_never_falls_below_standard_decoding(task: str) -> None:
    found = [forecast.expected(task, rows) for rows in (1, 100, 1000, 10_000)]
    assert found == sorted(found) and found[0] >= 1 and found[-1] > found[1]


def test_a_training_is_announced_with_its_rows_and_an_hours() -> None:
    words = forecast.announced("e2e", 2.0, 8, 10)
    assert "about 2,400 rows in 10 minutes" in words and "with an hour's" in words
    assert "hour" not in forecast.announced("e2e", 2.0, 8, 60)
    assert "Earlier training runs" not in forecast.announced("e2e", 60.0, 8, 1)
    assert "Earlier training runs" not in forecast.announced("code", 2.0, 8, 10)  # no curve from nothing is known


def test_an_hour_is_told_from_what_was_reached() -> None:
    assert "2.8 tokens per step" in forecast.an_hour("e2e", 2.0, 1000, 900.0)
    assert forecast.an_hour("e2e", 2.0, 1000, 3600.0) == "" == forecast.an_hour("e2e", 2.0, 0, 600.0)
