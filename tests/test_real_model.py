"""The shipped model and adapter: golden in float32 against transformers, and as good as its card says."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch

from specstream import adapters, engine, models
from specstream.adapters import WEIGHTS
from specstream.anatomy import dissect
from specstream.params import Sampling, Standard, Streaming
from specstream.session import run_session, token_ids
from specstream.stats import summarize
from tests import tiny

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(1500)]
ADAPTER = adapters.BUNDLED / "smollm2-135m" / "e2e"
NAMES = (
    "The Salted Fig",
    "Harbour Light",
    "Old Mill",
    "The Brass Owl",
    "Green Lantern",
    "Copper Kettle",
    "Juniper",
    "The Quiet Hare",
)
FOODS = ("Italian", "Japanese", "Fast food", "English", "French")
PLACES = ("riverside", "city centre")
RATINGS = ("high", "low", "3 out of 5")


def facts(count: int) -> list[str]:
    """Meaning representations of our own."""
    out = []
    for i, (name, place, rating) in enumerate(itertools.islice(itertools.product(NAMES, PLACES, RATINGS), count)):
        parts = [f"name[{name}]", f"eatType[{('pub', 'coffee shop', 'restaurant')[i % 3]}]", f"food[{FOODS[i % 5]}]"]
        parts += [f"customer rating[{rating}]"] * (i % 2) + [f"area[{place}]"]
        parts += [f"familyFriendly[{('yes', 'no')[i % 2]}]"] * (i % 3 > 0) + ["near[Harbour Hall]"] * (i % 4 > 1)
        out.append(", ".join(parts))
    return out


@cache
def loaded() -> Any:
    return engine.load("smollm2-135m", "e2e", device="cpu", dtype="float32")


@cache
def tuned() -> Any:
    """The same tuned model, put together without our engine: base weights plus the adapter's LoRA."""
    source = models.resolve("smollm2-135m")
    network, _ = models.load_model(source, "cpu", torch.float32)
    anatomy = dissect(network)
    adapters.load(ADAPTER, anatomy).lora.merge(anatomy)
    network.generation_config.eos_token_id = None
    return network


def run(prompt: str, method: Any, sampling: Sampling) -> list[Any]:
    return list(loaded().generate(prompt, method, sampling))


def test_streaming_equals_standard_on_40_prompts() -> None:
    streamed = []
    for text in facts(40):
        prompt, sampling = loaded().prompt("e2e", text), Sampling(max_new_tokens=64)
        ours, standard = run(prompt, Streaming(), sampling), run(prompt, Standard(), sampling)
        assert token_ids(ours) == token_ids(standard), text
        streamed.append(summarize(ours))
    assert sum(s.decode_tokens for s in streamed) / sum(s.steps for s in streamed) > 2


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_equals_transformers_generate(temperature: float) -> None:
    for seed, text in enumerate(facts(4)):
        prompt = loaded().prompt("e2e", text)
        sampling = Sampling(max_new_tokens=40, temperature=temperature, seed=seed, ignore_eos=True)
        want = tiny.generate_ids(tuned(), loaded().encode(prompt), sampling)
        assert token_ids(run(prompt, Streaming(budget=24), sampling)) == want


def test_tokens_per_step_with_32_nodes() -> None:
    """The card's promise, on prompts of our own."""
    stats = [
        summarize(run(loaded().prompt("e2e", t), Streaming(budget=32), Sampling(max_new_tokens=64))) for t in facts(12)
    ]
    assert sum(s.decode_tokens for s in stats) / sum(s.steps for s in stats) >= 2.4


def test_adapter_file_is_small_and_has_a_card() -> None:
    assert (ADAPTER / WEIGHTS).stat().st_size <= 16e6
    card = adapters.read_card(ADAPTER)
    assert card.task == "e2e" and card.data and card.licence and card.command.startswith("python -m specstream train")
    assert card.training["progress"]["seconds"] >= 3600


def test_session_says_identical() -> None:
    *_, verdict = run_session(
        loaded(), loaded().prompt("e2e", facts(1)[0]), Streaming(), Sampling(max_new_tokens=40, temperature=0.8)
    )
    assert verdict.agreement == "identical" and verdict.speedup


def test_without_adapter_streaming_is_unavailable_and_standard_is_the_base_model() -> None:
    base = engine.load("smollm2-135m", "none", device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="no trained streams"):
        next(base.generate("Hello", Streaming(), Sampling()))
    prompt = base.prompt("chat", "Name three colours.")
    ids = token_ids(list(base.generate(prompt, Standard(), Sampling(max_new_tokens=24, ignore_eos=True))))
    network, tokenizer = models.load_model(models.resolve("smollm2-135m"), "cpu", torch.float32)
    network.generation_config.eos_token_id = None
    assert ids == tiny.generate_ids(
        network, tokenizer(prompt, add_special_tokens=False).input_ids, Sampling(max_new_tokens=24)
    )


def test_text_with_emoji_and_a_long_prompt() -> None:
    base = loaded()
    text = "Repeat: 🦊 漢字 é שלום. " * 3
    ours = run(text, Streaming(), Sampling(max_new_tokens=24))
    assert token_ids(ours) == token_ids(run(text, Standard(), Sampling(max_new_tokens=24)))
    with pytest.raises(ValueError, match="context is 8,192"):
        base.encode("word " * 9000)
