"""Outputs are sacred: every method gives token for token what standard decoding and transformers give, in float32."""

from __future__ import annotations

import random

import pytest
import torch

from specstream.decoding.drafters.streaming import StreamingDrafter
from specstream.decoding.interfaces import Drafter
from specstream.decoding.sampling import Picker
from specstream.events import Draft, Fate, Origin, Reason
from specstream.model.kv_cache import TreeCache
from specstream.params import Sampling, Streaming
from specstream.target.model_target import ModelTarget, Variant
from tests import tiny

PROMPT = tiny.prompt(21)  # longer than the sliding window
TEMPERATURES = (0.0, 0.7, 1.3)
SHAPES = ((1, 1), (2, 5), (3, 16), (4, 33), (5, 64))  # gamma, budget


@pytest.mark.parametrize("mode", ["shared", "lossless"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_streaming_equals_standard_equals_generate(family: str, mode: str) -> None:
    for seed, (gamma, budget) in enumerate(SHAPES):
        anatomy, adapter = tiny.model_with_adapter(family, gamma, layers=1 + seed % 3, mode=mode)
        sampling = Sampling(max_new_tokens=24, temperature=TEMPERATURES[seed % 3], seed=seed)
        want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
        assert len(want) == 24
        assert tiny.ids_of(tiny.finish(tiny.standard_run(anatomy, PROMPT, sampling))) == want
        run = tiny.streaming_run(anatomy, adapter, PROMPT, sampling, Streaming(budget=budget))
        assert tiny.ids_of(tiny.finish(run)) == want


@pytest.mark.parametrize("streams", ["in-pass", "deferred"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_copies_beside_streams_change_nothing(temperature: float, streams: str) -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", gamma=3)
    copied = accepted = 0
    for seed in range(8):
        ids = tiny.prompt(7, seed) * 3
        sampling = Sampling(max_new_tokens=32, temperature=temperature, seed=seed)
        want = tiny.generate_ids(anatomy.model, ids, sampling)
        params = Streaming(budget=6, streams=streams)
        steps = tiny.finish(tiny.streaming_run(anatomy, adapter, ids, sampling, params))
        assert tiny.ids_of(steps) == want
        fates = [fate for s in steps for fate, copy in zip(s.draft.fate, s.draft.copied, strict=True) if copy]
        copied += len(fates)
        accepted += fates.count(Fate.ACCEPTED)
    assert copied and (accepted or temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_many_seeds(temperature: float) -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", gamma=3)
    for seed in range(20):
        sampling = Sampling(
            max_new_tokens=20,
            temperature=temperature,
            seed=seed,
            top_k=(0, 20)[seed % 2],
            top_p=(1.0, 0.9)[seed // 2 % 2],
            min_p=(0.0, 0.05)[seed // 4 % 2],
            repetition_penalty=(1.0, 1.3)[seed % 3 == 0],
        )
        ids = tiny.prompt(12, seed)
        want = tiny.generate_ids(anatomy.model, ids, sampling)
        run = tiny.streaming_run(
            anatomy, adapter, ids, sampling, Streaming(tree=("full", "best-first")[seed % 2], width=3)
        )
        assert tiny.ids_of(tiny.finish(run)) == want


class Oracle(Drafter):
    """Drafts the reference continuation as a tree with wrong siblings; each true token is corrupted at a rate.

    Random streams accept almost nothing, which would let broken code pass; this drives accepted paths of every length.
    """

    def __init__(self, source: ModelTarget, want: list[int], rate: float, seed: int, start: int) -> None:
        self._rng, self._want, self._rate, self._start = random.Random(seed), want, rate, start
        self._source, self.run = source, None

    def propose(self, room: int) -> Draft:
        at = len(self.run.ids) - self._start
        tokens, parents, parent = [], [], -1
        for true in self._want[at : at + min(room, 5)]:
            spoilt = self._rng.random() < self._rate
            wrong = self._rng.sample([t for t in range(3, tiny.VOCAB) if t != true], 2)
            children = wrong if spoilt else [wrong[0], true]
            self._rng.shuffle(children)
            first = len(tokens)
            tokens += children
            parents += [parent] * 2
            parent = first + (children.index(true) if not spoilt else self._rng.randrange(2))
        return Draft(tuple(tokens), tuple(parents), (0.5,) * len(tokens))

    def observe(self, row: int) -> None:
        self._source.stream_logits(row)  # the streams of the accepted row must be there


def oracle_run(anatomy, adapter, sampling, want, rate, seed=0, eos=()):
    target = ModelTarget(anatomy, adapter, Variant())
    oracle = Oracle(target, want, rate, seed, len(PROMPT))
    oracle.run = tiny.new_run(target, oracle, PROMPT, sampling, eos)
    return oracle.run


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_accepted_paths_of_every_length(family: str) -> None:
    anatomy, adapter = tiny.model_with_adapter(family)
    for temperature in TEMPERATURES:
        sampling = Sampling(max_new_tokens=40, temperature=temperature, seed=5)
        want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
        lengths = set()
        for seed, rate in enumerate((0.0, 0.3)):
            steps = tiny.finish(oracle_run(anatomy, adapter, sampling, want, rate, seed))
            assert tiny.ids_of(steps) == want
            lengths |= {len(s.tokens) for s in steps[1:-1]}
        assert {1, 2, 3, 6} <= lengths


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3", "gpt2"])
def test_cache_after_every_step_is_that_of_a_plain_run(family: str) -> None:
    anatomy, adapter = tiny.model_with_adapter(family)
    sampling = Sampling(max_new_tokens=24)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)

    def check(run, step) -> None:
        cached = run.ids[:-1]
        plain = ModelTarget(anatomy)
        plain.prefill(cached)
        assert run.target.length == len(cached)
        for ours, theirs in zip(run.target.cache.layers, plain.cache.layers, strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values, atol=2e-5, rtol=1e-4)

    steps = tiny.finish(oracle_run(anatomy, adapter, sampling, want, 0.2), check)
    assert max(len(s.tokens) for s in steps) > 3


def brute_force(model, prefix: list[int], draft: Draft, picker: Picker) -> list[int]:
    """The second opinion: a full forward of every path, no cache, no mask, no tree code of ours."""
    paths = {-1: prefix}
    for node, parent in enumerate(draft.parents):
        paths[node] = paths[parent] + [draft.tokens[node]]
    out, node = [], -1
    while True:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([paths[node]], device=tiny.DEVICE), use_cache=False).logits[0, -1]
        out.append(picker.pick(logits, paths[node]))
        below = [n for n, p in enumerate(draft.parents) if p == node and draft.tokens[n] == out[-1]]
        if not below:
            return out
        node = below[0]


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("family", ["llama", "qwen2-window", "opt"])
def test_brute_force_verifier_agrees(family: str, temperature: float) -> None:
    anatomy, adapter = tiny.model_with_adapter(family)
    sampling = Sampling(max_new_tokens=20, temperature=temperature, repetition_penalty=1.2)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    run = oracle_run(anatomy, adapter, sampling, want, 0.3)
    before = list(PROMPT)
    for step in tiny.finish(run):
        got = [t.id for t in step.tokens]
        full = brute_force(anatomy.model, before, step.draft, run.picker)
        assert got == full[: len(got)]
        assert len(got) == len(full) or len(before) + len(got) == len(PROMPT) + 20
        before += got


def test_pass_with_streams_leaves_node_logits_alone() -> None:
    for mode in ("shared", "lossless"):
        anatomy, adapter = tiny.model_with_adapter("llama", mode=mode)
        logits = []
        for streaming in (False, True):
            target = ModelTarget(anatomy, adapter, Variant() if streaming else None)
            target.prefill(PROMPT)
            logits.append(target.verify(7, Draft((8, 9, 10), (-1, 0, -1), (1.0,) * 3)))
        torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)


def test_lossless_adapter_never_changes_the_model() -> None:
    plain = tiny.generate_ids(tiny.tiny("llama"), PROMPT, Sampling(max_new_tokens=24))
    anatomy, adapter = tiny.model_with_adapter("llama", mode="lossless")
    assert tiny.ids_of(tiny.finish(tiny.streaming_run(anatomy, adapter, PROMPT, Sampling(max_new_tokens=24)))) == plain


@pytest.mark.parametrize("rate", (0.0, 0.5))
def test_eos_inside_an_accepted_path_cuts_it(rate: float) -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")
    sampling = Sampling(max_new_tokens=30)
    free = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    for at in range(1, 12):
        eos = free[at]
        want = free[: free.index(eos) + 1]
        steps = tiny.finish(oracle_run(anatomy, adapter, sampling, free, rate, eos=[eos]))
        assert tiny.ids_of(steps) == want
        nodes = [f for s in steps for f in s.draft.fate]
        drafted = [t for s in steps for t in s.tokens if t.origin is Origin.DRAFT]
        assert nodes.count(Fate.ACCEPTED) == len(drafted)


def test_max_new_tokens_and_stop_strings_cut_inside_a_path() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")
    free = tiny.generate_ids(anatomy.model, PROMPT, Sampling(max_new_tokens=30))
    for limit in range(1, 12):
        steps = tiny.finish(oracle_run(anatomy, adapter, Sampling(max_new_tokens=limit), free, 0.0))
        assert tiny.ids_of(steps) == free[:limit]
    stop = f"{free[6]} {free[7]} "
    text = "".join(f"{i} " for i in free)
    sampling = Sampling(max_new_tokens=30, stop=(stop,))
    steps = tiny.finish(oracle_run(anatomy, adapter, sampling, free, 0.0))
    assert tiny.ids_of(steps) == free[:8]
    assert "".join(t.text for s in steps for t in s.tokens) == text[: text.index(stop)]


def test_context_end_is_never_passed() -> None:
    anatomy, adapter = tiny.model_with_adapter("opt")  # learned positions: an index too far would raise
    ids = tiny.prompt(anatomy.context - 6)
    run = tiny.streaming_run(anatomy, adapter, ids, Sampling(max_new_tokens=50))
    assert len(tiny.ids_of(tiny.finish(run))) == 6
    assert run.reason is Reason.CONTEXT


class Uncopied(list[int]):
    """The ids of a run, which may grow long."""

    def copy(self) -> list[int]:
        return pytest.fail("copied once more")


def test_the_text_is_copied_once_a_step_and_may_grow_meanwhile() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")
    sampling = Sampling(max_new_tokens=30, repetition_penalty=1.5)  # every choice depends on the text before it
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    run = oracle_run(anatomy, adapter, sampling, want, 0.2)
    run.ids = Uncopied(run.ids)
    steps = tiny.finish(run)
    assert tiny.ids_of(steps) == want and max(len(step.tokens) for step in steps) > 3


@pytest.mark.parametrize("left", range(1, 8))
def test_no_draft_is_deeper_than_what_fits_behind_it(left: int) -> None:
    """Whether the context or the requested length ends the text: the same one, in drafts that fit to their end."""
    anatomy, adapter = tiny.model_with_adapter("opt", gamma=5)
    for ids, limit, reason in (
        (tiny.prompt(anatomy.context - left), 50, Reason.CONTEXT),
        (tiny.prompt(20), left, Reason.LENGTH),
    ):
        for sampling in (Sampling(max_new_tokens=limit), Sampling(max_new_tokens=limit, temperature=0.9, seed=left)):
            plain = tiny.standard_run(anatomy, ids, sampling)
            want = tiny.ids_of(tiny.finish(plain))
            target = ModelTarget(anatomy, adapter, Variant())
            oracle = Oracle(target, [*want, 3, 3, 3, 3, 3], 0.0, left, len(ids))  # would draft on beyond the end
            oracle.run = run = tiny.new_run(target, oracle, ids, sampling)
            steps = tiny.finish(run)
            assert tiny.ids_of(steps) == want and run.reason is plain.reason is reason
            emitted = 0
            for step in steps:
                assert emitted + max(step.draft.depths(), default=0) < left
                emitted += len(step.tokens)
            assert emitted == left


def test_an_abandoned_run_leaves_the_next_one_sound() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")
    sampling = Sampling(max_new_tokens=16)
    want = tiny.generate_ids(anatomy.model, PROMPT, sampling)
    run = tiny.streaming_run(anatomy, adapter, PROMPT, sampling)
    steps = tiny._steps(run, None)
    next(steps), next(steps)
    steps.close()
    assert run.target.cache is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in anatomy.layers)
    assert tiny.ids_of(tiny.finish(tiny.streaming_run(anatomy, adapter, PROMPT, sampling))) == want


def test_long_prompts_in_chunks_and_cache_growth() -> None:
    cache = TreeCache(1)
    first, more = torch.randn(1, 2, 300, 4), torch.randn(1, 2, 5, 4)
    cache.reserve(300)
    cache.layers[0].update(first, first)
    cache.reserve(305)
    cache.layers[0].update(more, more)
    cache.keep(300, [0, 3, 4])
    torch.testing.assert_close(cache.layers[0].keys, torch.cat([first, more[:, :, [0, 3, 4]]], 2))
    anatomy, adapter = tiny.model_with_adapter("llama")
    ids = tiny.prompt(100)
    sampling = Sampling(max_new_tokens=8)
    want = tiny.generate_ids(anatomy.model, ids, sampling)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specstream.target.model_target.CHUNK", 32)
        assert tiny.ids_of(tiny.finish(tiny.streaming_run(anatomy, adapter, ids, sampling))) == want


def test_full_tree_too_large_is_refused() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", gamma=4)
    target = ModelTarget(anatomy, adapter, Variant())
    with pytest.raises(ValueError, match="smaller width or depth"):
        StreamingDrafter(target, Streaming(tree="full", width=8), [])
