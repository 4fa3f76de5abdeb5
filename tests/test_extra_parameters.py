"""The table of extra parameters: its counts equal the paper's, and those of the adapters actually built."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from specstream.adapters import weights
from specstream.adapters.card import WEIGHTS, Card, read_card
from specstream.adapters.find import bundled
from tests import tiny

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "extra_parameters.py"
PAPER = {  # table 1: hidden size, vocabulary, streams (gamma 4, early exit of rank 8), Medusa cut to three digits
    "OPT-1.3B": (2048, 50272, 40_960, 4.28e8),
    "Phi-1.3B": (2048, 51200, 40_960, 4.36e8),
    "OpenLlama-7B": (4096, 32000, 81_920, 5.91e8),
}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("extra_parameters", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(script) -> dict[str, list[int]]:
    """Counts by row label, one per model."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in script.table()]
    assert rows[0][2:] == list(script.CONFIGS)
    return {label: [int(n.replace(",", "")) for n in counts] for label, _, *counts in rows[2:]}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_counts(name: str, script) -> None:
    hidden, vocabulary, ours, medusa = PAPER[name]
    assert int(script.medusa_formula(hidden, vocabulary) / 1e6) * 1e6 == medusa
    assert script.medusa_built(hidden, vocabulary) - script.medusa_formula(hidden, vocabulary) == 4 * hidden  # biases
    same_width = {2048: "Llama-3.2-1B", 4096: "Mistral-7B-v0.3"}[hidden]
    assert script.streams(script.model(same_width), exit_rank=8) == ours


def test_formulas_hold_for_what_is_built(table) -> None:
    hidden = [576, 2048, 4096]
    assert table["4 streams"] == [4 * h for h in hidden]
    assert table["and early exit of rank 8 (the paper's count)"] == [20 * h for h in hidden]
    assert table["4 streams with a start map of rank 64"] == [4 * h + 5 * 64 * h for h in hidden]
    assert table["Medusa, 4 heads over the model's own projection"] == [4 * h * h for h in hidden]
    assert table["as built over it, with biases"] == [4 * (h * h + h) for h in hidden]
    assert table["Early exit that drafts, with a full map"] == [2 * h * h for h in hidden]


def test_own_heads_are_the_authors(script) -> None:
    """Ours, with a projection each, have as many weights as those that Medusa's authors define."""
    anatomy = script.model("Llama-3.2-1B")
    want = script.medusa_built(anatomy.hidden_size, anatomy.model.config.vocab_size)
    assert script.heads(anatomy, "medusa", count=4, projection="own") == want


def test_base_models_have_their_published_size(table) -> None:
    assert table["base model"] == [134_515_008, 1_235_814_400, 7_248_023_552]


def test_lora_by_hand(table) -> None:
    """Rank 16, seven linear layers per decoder layer: 16 numbers per input and per output of each."""
    shapes = [(576, 1536, 192, 30), (2048, 8192, 512, 16), (4096, 14336, 1024, 32)]
    for column, (h, inner, kv, layers) in enumerate(shapes):
        start = table["and a pair map of rank 64"][column]
        assert start == table["4 streams with a start map of rank 64"][column] + 2 * 64 * h + 4
        per_layer = 16 * (2 * (h + h) + 2 * (h + kv) + 3 * (h + inner))
        assert table["or LoRA of rank 16 on every layer (shared)"][column] == start + layers * per_layer
        assert table["and LoRA of rank 16 on the top 6 layers (lossless)"][column] == start + 6 * per_layer


def test_bundled_heads_have_what_their_shape_says(script) -> None:
    """The weights files of the bundled adapters' heads."""
    h = script.model("SmolLM2-135M").hidden_size
    for folder in bundled("smollm2-135m").values():
        for kind, card in read_card(folder).heads.items():
            stored = load_file(folder / card.file)
            count = sum(weight.numel() for name, weight in stored.items() if name != "vocabulary")
            assert card.projection == "shared"
            assert count == {"medusa": card.count * (h * h + h), "exit": 2 * h * card.rank}[kind]


def test_the_bundled_adapter_has_that_many(script) -> None:
    """The weights file of a bundled adapter."""
    folder = bundled("smollm2-135m")["e2e"]
    card = read_card(folder)
    weights = load_file(folder / WEIGHTS)
    stored = sum(weight.numel() for name, weight in weights.items() if name != "vocabulary")
    names = (
        "mode",
        "gamma",
        "layers",
        "start_rank",
        "lora_rank",
        "main_rank",
        "exit_rank",
        "value_rotation",
        "pair_rank",
    )
    assert script.streams(script.model("SmolLM2-135M"), **{n: getattr(card, n) for n in names}) == stored


def test_weights_that_only_tune_the_model_are_not_counted_as_drafting() -> None:
    anatomy, _ = tiny.model_with_adapter("llama")
    card = Card("", weights.base_shape(anatomy), "", "lossless", 3, 2, 4, lora_rank=2, lora_scale=1.0)
    own = weights.Adapter(anatomy, card).parameter_count()
    tuned = weights.Adapter(anatomy, replace(card, main_rank=8))
    assert tuned.parameter_count() > tuned.drafting_count() == own
    assert weights.Adapter(anatomy, replace(card, mode="shared")).drafting_count() > own
    assert weights.Adapter(anatomy, replace(card, mode="plain", gamma=0)).drafting_count() == 0
