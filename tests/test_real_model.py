"""The shipped model and adapter: golden in float32 against transformers, and as good as its card says."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch

from specstream import engine
from specstream.adapters import weights
from specstream.adapters.card import WEIGHTS, read_card
from specstream.adapters.find import BUNDLED, bundled
from specstream.events import Agreement
from specstream.hub import catalogue
from specstream.model.introspection import dissect
from specstream.model.pretrained import load_model
from specstream.params import Sampling, Standard, Streaming
from specstream.session import run_session, token_ids
from specstream.stats import summarize
from tests import tiny

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(1500)]
ADAPTER = BUNDLED / "smollm2-135m" / "e2e"
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
    source = catalogue.resolve("smollm2-135m")
    network, _ = load_model(source, "cpu", torch.float32)
    anatomy = dissect(network)
    weights.load(ADAPTER, anatomy).main_lora.merge(anatomy)
    network.generation_config.eos_token_id = None
    return network


def run(prompt: str, method: Any, sampling: Sampling) -> list[Any]:
    return list(loaded().generate(prompt, method, sampling))


def test_streaming_equals_standard_on_a_variety_of_rows() -> None:
    streamed = []
    for text in facts(41)[::4]:
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


def test_the_default_number_format_changes_nothing() -> None:
    """Except for ties where matmuls are rounded to bfloat16, each of which is checked in float32."""
    default = engine.load()
    allowed = {Agreement.IDENTICAL} | ({Agreement.TIE} if default.info.dtype == "bfloat16" else set())
    for seed, text in enumerate(facts(6)):
        prompt, sampling = default.prompt("e2e", text), Sampling(max_new_tokens=48, temperature=seed % 2, seed=seed)
        *_, verdict = run_session(default, prompt, Streaming(), sampling)
        assert verdict.agreement in allowed, (text, verdict)


SQL = (
    "CREATE TABLE harbours (harbour VARCHAR, country VARCHAR, ships INTEGER, opened VARCHAR)\n\n"
    "Which country has the harbour that was opened in 1921?",
    "CREATE TABLE table_31_2 (season INTEGER, coach VARCHAR, wins INTEGER, venue VARCHAR)\n\n"
    "How many wins did coach Anna Berg have in the 1998 season?",
    "CREATE TABLE table_7_44 (album VARCHAR, label VARCHAR, year INTEGER, copies INTEGER)\n\n"
    "What is the label of the album Copper Days?",
    "CREATE TABLE lakes (lake VARCHAR, depth INTEGER, region VARCHAR)\n\nWhat is the total depth in the region North?",
)
DIALOGUES = (
    "#Person1#: Hi Mara, did you find a flat?\n#Person2#: Yes, near the station. It is small, but it has a balcony.\n"
    "#Person1#: When do you move in?\n#Person2#: On the first of May. Could you help me with the boxes?\n"
    "#Person1#: Of course, I'll bring my brother's van.",
    "#Person1#: Good morning, I would like to return this kettle.\n#Person2#: What is wrong with it?\n"
    "#Person1#: It leaks, and I bought it only last week.\n#Person2#: I'm sorry. Do you have the receipt?\n"
    "#Person1#: Yes, here it is.\n#Person2#: Then I'll give you a new one.",
)
QUESTIONS = (
    "Explain in three sentences why the sky is blue.",
    "Write a short invitation to a birthday party.",
    "Give me five tips for a job interview.",
)
CODE = (
    "Write a Python function that checks whether two lists have an item in common.",
    "Write a shell one-liner to show the five largest folders.",
    "Write a Python function that returns the third power of a number.",
)
# Prompts of our own, and the least tokens per step with 32 nodes that the adapter must give on them.
TASKS = {
    "e2e": (facts(12), 2.4),
    "sql": (SQL, 2.5),
    "dialogsum": (DIALOGUES, 1.6),
    "chat": (QUESTIONS, 1.5),
    "code": (CODE, 1.8),
}
BUNDLED = bundled("smollm2-135m")


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_adapter_drafts_and_changes_nothing(name: str) -> None:
    prompts, least = TASKS[name]
    adapted = engine.load("smollm2-135m", name, device="cpu", dtype="float32")
    sampling = Sampling(max_new_tokens=64)
    stats = []
    for index, text in enumerate(prompts):
        prompt = adapted.prompt(name, text)
        ours = list(adapted.generate(prompt, Streaming(budget=32, pause=0), sampling))
        if index < 4:
            assert token_ids(ours) == token_ids(list(adapted.generate(prompt, Standard(), sampling))), text
        stats.append(summarize(ours))
    assert sum(s.decode_tokens for s in stats) / sum(s.steps for s in stats) >= least


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_adapter_is_small_and_has_a_card(name: str) -> None:
    folder = BUNDLED[name]
    assert all(f.stat().st_size <= 16e6 for f in folder.iterdir())
    heads = {folder / head.file for head in read_card(folder).heads.values()}
    assert sum(f.stat().st_size for f in folder.iterdir() if f not in heads) <= 16e6 and (folder / WEIGHTS).is_file()
    card = read_card(folder)
    assert card.task == name and card.data and card.command.startswith("python -m specstream train")
    assert card.licence or not card.tuning[0]
    assert card.training["progress"]["seconds"] > 0 and card.date
    assert (folder / "README.md").is_file()


def test_lossless_adapters_leave_the_base_model_alone() -> None:
    """Standard decoding with the adapter on is that of the base model, and so is streaming."""
    found = [n for n, folder in BUNDLED.items() if not read_card(folder).tuning[0]]
    assert found
    base = engine.load("smollm2-135m", "none", device="cpu", dtype="float32")
    for name in found:
        adapted = engine.load("smollm2-135m", name, device="cpu", dtype="float32")
        for temperature in (0.0, 0.8):
            sampling = Sampling(max_new_tokens=48, temperature=temperature, seed=5)
            prompt = base.prompt("chat", QUESTIONS[0])
            want = token_ids(list(base.generate(prompt, Standard(), sampling)))
            assert token_ids(list(adapted.generate(prompt, Standard(), sampling))) == want
            assert token_ids(list(adapted.generate(prompt, Streaming(budget=32, pause=0), sampling))) == want


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
    network, tokenizer = load_model(catalogue.resolve("smollm2-135m"), "cpu", torch.float32)
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
