"""N-gram copies beside streams and heads: what a tree then holds, how far copies are trusted, the text as it was."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specstream import tree
from specstream.decoding.drafters.copies import CONTRADICTED, DEEPEST, LONGEST, MATCHED, RATE, UNKNOWN, Copies
from specstream.decoding.drafters.medusa import MedusaDrafter
from specstream.decoding.drafters.streaming import StreamingDrafter
from specstream.events import Draft, Fate, from_dict, to_dict
from specstream.model.introspection import dissect
from specstream.params import Medusa, Sampling, Streaming
from specstream.stats import RunStats, summarize
from specstream.testing import toy
from specstream.tree import Levels
from tests import tiny
from tests.test_heads import medusa_run, random_heads

TEXT = [1, 2, 3, 4, 9, 1, 2]  # 1 2 was followed by 3 4


def share(match: int, contradicted: float = 0.0) -> float:
    """What a copy gets that has not been right or wrong yet."""
    return 1 / (1 + math.exp(CONTRADICTED * contradicted - MATCHED * match))


def level(copies: Copies, path: tuple[int, ...], drafted: list[tuple[int, float]]) -> dict[int, float]:
    return dict(copies.beside(Levels([drafted] * 3), 9).after(path))


# ---- what a tree holds -----------------------------------------------------------------------------------------------


def test_a_copied_token_is_a_candidate_beside_the_drafted_ones() -> None:
    copied = share(2, 0.3)
    found = level(Copies(TEXT), (), [(7, 0.3), (8, 0.1)])
    assert found == pytest.approx({3: copied, 7: (1 - copied) * 0.3, 8: (1 - copied) * 0.1})


def test_a_token_that_both_draft_is_one_node_with_the_probability_of_both() -> None:
    copied = share(2, 0.1)
    found = level(Copies(TEXT), (), [(3, 0.6), (8, 0.1)])
    assert found == pytest.approx({3: copied + (1 - copied) * 0.6, 8: (1 - copied) * 0.1})
    draft = tree.best_first(Copies(TEXT).beside(Levels([[(3, 0.6), (8, 0.1)]]), 1), 9)
    assert draft.tokens == (3, 8)


def test_candidates_are_sorted_and_never_above_one_together() -> None:
    rng = random.Random(1)
    for _ in range(200):
        text = [rng.randrange(4) for _ in range(rng.randrange(2, 30))]
        weights = sorted((rng.random() for _ in range(3)), reverse=True)
        drafted = [(token, w / sum(weights)) for token, w in zip(rng.sample(range(6), 3), weights, strict=True)]
        found = Copies(text).beside(Levels([drafted]), 1).after(())
        probs = [prob for _, prob in found]
        assert probs == sorted(probs, reverse=True) and sum(probs) <= 1 + 1e-9
        assert len({token for token, _ in found}) == len(found)


def test_a_copy_goes_on_deeper_than_what_is_drafted_and_past_the_end_of_the_text() -> None:
    found = Copies([5, 6] * 8).beside(Levels(()), 99)
    assert len(found) == DEEPEST
    draft = tree.best_first(found, DEEPEST)
    assert draft.tokens == (5, 6) * (DEEPEST // 2) and draft.parents == tuple(range(-1, DEEPEST - 1))
    assert draft.probs == pytest.approx([share(LONGEST, UNKNOWN)] * DEEPEST)


def test_a_drafted_path_leads_to_a_copy_too() -> None:
    """The text does not end in 1 2, but with a drafted 1 2 after it, it does."""
    found = Copies([1, 2, 3, 4, 9, 8]).beside(Levels([[(1, 0.9)], [(2, 0.9)], [(7, 0.9)]]), 5)
    assert dict(found.after(()))[1] == 0.9 and 3 in dict(found.after((1, 2)))


def test_the_longest_match_and_its_newest_occurrence_count() -> None:
    text = [1, 2, 7, 5, 2, 8, 1, 2, 6, 5, 2]  # 5 2 was followed by 8; 2 also by 7 and, last, by 6
    assert set(level(Copies(text), (), [])) == {8}
    assert set(level(Copies([*text[:-2], 4, 2]), (), [])) == {6}


def test_nothing_is_copied_where_nothing_occurred_before() -> None:
    assert level(Copies([1, 2, 3, 4]), (), [(7, 0.8)]) == {7: 0.8}
    assert level(Copies([1]), (), []) == level(Copies([]), (), []) == {}


# ---- how far copies are trusted --------------------------------------------------------------------------------------


def committed(copies: Copies, ids: list[int], tokens: list[int], drafted: list[tuple[int, float]]) -> None:
    """A step: a tree is grown, then tokens are committed."""
    tree.best_first(copies.beside(Levels([drafted] * 3), 9), 64)
    ids += tokens
    copies.observe()


def test_a_longer_match_is_trusted_more_and_a_contradicted_one_less() -> None:
    trust = [[share(match, other) for match in range(1, LONGEST + 1)] for other in (0, 0.3, 0.6, 0.9)]
    for match, ids in ((2, TEXT), (1, [2, 3, 9, 2]), (3, [1, 2, 3, 4, 1, 2, 3])):
        for row, other in zip(trust, (0, 0.3, 0.6, 0.9), strict=True):
            found = level(Copies(ids), (), [(8, other)] if other else [])
            assert found.pop(8, 0) == pytest.approx((1 - row[match - 1]) * other)
            assert list(found.values()) == pytest.approx([row[match - 1]])


def test_trust_follows_hits_and_misses() -> None:
    ids = list(TEXT)
    copies = Copies(ids)
    trusted = [level(copies, (), [])[3]]
    for count in range(1, 5):
        committed(copies, ids, [3], [])
        ids += [50 + count, 1, 2]
        trusted.append(level(copies, (), [])[3])
    assert trusted == sorted(trusted) and trusted[-1] < 1
    for count in range(1, 9):
        committed(copies, ids, [60 + count], [])  # another token each time
        ids += [70 + count, 1, 2]
        trusted.append(level(copies, (), [])[60 + count])
    assert trusted[4:] == sorted(trusted[4:], reverse=True) and 0 < trusted[-1] < 0.5 < trusted[0]


def test_what_is_learned_is_the_gradient_of_the_likelihood() -> None:
    for drafted, token in (([(3, 0.4), (8, 0.2)], 3), ([(8, 0.2)], 3), ([(3, 0.4), (8, 0.2)], 8)):
        ids = list(TEXT)
        copies = Copies(ids)

        def likelihood(shift: float, drafted=drafted, token=token) -> float:
            other = Copies(TEXT)
            other._learned = shift
            return math.log(level(other, (), drafted)[token])

        committed(copies, ids, [token], drafted)
        slope = (likelihood(1e-5) - likelihood(-1e-5)) / 2e-5
        assert copies._learned == pytest.approx(RATE * slope, rel=1e-4)


def test_tokens_that_no_tree_offered_teach_nothing() -> None:
    ids = list(TEXT)
    copies = Copies(ids)
    copies.observe()
    ids += [7, 7, 7]
    copies.observe()
    assert copies._learned == 0


def test_a_node_is_a_copy_if_more_of_its_probability_comes_from_there() -> None:
    copies = Copies(TEXT)
    for drafted, copied in (([(3, 0.2)], True), ([(3, 0.3), (7, 0.6)], False), ([(7, 0.05)], True)):
        copies.beside(Levels([drafted]), 1).after(())
        assert copies.is_copy((3,)) is copied and not copies.is_copy((7,))


# ---- beside streams and heads ----------------------------------------------------------------------------------------


class Guessing:
    """Streams, or heads, that always guess the token 7; they count their calls."""

    gamma = medusa_depth = 2
    stream_ids = stream_pairs = medusa_ids = None
    asked = 0

    def synchronize(self) -> None: ...

    def stream_logits(self, row: int) -> Tensor:
        self.asked += 1
        return torch.eye(9)[[7, 7]] * 50

    medusa_logits = stream_logits


@pytest.mark.parametrize(("drafter", "params"), [(StreamingDrafter, Streaming()), (MedusaDrafter, Medusa())])
def test_both_kinds_of_nodes_are_in_one_tree_and_say_where_they_come_from(drafter, params) -> None:
    source, ids = Guessing(), [1, 2, 3, 4, 5, 6, 1, 2]
    draft = drafter(source, replace(params, budget=6, pause=0), ids).propose(10)
    kinds = dict(zip(tree.paths(draft), draft.copied, strict=True))
    assert kinds[(3,)] and kinds[(3, 4)] and not kinds[(7,)] and not kinds[(7, 7)]
    alone = drafter(source, replace(params, budget=6, pause=0, copies="off"), ids).propose(10)
    assert alone.copied == () and alone.tokens[:2] == (7, 7) and source.asked == 2


def test_a_depth_that_is_set_holds_for_copies_and_a_full_tree_has_none() -> None:
    ids = [1, 2, 3, 4, 5, 6, 1, 2]
    for params, deepest in ((Streaming(depth=1, budget=9), 1), (Streaming(budget=9), 4)):
        assert max(StreamingDrafter(Guessing(), params, ids).propose(4).depths()) == deepest
    assert StreamingDrafter(Guessing(), Streaming(tree="full", width=2), ids).propose(9).copied == ()


def test_in_a_pause_copies_alone_are_drafted_without_a_pass() -> None:
    source, ids = Guessing(), [0]
    drafter = StreamingDrafter(source, Streaming(pause=17, budget=4), ids)
    for token in (1, 2, 3, 4):  # never what is drafted, until the mean of tokens per step is below 17
        assert drafter.propose(9).tokens[0] == 7
        ids.append(token)
        drafter.observe(0)
    assert len(drafter.propose(9)) == 0
    ids.append(1)
    drafter.observe(0)
    draft = drafter.propose(9)
    assert draft.tokens == (2, 3, 4, 1) and all(draft.copied) and source.asked == 4


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_heads_with_copies_write_the_text_of_generate(family: str, temperature: float) -> None:
    anatomy = dissect(tiny.tiny(family))
    beside = random_heads(anatomy)
    ids, sampling = tiny.prompt(7) * 3, Sampling(max_new_tokens=24, temperature=temperature, seed=2)
    want = tiny.generate_ids(anatomy.model, ids, sampling)
    steps = tiny.finish(medusa_run(anatomy, beside, ids, sampling, Medusa(budget=9)))
    assert tiny.ids_of(steps) == want and any(any(step.draft.copied) for step in steps)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_run_can_be_repeated_node_by_node_and_knows_nothing_of_others(temperature: float) -> None:
    """Nothing is learned beyond a run, so the same run drafts the same trees after another has ended."""
    engine, sampling = toy.load_toy(pace=0), Sampling(max_new_tokens=60, temperature=temperature)
    prompt = "Text: The Mill is a pub. The Mill"

    def drafts() -> list[Draft]:
        return [replace(e.draft, target_probs=()) for e in engine.generate(prompt, Streaming(), sampling) if is_step(e)]

    first = drafts()
    list(engine.generate("Text: In the city centre. In the", Streaming(), sampling))
    assert drafts() == first and any(any(draft.copied) for draft in first)


def is_step(event: object) -> bool:
    return hasattr(event, "draft")


def test_copied_nodes_survive_json_and_are_in_no_calibration() -> None:
    engine = toy.load_toy(pace=0)
    events = list(engine.generate("Text: The Mill is a pub. The Mill", Streaming(), Sampling(max_new_tokens=40)))
    assert [from_dict(to_dict(event)) for event in events] == events
    compared = [
        copy
        for event in events
        if is_step(event)
        for copy, fate in zip(event.draft.copied, event.draft.fate, strict=True)
        if fate in (Fate.ACCEPTED, Fate.REJECTED)
    ]
    stats: RunStats = summarize(events)
    assert any(compared) and sum(stats.compared_tenth.values()) == compared.count(False)
