"""Variants of Speculative Streaming: pruned drafts and deferred streams. The same tokens, and the same drafts."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from specstream.adapters.weights import Adapter
from specstream.decoding.drafters.levels import LevelDrafter, Pauses
from specstream.decoding.loop import Run
from specstream.events import Draft, Fate, Origin, Step
from specstream.model import cpu_linear
from specstream.model.introspection import dissect
from specstream.model.partial_forward import RecordedCalls
from specstream.params import Medusa, Sampling, Streaming
from specstream.stats import summarize
from specstream.streams.stream_attention import PassLayout, Streams
from specstream.target.model_target import ModelTarget, Variant
from specstream.testing import toy
from tests import tiny
from tests.test_golden import PROMPT, Oracle

MODES = ("shared", "lossless")
NONE, SOME, ALL = 1e-300, 0.003, 1.0  # thresholds; the vocabulary has 120 tokens


def fates(steps: list[Step]) -> list[Fate]:
    return [fate for step in steps for fate in step.draft.fate]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pruned_output_equals_standard_decoding(family: str, mode: str) -> None:
    anatomy, adapter = tiny.model_with_adapter(family, gamma=2, layers=2, mode=mode, exit_rank=4)
    for temperature in (0.0, 0.9):
        sampling = Sampling(max_new_tokens=20, temperature=temperature, seed=3)
        want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
        shares = {}
        for threshold in (NONE, SOME, ALL):
            for streams in ("in-pass", "deferred"):
                params = Streaming(budget=12, width=6, streams=streams, prune=threshold)
                steps = tiny.finish(tiny.streaming_run(anatomy, adapter, PROMPT, sampling, params))
                assert tiny.ids_of(steps) == want
                shares[threshold] = fates(steps).count(Fate.PRUNED) / len(fates(steps))
        assert shares[NONE] == 0 < shares[SOME] <= shares[ALL]
    steps = tiny.finish(guided(anatomy, adapter, sampling, want, rate=1.0))
    assert tiny.ids_of(steps) == want and set(fates(steps)) == {Fate.PRUNED}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_deferred_drafts_are_those_of_the_pass(family: str, mode: str) -> None:
    """In-pass and deferred runs side by side, driven down accepted paths of every length.

    The third has separate layers for streams, with LoRA merged, if LoRA is for streams only.
    """
    anatomy, adapter = tiny.model_with_adapter(family, gamma=3, layers=2, mode=mode)
    sampling = Sampling(max_new_tokens=24)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    drafts = []
    for deferred, merged in ((False, False), (True, False), (True, True)):
        if merged:
            adapter.merge_copies(anatomy, cpu_linear.NATIVE)
            assert len(adapter.merged) == (2 if mode == "lossless" else 0)
        run = guided(anatomy, adapter, sampling, want, deferred=deferred)
        assert tiny.ids_of(tiny.finish(run)) == want
        drafts.append(run.drafter.seen)
    assert len(drafts[0]) == len(drafts[1]) == len(drafts[2]) > 4
    for seen in zip(*drafts, strict=True):
        for theirs in seen[1:]:
            torch.testing.assert_close(theirs, seen[0], atol=2e-4, rtol=1e-3)
    if mode == "lossless":  # the copies are what ran
        with torch.no_grad():
            for layer in adapter.merged:
                for weight in layer.parameters():  # packed maps have none: norms
                    weight.add_(0.5)
        run = guided(anatomy, adapter, sampling, want, deferred=True)
        assert tiny.ids_of(tiny.finish(run)) == want
        assert not torch.allclose(torch.cat(run.drafter.seen), torch.cat(drafts[2]), atol=1e-2)


class Guide(Oracle):
    """An oracle that records the stream logits of every accepted row."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[Tensor] = []

    def observe(self, row: int) -> None:
        self.seen.append(self._source.stream_logits(row))


class RandomlyPruned(ModelTarget):
    """Prunes at random, so that accepted paths of some length remain."""

    def __init__(self, *args: Any, rate: float) -> None:
        super().__init__(*args)
        self._chance, self._rate = random.Random(2), rate

    def _unlikely(self, states: Tensor, draft: Draft) -> set[int]:
        gone = {n for n in range(len(draft)) if self._chance.random() < self._rate}
        for node, parent in enumerate(draft.parents):
            if parent in gone:
                gone.add(node)
        return gone


def guided(
    anatomy: Any, adapter: Any, sampling: Sampling, want: list[int], deferred: bool = False, rate: float = 0.0
) -> Run:
    """A run whose drafts contain the true continuation; ``rate`` of its nodes are pruned at random."""
    target = RandomlyPruned(anatomy, adapter, Variant(deferred, prune=0.5 if rate else 0.0), rate=rate)
    guide = Guide(target, want, 0.2, 0, len(PROMPT))
    guide.run = tiny.new_run(target, guide, PROMPT, sampling)
    return guide.run


@pytest.mark.parametrize("deferred", (False, True))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_cache_after_pruned_steps_is_that_of_a_plain_run(family: str, deferred: bool) -> None:
    anatomy, adapter = tiny.model_with_adapter(family, mode="lossless", exit_rank=2)
    sampling = Sampling(max_new_tokens=30)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    judged = []

    def check(run: Run, step: Step) -> None:
        cached = run.ids[:-1]
        plain = ModelTarget(anatomy)
        plain.prefill(cached)
        for ours, theirs in zip(run.target.cache.layers, plain.cache.layers, strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values, atol=2e-5, rtol=1e-4)
        judged.append(len(step.tokens))

    steps = tiny.finish(guided(anatomy, adapter, sampling, want, deferred, rate=0.2), check)
    assert tiny.ids_of(steps) == want
    assert {Fate.PRUNED, Fate.ACCEPTED} <= set(fates(steps)) and max(judged) > 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt"])
def test_survivors_score_and_draft_as_without_the_pruned_rows(family: str, mode: str) -> None:
    """Main and stream logits of a pass that drops rows equal those of a pass that never had them."""
    anatomy, adapter = tiny.model_with_adapter(family, mode=mode, exit_rank=2)
    draft = Draft((8, 9, 10, 11, 12), (-1, 0, -1, 2, 2), (1.0,) * 5)
    smaller = Draft((8, 10, 12), (-1, -1, 1), (1.0,) * 3)

    class Fixed(ModelTarget):
        def _unlikely(self, states: Tensor, draft: Draft) -> set[int]:
            return {1, 3}

    pruning, plain = Fixed(anatomy, adapter, Variant(prune=0.5)), ModelTarget(anatomy, adapter, Variant())
    for target in (pruning, plain):
        target.prefill(PROMPT)
    torch.testing.assert_close(pruning.verify(7, draft), plain.verify(7, smaller), atol=1e-5, rtol=1e-4)
    for row, same in ((0, 0), (1, 1), (3, 2), (5, 3)):
        torch.testing.assert_close(pruning.stream_logits(row), plain.stream_logits(same), atol=1e-4, rtol=1e-3)


def test_pruning_follows_the_early_exit_of_the_parent() -> None:
    """A second opinion on every edge: the early exit computed from the plain hidden states of its path."""
    anatomy, adapter = tiny.model_with_adapter("llama", layers=2, exit_rank=4)
    draft = Draft((8, 9, 10, 11, 12, 13), (-1, -1, 0, 0, 1, 2), (1.0,) * 6)
    paths = {-1: [*PROMPT, 7]}
    likely: dict[int, float] = {}
    for node, parent in enumerate(draft.parents):
        with torch.no_grad():
            ids = torch.tensor([paths[parent]], device=tiny.DEVICE)
            states = anatomy.model(input_ids=ids, output_hidden_states=True).hidden_states[-3][:, -1]
            probs = anatomy.logits(adapter.streams.exit_states(states))[0].softmax(-1)
        likely[node] = float(probs[draft.tokens[node]])
        paths[node] = [*paths[parent], draft.tokens[node]]
    for threshold in sorted(likely.values()):
        target = ModelTarget(anatomy, adapter, Variant(prune=threshold * 1.01))
        target.prefill(PROMPT)
        logits = target.verify(7, draft)
        kept = {-1}
        for node, parent in enumerate(draft.parents):
            if parent in kept and likely[node] >= threshold * 1.01:
                kept.add(node)
        assert set(target.pruned) == set(range(6)) - kept
        assert logits.shape[0] == len(kept)


def test_a_pruned_node_with_the_true_token_becomes_a_correction() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", exit_rank=2)
    sampling = Sampling(max_new_tokens=24)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    steps = tiny.finish(guided(anatomy, adapter, sampling, want, rate=0.4))
    lost = 0
    for step in steps[1:]:
        last = step.tokens[-1]
        assert last.origin is Origin.TARGET or step is steps[-1]
        above = step.tokens[-2].node if len(step.tokens) > 1 else -1
        for node in range(len(step.draft)):
            if step.draft.parents[node] == above and step.draft.tokens[node] == last.id and last.node < 0:
                lost += 1
                assert step.draft.fate[node] is Fate.PRUNED
                assert step.draft.target_probs[node] is not None
    assert lost > 2


def test_rows_are_counted() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", gamma=3, exit_rank=2)
    sampling = Sampling(max_new_tokens=20)
    for streams, prune in (("in-pass", 0.0), ("in-pass", SOME), ("deferred", 0.0), ("deferred", SOME)):
        params = Streaming(budget=12, width=6, streams=streams, prune=prune)
        steps = tiny.finish(tiny.streaming_run(anatomy, adapter, PROMPT, sampling, params))
        for step in steps[1:]:
            pruned = step.draft.fate.count(Fate.PRUNED)
            main = 1 + len(step.draft) - pruned
            drafted = 3 if len(step.draft) else 0
            assert step.rows == 1 + len(step.draft)
            assert step.stream_rows == (3 * main if streams == "in-pass" else drafted)
            assert step.rows - step.pruned == main
        stats = summarize(steps)
        assert (stats.pruned > 0) == (prune > 0) and stats.to_dict()["pruned"] == stats.pruned


def test_deferred_and_pruned_at_the_end_of_the_context() -> None:
    anatomy, adapter = tiny.model_with_adapter("opt", exit_rank=2)  # learned positions: an index too far would raise
    ids = tiny.prompt(anatomy.context - 6)
    params = Streaming(streams="deferred", prune=SOME)
    run = tiny.streaming_run(anatomy, adapter, ids, Sampling(max_new_tokens=50), params)
    assert len(tiny.ids_of(tiny.finish(run))) == 6


def test_deferred_leaves_no_hooks_and_no_cache() -> None:
    anatomy, adapter = tiny.model_with_adapter("gemma3", mode="lossless", exit_rank=2)
    params = Streaming(streams="deferred", prune=SOME)
    run = tiny.streaming_run(anatomy, adapter, PROMPT, Sampling(max_new_tokens=9), params)
    tiny.finish(run)
    assert run.target.cache is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in anatomy.model.modules())


def test_top_layers_alone_give_what_the_model_gives() -> None:
    anatomy, _ = tiny.model_with_adapter("qwen3")
    calls = RecordedCalls(anatomy)
    ids = torch.tensor([PROMPT], device=tiny.DEVICE)
    with torch.no_grad(), calls.recorded():
        states = anatomy.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    mask = torch.ones(1, len(PROMPT), len(PROMPT), device=tiny.DEVICE).tril().bool()
    with torch.no_grad():
        rows = calls.rows({"full_attention": mask}, torch.arange(len(PROMPT), device=tiny.DEVICE)[None], 0)
        *_, out = calls.run(states[2], rows, range(2, len(anatomy.layers)))
        torch.testing.assert_close(anatomy.normed(out), states[-1], atol=1e-5, rtol=1e-4)


def test_layers_called_without_their_module_keep_their_hooks() -> None:
    anatomy, adapter = tiny.model_with_adapter("qwen3")
    seen: list[int] = []
    hook = anatomy.layers[1].register_forward_hook(lambda module, args, out: seen.append(1))
    run = tiny.streaming_run(anatomy, adapter, PROMPT, Sampling(max_new_tokens=9), Streaming(streams="deferred"))
    steps = [event for event in tiny.finish(run) if isinstance(event, Step)]
    hook.remove()
    assert len(seen) >= len(steps)


def test_narrowed_plan() -> None:
    mask = torch.ones(1, 3, 5).tril(2).bool()
    plan = PassLayout({"full_attention": mask}, torch.tensor([[2, 3, 4]]), torch.tensor([[0, 1, 2]])).narrowed([0, 2])
    assert plan.positions.tolist() == [[2, 4]] and plan.nodes.tolist() == [[0, 1]]
    assert plan.masks["full_attention"].int().tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]]]


def test_early_exit_starts_as_the_identity() -> None:
    streams = Streams(8, gamma=2, layers=1, rank=0, exit_rank=3)
    states = torch.randn(2, 5, 8)
    torch.testing.assert_close(streams.exit_states(states), states)
    torch.nn.init.normal_(streams.exit_up)
    want = states + torch.einsum("hr,rg,bsg->bsh", streams.exit_up, streams.exit_down, states)
    torch.testing.assert_close(streams.exit_states(states), want)
    assert not any("exit" in name for name, _ in Streams(8, 2, 1, 0).named_parameters())


def test_values_of_streams_are_turned_by_their_number() -> None:
    """Equation 7, with complex numbers: pairs of values times e^(i eps j), for the stream rows only."""
    anatomy = dissect(tiny.tiny("llama"))
    streams = Streams(anatomy.hidden_size, gamma=3, layers=2, rank=0, rotation=0.3).to(tiny.DEVICE)
    assert not list(streams.parameters())
    states = torch.randn(1, 2, anatomy.hidden_size, device=tiny.DEVICE)
    assert torch.equal(streams.start(states), states[:, :, None].expand(-1, -1, 3, -1))
    rows = torch.randn(1, 2 + 2 * 3, anatomy.hidden_size, device=tiny.DEVICE)
    value = anatomy.layers[-1].self_attn.v_proj
    plain = value(rows)
    with streams.turned(anatomy.layers[-streams.layers :], 2):
        turned = value(rows)
    assert torch.equal(value(rows), plain)
    factor = torch.polar(torch.ones(6), 0.3 * torch.tensor([1.0, 2, 3, 1, 2, 3]))[:, None].to(rows.device)
    want = torch.view_as_real(torch.view_as_complex(plain[0, 2:].unflatten(-1, (-1, 2))) * factor).flatten(-2)
    torch.testing.assert_close(turned[0, 2:], want)
    assert torch.equal(turned[0, :2], plain[0, :2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
def test_turned_values_draft_alike_in_the_pass_and_deferred(family: str, mode: str) -> None:
    anatomy, other = tiny.model_with_adapter(family, gamma=3, layers=2, mode=mode)
    card = replace(other.card, value_rotation=0.2)
    adapter = Adapter(anatomy, card).to(tiny.DEVICE)
    adapter.load_state_dict({n: w for n, w in other.state_dict().items() if n != "streams.embedding"})
    sampling = Sampling(max_new_tokens=16)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    drafts = []
    for deferred in (False, True):
        steps = tiny.finish(guided(anatomy, adapter, sampling, want, deferred=deferred))
        assert tiny.ids_of(steps) == want
        drafts.append([(s.draft.tokens, s.draft.parents) for s in steps])
    assert drafts[0] == drafts[1]


def test_value_rotation_needs_a_value_map() -> None:
    anatomy = dissect(tiny.tiny("gpt2"))
    streams = Streams(anatomy.hidden_size, gamma=3, layers=2, rank=0, rotation=0.3)
    with pytest.raises(ValueError, match="v_proj"), streams.turned(anatomy.layers, 0):
        pass


def test_pruning_without_an_early_exit_is_refused() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")
    with pytest.raises(ValueError, match="needs an adapter with an early exit"):
        tiny.streaming_run(anatomy, adapter, PROMPT, Sampling(), Streaming(prune=0.1))


def test_toy_shows_the_variants() -> None:
    sampling = Sampling(max_new_tokens=60)
    runs = [
        [e for e in toy.load_toy(pace=0).generate("Text:", params, sampling) if isinstance(e, Step)]
        for params in (
            Streaming(budget=12, streams="in-pass"),
            Streaming(budget=12, streams="in-pass", prune=0.2),
            Streaming(budget=12, streams="deferred"),
        )
    ]
    plain, pruned, deferred = runs
    assert tiny.ids_of(plain) == tiny.ids_of(pruned) == tiny.ids_of(deferred)
    assert {Fate.PRUNED, Fate.ACCEPTED} <= set(fates(pruned)) and Fate.PRUNED not in fates(plain)
    assert [s.draft.tokens for s in deferred] == [s.draft.tokens for s in plain]
    assert summarize(deferred).stream_rows < summarize(plain).stream_rows


def test_auto_defers_streams_where_that_was_measured_to_be_faster() -> None:
    assert Streaming().on("cpu") == Streaming().on("cuda") == Streaming(streams="deferred")
    assert Streaming().on("mps").streams == "in-pass"
    assert Streaming(streams="in-pass").on("cpu").streams == "in-pass"
    anatomy, adapter = tiny.model_with_adapter("llama")
    for params, rows in ((Streaming(), 1), (Streaming(streams="in-pass"), 6)):
        run = tiny.streaming_run(anatomy, adapter, tiny.prompt(9), Sampling(max_new_tokens=9), params)
        step = next(s for s in tiny.finish(run) if len(s.draft) == 5)
        assert step.stream_rows == rows * adapter.card.gamma


def test_drafting_pauses_where_it_gains_nothing_and_goes_on_where_it_does() -> None:
    pauses = Pauses(1.5)
    assert not any(pauses.take_step() for _ in range(9))  # no draft has failed yet
    waits = []
    for tokens in [1] * 8 + [2, 4] + [1] * 5:
        pauses.saw(tokens)
        waits.append(sum(iter(pauses.take_step, False)))
    # The mean starts high; after a step that gains, drafting continues, and the next pause is short again.
    assert waits == [0] * 6 + [4, 8] + [0] * 5 + [4, 8]
    for _ in range(9):
        pauses.saw(1)
    assert sum(iter(pauses.take_step, False)) == Pauses.LONGEST
    never = Pauses(0)
    never.saw(1)
    assert not never.take_step()


def test_a_tree_of_unset_size_has_the_nodes_that_pay_for_their_rows() -> None:
    """Each is worth what its row costs at the running mean of tokens per step, which rises where drafts are good."""
    sure = [[(1, 0.9), (2, 0.05)], [(3, 0.6), (4, 0.3)], [(5, 0.3), (6, 0.2)]]
    logits = torch.full((3, 7), -torch.inf)
    for row, level in zip(logits, sure, strict=True):
        for token, prob in level:
            row[token] = math.log(prob)
        row[0] = math.log(1 - sum(p for _, p in level))
    source = SimpleNamespace(synchronize=lambda: None)

    def drafted(budget: int, accepted: int) -> tuple[int, ...]:
        drafter = LevelDrafter(source, lambda row: logits, None, 3, Medusa(width=2, budget=budget), [9])
        for _ in range(40):
            draft = drafter.propose(9)
            drafter.observe(draft.depths().index(accepted) + 1 if accepted in draft.depths() else 0)
        return drafter.propose(9).tokens

    poor, good, whole = drafted(0, accepted=1), drafted(0, accepted=3), drafted(14, accepted=3)
    assert len(good) == 6 < len(poor) < len(whole) == 14
    assert whole[: len(poor)] == poor and poor[: len(good)] == good


@pytest.mark.parametrize("streams", ("in-pass", "deferred"))
def test_pauses_change_what_is_drafted_and_no_token(streams: str) -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", gamma=3, layers=2)
    sampling = Sampling(max_new_tokens=40)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    drafted = {}
    for pause in (0.0, 2.5):
        params = Streaming(streams=streams, pause=pause, budget=12)
        steps = tiny.finish(tiny.streaming_run(anatomy, adapter, PROMPT, sampling, params))[1:]
        assert tiny.ids_of(steps) == want[1:]
        drafted[pause] = [len(step.draft) > 0 for step in steps]
    assert all(drafted[0.0][:-1]) and 0 < sum(drafted[2.5]) < len(drafted[2.5]) - 8
