"""Medusa heads and early-exit drafting: what they draft, and that the output stays that of standard decoding."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from specstream import tree
from specstream.adapters import heads, readme, weights
from specstream.adapters.card import CARD, AdapterError, Card, HeadCard
from specstream.adapters.heads import ExitHead, Heads, MedusaHeads
from specstream.adapters.weights import base_shape
from specstream.decoding.drafters.early_exit import EarlyExitDrafter
from specstream.decoding.drafters.levels import likeliest
from specstream.decoding.drafters.medusa import MedusaDrafter
from specstream.decoding.drafters.streaming import StreamingDrafter
from specstream.decoding.interfaces import Drafter
from specstream.events import Draft, Step
from specstream.model.introspection import Anatomy, dissect
from specstream.params import NODES, DraftModel, EarlyExit, Medusa, PromptLookup, Sampling, Standard, Streaming
from specstream.session import token_ids
from specstream.stats import summarize
from specstream.target.model_target import ModelTarget, Variant
from specstream.testing import toy
from tests import tiny

PROMPT = tiny.prompt(21)  # longer than the sliding window
TEMPERATURES = (0.0, 0.7, 1.3)
COUNT, EXIT = 3, 2  # Medusa heads; layers before the exit


def randomised(part):
    for weight in part.parameters():
        nn.init.normal_(weight, std=0.1)
    return part.eval().to(tiny.DEVICE)


def random_heads(anatomy: Anatomy, projection: str = "shared", vocabulary: int = 0) -> Heads:
    """Heads with large random weights."""
    torch.manual_seed(4)
    medusa = HeadCard("medusa", count=COUNT, projection=projection, draft_vocabulary=vocabulary)
    exit = HeadCard("exit", layers=EXIT, rank=8, draft_vocabulary=vocabulary)
    return Heads(randomised(MedusaHeads(anatomy, medusa)), randomised(ExitHead(anatomy, exit)))


def medusa_run(anatomy, beside, ids, sampling, params=None, eos=()):
    target, params = ModelTarget(anatomy, heads=beside), params or Medusa()
    full = replace(params, pause=0, budget=params.budget or NODES)
    run = tiny.new_run(target, None, ids, sampling, eos)
    run.drafter = MedusaDrafter(target, full, run.ids)
    return run


def exit_run(anatomy, beside, ids, sampling, params=None, eos=()):
    run = tiny.new_run(ModelTarget(anatomy, heads=beside), None, ids, sampling, eos)
    run.drafter = EarlyExitDrafter(run.target, run.ids, params or EarlyExit(confidence=0))
    return run


# ---- outputs are sacred ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_both_methods_equal_standard_and_generate(family: str) -> None:
    anatomy = dissect(tiny.tiny(family))
    for seed, temperature in enumerate(TEMPERATURES):
        beside = random_heads(anatomy, ("shared", "own")[seed % 2], (0, 60)[seed // 2])
        sampling = Sampling(max_new_tokens=24, temperature=temperature, seed=seed)
        want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
        assert tiny.ids_of(tiny.finish(tiny.standard_run(anatomy, PROMPT, sampling))) == want
        medusa = Medusa(tree=("best-first", "full")[seed % 2], budget=12, width=3)
        steps = tiny.finish(medusa_run(anatomy, beside, PROMPT, sampling, medusa))
        assert tiny.ids_of(steps) == want and len(steps[1].draft) >= 12
        steps = tiny.finish(exit_run(anatomy, beside, PROMPT, sampling, EarlyExit(confidence=0, width=3)))
        assert tiny.ids_of(steps) == want and len(steps[1].draft) == EarlyExit().nodes


@pytest.mark.parametrize("make", [medusa_run, exit_run])
def test_many_seeds_and_every_setting_of_sampling(make) -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")  # heads on a model with an adapter merged into it
    beside = random_heads(anatomy)
    for seed in range(12):
        sampling = Sampling(
            max_new_tokens=20,
            temperature=TEMPERATURES[seed % 3],
            seed=seed,
            top_k=(0, 20)[seed % 2],
            top_p=(1.0, 0.9)[seed // 2 % 2],
            repetition_penalty=(1.0, 1.3)[seed % 3 == 0],
        )
        ids = tiny.prompt(12, seed)
        want = tiny.generate_ids(anatomy.model, ids, sampling)
        assert tiny.ids_of(tiny.finish(make(anatomy, beside, ids, sampling))) == want
        assert tiny.ids_of(tiny.finish(tiny.streaming_run(anatomy, adapter, ids, sampling))) == want


# ---- what is drafted -------------------------------------------------------------------------------------------------


@torch.no_grad()
def reference_medusa(anatomy: Anatomy, beside: Heads, ids: list[int]) -> torch.Tensor:
    """Head by head, from a pass over the whole text without a cache: what follows the token after ``ids``."""
    x = anatomy.decoder(input_ids=torch.tensor([ids], device=anatomy.device), use_cache=False).last_hidden_state[0, -1]
    part = beside.medusa
    out = []
    for j in range(COUNT):
        y = x + nn.functional.silu(part.square[j] @ x + part.bias[j])
        out.append(part.projection[j] @ y if part.card.projection == "own" else anatomy.head_logits(y))
    return torch.stack(out)


@torch.no_grad()
def reference_exit(anatomy: Anatomy, beside: Heads, ids: list[int]) -> torch.Tensor:
    """The exit's logits after ``ids``, from the entry of its layer in such a pass."""
    out = anatomy.decoder(
        input_ids=torch.tensor([ids], device=anatomy.device), use_cache=False, output_hidden_states=True
    )
    main, part = out.hidden_states[EXIT][0, -1], beside.exit
    return anatomy.logits(main + part.up @ nn.functional.silu(part.down @ main))


class Watched(Drafter):
    """Drafts the true continuation, spoilt at random, so that paths of every length are accepted; compares, before
    each draft, what heads and exit give with the references."""

    def __init__(self, run, beside: Heads, want: list[int]) -> None:
        self._rng, self.run, self._beside, self._want, self._row = random.Random(0), run, beside, want, 0
        self.looked = 0

    def propose(self, room: int) -> Draft:
        target, ids = self.run.target, self.run.ids
        self._compare(target.medusa_logits(self._row), reference_medusa(target.anatomy, self._beside, ids[:-1]))
        at = len(ids) - len(PROMPT)
        chain = [t if self._rng.random() < 0.7 else 3 for t in self._want[at : at + min(room, 4)]]
        with target.early_exit() as logits_after:
            for length, token in enumerate([ids[-1], *chain]):
                want = reference_exit(target.anatomy, self._beside, ids + chain[:length])
                self._compare(logits_after(token)[0], want)
        return Draft(tuple(chain), tuple(range(-1, len(chain) - 1)), (0.5,) * len(chain))

    def observe(self, row: int) -> None:
        self._row = row

    def _compare(self, got: torch.Tensor, want: torch.Tensor) -> None:
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)
        self.looked += 1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_drafts_are_those_of_a_pass_without_a_cache(family: str) -> None:
    anatomy = dissect(tiny.tiny(family))
    beside = random_heads(anatomy, "own" if family == "qwen2" else "shared")
    sampling = Sampling(max_new_tokens=30)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    run = tiny.new_run(ModelTarget(anatomy, heads=beside), None, PROMPT, sampling)
    run.drafter = Watched(run, beside, want)
    steps = tiny.finish(run)
    assert tiny.ids_of(steps) == want
    assert {1, 2, 5} <= {len(s.tokens) for s in steps[1:]} and run.drafter.looked > 30


def test_the_exit_leaves_the_cache_as_it_was() -> None:
    anatomy = dissect(tiny.tiny("llama"))
    target = ModelTarget(anatomy, heads=random_heads(anatomy))
    target.prefill(PROMPT)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in target.cache.layers]
    with pytest.raises(KeyboardInterrupt), target.early_exit() as logits_after:
        logits_after(5)
        logits_after(6)
        assert target.cache.layers[0].keys.shape[2] == len(PROMPT) + 2
        assert target.cache.layers[EXIT].keys.shape[2] == len(PROMPT)
        raise KeyboardInterrupt
    for layer, (keys, values) in zip(target.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


class Scripted:
    """An exit whose distributions are given."""

    def __init__(self, probs: list[list[float]]) -> None:
        self.probs, self.asked = probs, []

    def synchronize(self) -> None:
        """Nothing runs asynchronously."""

    def early_exit(self):
        from contextlib import nullcontext

        return nullcontext(self._after)

    def _after(self, token: int) -> torch.Tensor:
        self.asked.append(token)
        return torch.tensor([self.probs[len(self.asked) - 1]]).log()


def test_the_exit_drafts_a_chain_with_alternatives_while_it_is_confident() -> None:
    source = Scripted([[0.1, 0.6, 0.3, 0.0], [0.8, 0.0, 0.1, 0.1], [0.0, 0.1, 0.0, 0.9], [0.7, 0.1, 0.1, 0.1]])
    draft = EarlyExitDrafter(source, [9], EarlyExit(confidence=0.45, width=2, budget=9)).propose(8)
    assert source.asked == [9, 1, 0]  # 0.6 and 0.48 continue, 0.6 * 0.8 * 0.9 does not
    # Joint: 1 .6, 1 0 .48, 1 0 3 .432, 2 .3, 1 2 .06, 1 0 1 .048
    assert draft.tokens == (1, 0, 3, 2, 2, 1)
    assert draft.parents == (-1, 0, 1, -1, 0, 1)
    assert draft.probs == pytest.approx((0.6, 0.8, 0.9, 0.3, 0.1, 0.1))
    source = Scripted([[0.1, 0.6, 0.3, 0.0]] * 4)
    assert EarlyExitDrafter(source, [9], EarlyExit(confidence=0, width=1)).propose(2).tokens == (1, 1)
    assert len(EarlyExitDrafter(source, [9], EarlyExit()).propose(0)) == 0


def test_a_caterpillar_keeps_to_its_budget_and_to_the_likeliest() -> None:
    levels = [[(1, 0.5), (2, 0.5)], [(3, 1.0), (4, 0.0)], [(5, 0.25), (6, 0.25)]]
    draft = tree.caterpillar(levels, 4)
    assert draft.tokens == (1, 2, 3, 5) and draft.parents == (-1, -1, 0, 2)
    assert tree.caterpillar([], 4) == Draft()
    for budget in range(1, 7):
        tree.attention_rows(tree.caterpillar(levels, budget).parents)  # parents come first


def test_medusa_grows_the_trees_of_streaming() -> None:
    anatomy = dissect(tiny.tiny("llama"))
    beside = random_heads(anatomy)
    target = ModelTarget(anatomy, heads=beside)
    target.prefill(PROMPT)
    levels = likeliest(reference_medusa(anatomy, beside, PROMPT), 3)
    for params, want in (
        (Medusa(budget=9, width=3), tree.best_first(tree.Levels(levels), 9)),
        (Medusa(tree="full", width=3, depth=2), tree.full(tree.Levels(levels[:2]))),
    ):
        draft = MedusaDrafter(target, params, [9]).propose(9)
        assert (draft.tokens, draft.parents) == (want.tokens, want.parents)
    with pytest.raises(ValueError, match="584 nodes"):
        MedusaDrafter(target, Medusa(tree="full", width=8), [9])


def test_the_tokens_of_drafts_are_those_of_the_draft_vocabulary() -> None:
    anatomy, whole = tiny.model_with_adapter("llama")
    ids = torch.arange(40, 60)
    streams = weights.Adapter(anatomy, replace(whole.card, draft_vocabulary=20), ids).to(tiny.DEVICE)
    streams.load_state_dict(whole.state_dict() | {"vocabulary": ids})
    medusa = randomised(MedusaHeads(anatomy, HeadCard("medusa", COUNT, "shared", draft_vocabulary=20), ids))
    target = ModelTarget(anatomy, streams, Variant(), Heads(medusa))
    drafters = (StreamingDrafter(target, Streaming(budget=9, width=3, streams="in-pass"), [9]),
                MedusaDrafter(target, Medusa(budget=9, width=3), [9]))  # fmt: skip
    target.prefill(PROMPT)
    for drafter, part, logits in zip(
        drafters, (streams, medusa), (target.stream_logits(0), target.medusa_logits(0)), strict=True
    ):
        assert logits.shape[-1] == 20
        draft = drafter.propose(9)
        want = tree.best_first(tree.Levels(likeliest(part.spread(anatomy, logits), 3)), 9)
        assert (draft.tokens, draft.parents) == (want.tokens, want.parents)
        assert draft.probs == pytest.approx(want.probs) and set(draft.tokens) <= set(range(40, 60))


def test_drafts_keep_to_the_draft_vocabulary() -> None:
    anatomy = dissect(tiny.tiny("llama"))
    ids = torch.arange(40, 60)
    state = torch.randn(anatomy.hidden_size, device=anatomy.device)
    for projection in ("shared", "own"):
        medusa = MedusaHeads(anatomy, HeadCard("medusa", 2, projection, draft_vocabulary=20), ids).to(anatomy.device)
        logits = medusa.spread(anatomy, medusa.row_scores(anatomy, state))
        assert logits.isfinite().nonzero()[:, 1].tolist() == [*range(40, 60)] * 2
        # With zero weights a head equals the model's own; so does a copy of the head's rows.
        torch.testing.assert_close(logits[:, ids], anatomy.head_logits(state)[ids].expand(2, -1))
    exit = ExitHead(anatomy, HeadCard("exit", layers=2, rank=4, draft_vocabulary=20), ids).to(anatomy.device)
    torch.testing.assert_close(exit.logits(anatomy, state)[ids], anatomy.logits(state)[ids])


# ---- on disk ---------------------------------------------------------------------------------------------------------


def saved(folder: Path, anatomy: Anatomy, card: Card, *parts) -> Card:
    card = replace(card, heads={part.card.kind: part.card for part in parts})
    weights.save(weights.Adapter(anatomy, card), folder, card)
    for part in parts:
        weights.save_weights(part, folder / part.card.file)
    return card


def bare(anatomy: Anatomy) -> Card:
    return Card("tiny", base_shape(anatomy), "e2e", "plain", 0, 2, start_rank=0, lora_rank=0, lora_scale=1.0)


def test_heads_are_saved_and_loaded_with_and_without_streams(tmp_path: Path) -> None:
    anatomy = dissect(tiny.tiny("llama"))
    beside = random_heads(anatomy, "own", vocabulary=30)
    streams = replace(bare(anatomy), mode="lossless", gamma=2, start_rank=4, lora_rank=2)
    for name, card in (("bare", bare(anatomy)), ("streams", streams)):
        saved(tmp_path / name, anatomy, card, beside.medusa, beside.exit)
        again = heads.load(tmp_path / name, anatomy)
        assert weights.load(tmp_path / name, anatomy).card.gamma == card.gamma
        for part, old in ((again.medusa, beside.medusa), (again.exit, beside.exit)):
            assert part.card == old.card
            for key, weight in old.state_dict().items():
                torch.testing.assert_close(part.state_dict()[key], weight, atol=1e-3, rtol=1e-3)
    assert weights.load(tmp_path / "bare", anatomy).parameter_count() == 0


def test_an_old_card_has_no_heads(tmp_path: Path) -> None:
    anatomy = dissect(tiny.tiny("llama"))
    saved(tmp_path, anatomy, bare(anatomy))
    file = tmp_path / CARD
    old = json.loads(file.read_text())
    del old["heads"]
    file.write_text(json.dumps(old))
    assert heads.load(tmp_path, anatomy) == Heads()


def test_damaged_heads_are_told_in_one_sentence(tmp_path: Path) -> None:
    anatomy = dissect(tiny.tiny("llama"))
    saved(tmp_path, anatomy, bare(anatomy), random_heads(anatomy).medusa)
    card, file = tmp_path / CARD, tmp_path / "medusa.safetensors"
    good = card.read_text()
    for change, words in (
        ({"count": 0}, "count must be a whole number from 1 to 16, not 0"),
        ({"projection": "third"}, "projection must be shared or own"),
        ({"count": 2}, "damaged"),
    ):
        data = json.loads(good)
        data["heads"]["medusa"] |= change
        card.write_text(json.dumps(data))
        with pytest.raises(AdapterError, match=words):
            heads.load(tmp_path, anatomy)
    card.write_text(good)
    file.unlink()
    with pytest.raises(AdapterError, match="the file medusa.safetensors is missing"):
        heads.load(tmp_path, anatomy)
    for layers in (0, 4):
        with pytest.raises(AdapterError, match="after layer 1 to 3"):
            ExitHead(anatomy, HeadCard("exit", layers=layers, rank=2))


def test_the_number_of_weights() -> None:
    anatomy = dissect(tiny.tiny("llama"))
    h = anatomy.hidden_size
    beside = random_heads(anatomy)
    assert beside.parameters() == {"medusa": COUNT * (h * h + h), "early_exit": 2 * 8 * h}
    own = random_heads(anatomy, "own")
    assert own.parameters()["medusa"] == COUNT * (h * h + h + h * tiny.VOCAB)


def test_the_model_card_tells_of_heads(tmp_path: Path) -> None:
    anatomy = dissect(tiny.tiny("llama"))
    beside = random_heads(anatomy)
    medusa = replace(beside.medusa.card, command="python -m specstream train --mode medusa", metrics={"hits": [0.5]})
    card = replace(bare(anatomy), heads={"medusa": medusa, "exit": beside.exit.card})
    text = readme.text(card)
    assert "3 Medusa heads" in text and "train --mode medusa" in text and "after layer 2" in text


# ---- the toy model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [Medusa(), EarlyExit()])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_toy_model_has_both(params, temperature: float) -> None:
    engine = toy.load_toy(pace=0)
    sampling = Sampling(max_new_tokens=80, temperature=temperature, seed=2)
    events = list(engine.generate("Text: The ", params, sampling))
    assert token_ids(events) == token_ids(list(engine.generate("Text: The ", Standard(), sampling)))
    if temperature == 0:
        assert any(len(e.tokens) > 2 for e in events[1:-1])


def test_passes_that_draft_are_a_phase_of_their_own() -> None:
    """The toy sleeps in each of its passes, while its heads and streams cost nothing."""
    engine = toy.load_toy(pace=0.02)
    for params in (Standard(), PromptLookup(), Streaming(), Medusa(), EarlyExit(), DraftModel()):
        steps = [e for e in engine.generate("Text:", params, Sampling(max_new_tokens=12)) if isinstance(e, Step)][1:]
        for step in steps:
            assert set(step.seconds) - {"draft_pass"} == {"draft", "verify", "accept", "keep"}
            assert ("draft_pass" in step.seconds) == (len(step.draft) > 0 and params.name != PromptLookup.name)
            assert min(step.seconds.values()) >= 0
        share = summarize(steps).outside_share
        drafted = sum(step.seconds.get("draft_pass", 0) for step in steps)
        assert share == pytest.approx(1 - (drafted + sum(s.seconds["verify"] for s in steps)) / seconds_of(steps))
        if params.name in (EarlyExit.name, DraftModel.name):  # a pass for every token of the chain
            assert drafted > 0.001 * sum(max(s.draft.depths(), default=0) for s in steps) > 0


def seconds_of(steps: list[Step]) -> float:
    return sum(step.total_seconds for step in steps)
