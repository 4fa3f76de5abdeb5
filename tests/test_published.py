"""Published models by their configs alone: their parts are found, and the counts are the published ones."""

from __future__ import annotations

import pytest

from scripts import published

# From the models' pages on the Hub.
COUNTS = {
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "SmolLM2-1.7B": 1_711_376_384,
    "Phi-3-mini": 3_821_079_552,
    "Mistral-7B-v0.3": 7_248_023_552,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-270m": 268_098_176,
    "OPT-1.3B": 1_315_758_080,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_model_is_understood_without_its_weights(name: str) -> None:
    found = published.facts(name)
    assert found["parameters"] == COUNTS[name]
    assert 0 < found["added, lossless"] < found["added, shared"] < found["parameters"] / 20
    assert 4 * COUNTS[name] < found["train, lossless"] < found["train, shared"]
