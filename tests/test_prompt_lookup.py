"""Prompt lookup: what is drafted from a text, and that the output stays that of standard decoding, token for token."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specstream.adapters.heads import Heads
from specstream.decoding.drafters.prompt_lookup import Occurrences, PromptLookupDrafter, merged
from specstream.engine import _unavailable
from specstream.events import Fate, Reason
from specstream.params import METHODS, PromptLookup, Sampling, Standard
from specstream.session import token_ids
from specstream.target.model_target import ModelTarget
from specstream.testing import toy
from tests import tiny

COPIED = tiny.prompt(8) * 3  # a text that repeats itself, longer than the sliding windows
EAGER = PromptLookup(shortest=1, budget=12, candidates=4)


def lookup_run(anatomy, ids, sampling, params=EAGER, eos=()):
    ids = list(ids)
    run = tiny.new_run(ModelTarget(anatomy), None, ids, sampling, eos)
    run.drafter = PromptLookupDrafter(run.ids, params)
    return run


# ---- what is drafted -------------------------------------------------------------------------------------------------


def paths_of(draft):
    paths = []
    for node, parent in enumerate(draft.parents):
        paths.append((paths[parent] if parent >= 0 else ()) + (draft.tokens[node],))
    return paths


def test_newest_continuation_of_the_longest_match_comes_first() -> None:
    ids = [1, 2, 3, 7, 8, 9, 2, 3, 5, 6, 9, 1, 2, 3]
    draft = PromptLookupDrafter(ids, PromptLookup(longest=3, shortest=2, depth=2, candidates=2)).propose(10)
    assert paths_of(draft) == [(7,), (7, 8), (5,), (5, 6)]  # (1, 2, 3) was followed by 7 8, (2, 3) also by 5 6
    assert draft.probs == pytest.approx((2 / 3, 1, 1 / 3, 1))  # 7 8 followed a match of three tokens and one of two


def test_common_beginnings_are_one_node_and_the_budget_holds() -> None:
    draft = merged([(1, 2, 3), (1, 2, 4), (5, 6, 7)], [(1, 2, 3)] * 3 + [(1, 2, 4)], budget=5)
    assert paths_of(draft) == [(1,), (1, 2), (1, 2, 3), (1, 2, 4), (5,)]
    assert draft.parents == (-1, 0, 1, 1, -1)
    assert draft.probs == pytest.approx((1, 1, 0.75, 0.25, 0))
    assert len(merged([(1, 2, 3)], [(1, 2, 3)], budget=2)) == 2


def test_a_repetition_goes_on_past_the_end_of_the_text() -> None:
    draft = PromptLookupDrafter([4, 5, 4, 5, 4, 5], PromptLookup(depth=5, candidates=1)).propose(10)
    assert draft.tokens == (4, 5, 4, 5, 4)


def test_nothing_is_drafted_without_a_match_or_room() -> None:
    assert not len(PromptLookupDrafter([1, 2, 3, 4], PromptLookup()).propose(9))
    assert not len(PromptLookupDrafter([1, 2, 1, 2], PromptLookup()).propose(0))
    assert len(PromptLookupDrafter([1, 2, 1, 2], PromptLookup()).propose(1)) == 1


def test_the_index_grown_token_by_token_equals_a_scan() -> None:
    rng, ids = random.Random(0), []
    seen = Occurrences(ids, range(1, 4))
    for _ in range(200):
        ids += [rng.randrange(4) for _ in range(rng.randrange(1, 4))]
        seen.update()
        for size in (1, 2, 3):
            end = ids[-size:]
            scan = [i for i in range(size, len(ids)) if ids[i - size : i] == end]
            assert list(seen.of_end(size)) == scan[::-1][:32]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="at most the longest match"):
        PromptLookup(longest=2, shortest=3)
    with pytest.raises(ValueError, match="Candidates must be"):
        PromptLookup(candidates=0)


# ---- the output stays what it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_equals_generate(family: str) -> None:
    anatomy, _ = tiny.model_with_adapter(family)
    drafted = 0
    for seed, temperature in enumerate((0.0, 0.7, 1.3)):
        penalty = 1.2 if seed == 1 else 1.0
        sampling = Sampling(max_new_tokens=32, temperature=temperature, seed=seed, repetition_penalty=penalty)
        want = tiny.generate_ids(anatomy.model, COPIED, sampling)
        steps = tiny.finish(lookup_run(anatomy, COPIED, sampling))
        assert tiny.ids_of(steps) == want
        drafted += sum(len(s.draft) for s in steps)
    assert drafted > 30


class Copier:
    """A target that continues a script whatever comes before: prompt lookup accepts long paths of it."""

    context, stream_rows, pruned = 500, 0, frozenset()

    def __init__(self, script: list[int]) -> None:
        self._script = script

    def _logits(self, ids: list[int]):
        return torch.nn.functional.one_hot(torch.tensor(self._script[len(ids)]), tiny.VOCAB).float() * 9

    def prefill(self, ids, should_stop=None):
        self._kept = list(ids)
        return self._logits(self._kept)[None]

    def verify(self, root, draft):
        self._paths = [[root]]
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            self._paths.append([*self._paths[parent + 1], token])
        return torch.stack([self._logits(self._kept + p) for p in self._paths])

    def keep(self, rows) -> None:
        self._kept += self._paths[rows[-1]]

    def synchronize(self) -> None: ...
    def release(self) -> None: ...


def copier_run(limit: int = 40, stop=(), eos=()):
    script = tiny.prompt(10) * 8
    ids = script[:14]
    run = tiny.new_run(Copier(script), None, ids, Sampling(max_new_tokens=limit, stop=stop), eos)
    run.drafter = PromptLookupDrafter(run.ids, EAGER)
    return run, script[14:]


def test_copied_text_is_accepted_in_long_paths() -> None:
    run, want = copier_run()
    steps = tiny.finish(run)
    assert tiny.ids_of(steps) == want[:40]
    assert max(len(s.tokens) for s in steps) == EAGER.depth + 1
    assert any(f is Fate.ACCEPTED for s in steps for f in s.draft.fate)


@pytest.mark.parametrize("at", range(1, 10))  # the script repeats after ten
def test_length_eos_and_stop_strings_cut_inside_a_path(at: int) -> None:
    run, want = copier_run(limit=at)
    assert tiny.ids_of(tiny.finish(run)) == want[:at]
    run, want = copier_run(eos=[want[at]])
    assert tiny.ids_of(tiny.finish(run)) == want[: want.index(want[at]) + 1] and run.reason is Reason.EOS
    stop = f"{want[at - 1]} {want[at]} "
    run, want = copier_run(stop=(stop,))
    steps = tiny.finish(run)
    text = "".join(t.text for s in steps for t in s.tokens)
    assert run.reason is Reason.STOP_STRING and text == "".join(f"{i} " for i in want)[: len(text)]
    assert tiny.ids_of(steps) == want[: at + 1]


def test_context_end_is_never_passed() -> None:
    anatomy, _ = tiny.model_with_adapter("opt")
    ids = (tiny.prompt(10) * 30)[: anatomy.context - 6]
    run = lookup_run(anatomy, ids, Sampling(max_new_tokens=50))
    assert len(tiny.ids_of(tiny.finish(run))) == 6 and run.reason is Reason.CONTEXT


@pytest.mark.parametrize("temperature", (0.0, 0.8))
def test_on_the_toy(temperature: float) -> None:
    engine = toy.load_toy(pace=0)
    prompt = "Facts: The Copper Kettle, The Green Lantern, The Brass Owl.\nText:"
    sampling = Sampling(max_new_tokens=120, temperature=temperature)
    ours = list(engine.generate(prompt, EAGER, sampling))
    assert token_ids(ours) == token_ids(list(engine.generate(prompt, Standard(), sampling)))
    assert ours[0].method == "prompt_lookup" and ours[0].settings["method"]["candidates"] == 4


def test_every_model_that_verifies_trees_can_look_up() -> None:
    nothing: Any = SimpleNamespace(reason=None, streams=None, heads=Heads(), pair=None)
    assert "prompt_lookup" not in _unavailable(nothing)
    nothing.reason = "can't verify trees"
    assert set(_unavailable(nothing)) == set(METHODS) - {"standard"}
