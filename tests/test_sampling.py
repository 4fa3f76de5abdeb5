"""The acceptance rule at temperatures above zero: it is exact, and the test detects wrong rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specstream.decoding import verify
from specstream.decoding.sampling import Picker, gumbel
from specstream.decoding.verify import walk
from specstream.events import Draft
from specstream.params import Sampling

VOCAB, RUNS = 8, 12_000
LIMIT = 0.02  # total variation; exact sampling of this many draws stays below, each wrong rule above


def distributions() -> tuple[Tensor, Tensor]:
    """A target distribution p and a draft distribution q that differs from it."""
    generator = torch.Generator().manual_seed(11)
    p, q = (torch.rand(2, VOCAB, generator=generator, dtype=torch.float64) * 3).softmax(-1)
    return p, q


P, Q = distributions()
Rule = Callable[[torch.Generator], int]


def distance(rule: Rule) -> float:
    """Total variation between p and the first token that a rule emits."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.bincount(torch.tensor([rule(generator) for _ in range(RUNS)]), minlength=VOCAB)
    return float((counts / RUNS - P).abs().sum() / 2)


def draw(weights: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights, 1, generator=generator))


def coin(chance: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator, dtype=torch.float64)) < chance


def ours(generator: torch.Generator) -> int:
    """The rule of ``walk`` with the three likeliest draft tokens as siblings, a new seed each time."""
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    siblings = Q.topk(3).indices.tolist()
    draft = Draft(tuple(siblings), (-1,) * 3, (0.3,) * 3)
    picker = Picker(Sampling(temperature=1.0, seed=seed))
    return next(walk(P.log().float()[None].expand(4, -1), draft, picker, [1, 2])).token


def by_the_ratio_rule(generator: torch.Generator) -> int:
    """A token drawn from q, and the rule's answer, a new seed each time."""
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    picker = Picker(Sampling(temperature=1.0, seed=seed))
    picker.drawn[2] = picker.draw(Q.log().float(), [1, 2])
    return picker.pick(P.log().float(), [1, 2])


def rejected_drawn_from_p(generator: torch.Generator) -> int:
    token = draw(Q, generator)
    return token if coin(float(P[token] / Q[token]), generator) else draw(P, generator)


def argmax_draft_with_softmax_ratio(generator: torch.Generator) -> int:
    token = int(Q.argmax())
    if coin(float(P[token] / Q[token]), generator):
        return token
    return draw((P - Q).clamp_min(0), generator)


def siblings_without_renormalising(generator: torch.Generator) -> int:
    for token in Q.topk(3).indices.tolist():
        if coin(float(P[token]), generator):
            return token
    return draw(P, generator)


def without_replacement_but_original_ratio(generator: torch.Generator) -> int:
    left, residual = Q.clone(), P.clone()
    for _ in range(3):
        token = draw(left, generator)
        if coin(float(residual[token] / Q[token]), generator):
            return token
        residual = (residual - Q).clamp_min(0)
        if residual.sum() <= 0:
            return draw(P, generator)
        residual /= residual.sum()
        left[token] = 0
    return draw(residual, generator)


def one_draw_per_leaf(generator: torch.Generator) -> int:
    for token in Q.topk(3).indices.tolist():
        if draw(P, generator) == token:
            return token
    return draw(P, generator)


def typical_acceptance(generator: torch.Generator) -> int:
    entropy = float(-(P * P.log()).sum())
    threshold = min(0.3, 0.6 * float(torch.tensor(-entropy).exp()))
    for token in Q.topk(3).indices.tolist():
        if P[token] > threshold:
            return token
    return int(P.argmax())


MUTANTS = [
    rejected_drawn_from_p,
    argmax_draft_with_softmax_ratio,
    siblings_without_renormalising,
    without_replacement_but_original_ratio,
    one_draw_per_leaf,
    typical_acceptance,
]


@pytest.mark.parametrize("rule", [ours, by_the_ratio_rule], ids=lambda r: r.__name__)
def test_our_rules_draw_from_the_target_distribution(rule: Rule) -> None:
    assert distance(rule) < LIMIT


def test_the_ratio_rule_keeps_what_p_and_q_share() -> None:
    """The share that it accepts is the sum of min(p, q)."""
    kept = 0
    for seed in range(4000):
        picker = Picker(Sampling(temperature=1.0, seed=seed))
        drawn = picker.drawn[2] = picker.draw(Q.log().float(), [1, 2])
        kept += picker.pick(P.log().float(), [1, 2]) == drawn.token
    assert kept / 4000 == pytest.approx(float(torch.minimum(P, Q).sum()), abs=0.03)


def test_the_ratio_rule_with_equal_and_with_broken_distributions() -> None:
    picker = Picker(Sampling(temperature=1.0, top_k=2))
    logits = torch.tensor([2.0, 1.0, 0.0])
    picker.drawn[1] = picker.draw(logits, [0])
    assert picker.pick(logits, [0]) == picker.drawn[1].token < 2  # q is p: nothing to reject
    assert (
        0 <= picker.pick(logits * torch.nan, [0]) < 3
    )  # the loop then reports that the model's numbers are not finite


@pytest.mark.parametrize("rule", MUTANTS, ids=lambda r: r.__name__)
def test_wrong_rules_are_caught(rule: Rule) -> None:
    assert distance(rule) > LIMIT


def test_accepted_share_is_the_siblings_probability() -> None:
    """Sample-then-match accepts as often as any exact rule with fixed candidates can."""
    generator = torch.Generator().manual_seed(4)
    siblings = set(Q.topk(3).indices.tolist())
    hits = sum(ours(generator) in siblings for _ in range(4000)) / 4000
    assert hits == pytest.approx(float(P[list(siblings)].sum()), abs=0.03)


def test_second_position_is_drawn_independently() -> None:
    """Two tokens in a row through a tree: the joint distribution is the product."""
    generator = torch.Generator().manual_seed(5)
    logits = P.log().float()[None].expand(5, -1)
    draft = Draft((0, 1, 0, 1), (-1, -1, 0, 0), (0.5,) * 4)
    joint = torch.zeros(2, 2)
    runs = 6000
    for _ in range(runs):
        picker = Picker(Sampling(temperature=1.0, seed=int(torch.randint(2**31 - 1, (), generator=generator))))
        tokens = [pick.token for pick in walk(logits, draft, picker, [1])]
        if len(tokens) > 1 and tokens[0] == 0 and tokens[1] < 2:
            joint[0, tokens[1]] += 1
    want = P[0] * P[:2]
    assert torch.allclose(joint[0].double() / runs, want, atol=0.02)


def test_noise_depends_on_seed_and_position_only() -> None:
    assert torch.equal(gumbel(1, 2, 50), gumbel(1, 2, 50))
    assert not torch.equal(gumbel(1, 2, 50), gumbel(1, 3, 50))
    assert not torch.equal(gumbel(1, 2, 50), gumbel(2, 2, 50))
    assert gumbel(0, 0, 100_000).mean().item() == pytest.approx(0.5772, abs=0.02)
    assert gumbel(0, 0, 100_000).isfinite().all()


def test_warpers_truncate_and_penalise() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    kept = Picker(Sampling(temperature=1.0, top_k=2)).scores(logits, [0]).isfinite()
    assert kept.tolist() == [True, True, False, False]
    kept = Picker(Sampling(temperature=1.0, top_p=0.5)).scores(logits, [0]).isfinite()
    assert kept.tolist() == [True, False, False, False]
    kept = Picker(Sampling(temperature=1.0, min_p=0.2)).scores(logits, [0]).isfinite()
    assert kept.tolist() == [True, True, False, False]
    assert Picker(Sampling(repetition_penalty=2.0)).pick(logits, [0]) == 1
    assert Picker(Sampling()).pick(logits, [0]) == 0


def test_no_limit_on_top_k_unless_asked() -> None:
    wide = torch.zeros(500)
    assert Picker(Sampling(temperature=1.0)).scores(wide, [0]).isfinite().all()


def test_the_greedy_walk_takes_the_first_of_the_likeliest_tokens() -> None:
    logits = torch.randn(4, 300).bfloat16().float()
    best = logits.argmax(-1).tolist()
    logits[:, -1] = logits.amax(-1)  # ties are common in bfloat16
    picks = list(walk(logits, Draft(tuple(best[:3]), (-1, 0, 1), (0.5,) * 3), Picker(Sampling()), [1]))
    assert [pick.token for pick in picks] == best == logits.argmax(-1).tolist()
    assert next(walk(logits * torch.nan, Draft(), Picker(Sampling()), [1])).token == 0  # the loop reports the error


@pytest.mark.parametrize("threads", [1, 2])
def test_a_log_probability_does_not_depend_on_the_rows_beside_it(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits = torch.randn(6, 49152, generator=torch.Generator().manual_seed(0)) * 3
        picks = [verify.Pick(row, row, row, row) for row in range(6)]
        together = verify.Scores.of(logits, picks).logprobs(range(6), range(6))
        alone = [verify.Scores.of(logits[row : row + 1], [verify.Pick(row, row, 0, 0)]) for row in range(6)]
        assert together == [s.logprobs([0], [row])[0] for row, s in enumerate(alone)]
        assert torch.allclose(torch.tensor(together), logits.log_softmax(-1)[range(6), range(6)], atol=1e-5)
    finally:
        torch.set_num_threads(before)
