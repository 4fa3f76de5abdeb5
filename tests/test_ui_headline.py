"""The headline of a run: faster, as fast or slower, why, and what fixes it."""

from __future__ import annotations

import pytest

from specstream.events import Agreement, Draft, Finished, Lane, Origin, Reason, Started, Step, Token, Verdict
from ui.html import headline as lines
from ui.state import origin
from ui.state.feed import Feed
from ui.state.headline import NOISY, Ratio, busy, headline, median
from ui.state.view import View

SAME = Agreement.IDENTICAL


def steps(*passes: tuple[int, float]) -> list[Step]:
    """One step for each (tokens, seconds)."""
    return [
        Step(i, Draft(), tuple(Token(1, "a", Origin.TARGET) for _ in range(tokens)), {"verify": seconds}, 1)
        for i, (tokens, seconds) in enumerate(passes)
    ]


def run(
    ours: list[Step], plain: list[Step], agreement: Agreement = SAME, budget: int = 5, speedup: float | None = None
) -> View:
    """A run that has ended, compared with standard decoding."""
    view = View(Feed("r"))
    view.add((Lane.METHOD, Started("streaming", 3, {"method": {"budget": budget}})))
    for lane, events in ((Lane.METHOD, ours), (Lane.BASELINE, plain)):
        for event in (*events, Finished(Reason.EOS)):
            view.add((lane, event))
    stats = view.stats
    ratio = speedup or stats[Lane.BASELINE].seconds / stats[Lane.METHOD].seconds
    at = None if agreement is SAME else 4
    view.add(Verdict(agreement, 4, "First difference at token 5: margin 0.125.", at, speedup=ratio))
    view.close()
    return view


PLAIN = steps(*[(1, 1.0)] * 13)
FAST = run(steps((1, 1.0), *[(3, 1.0)] * 4), PLAIN)


def test_a_fast_run_says_how_fast_of_what_and_in_how_many_passes() -> None:
    said = headline(FAST)
    assert (said.tone, said.main) == ("good", "2.6× faster")
    assert said.parts == ("same text ✓", "5 passes instead of 13")
    assert said.below == ("Including the prompt. Generation alone: 3.0×.",) and said.remedy is None


def test_measured_again_it_says_median_and_range() -> None:
    said = headline(FAST, [Ratio(1.6, 1.8), Ratio(3.6, 4.0)])
    assert said.main == "2.6× faster" and median(FAST, [Ratio(3.6, 4.0), Ratio(3.0, 4.0)]) == pytest.approx(3.0)
    assert said.below == ("Median of 3 measurements, 1.6× to 3.6×. Including the prompt. Generation alone: 3.0×.",)


def test_a_tree_that_is_too_large_is_named_and_mended() -> None:
    slow = run(steps((1, 1.0), *[(2, 6.0)] * 6), PLAIN, budget=64)
    said = headline(slow)
    assert said.tone == "warn" and said.main == "2.8× slower than standard decoding"
    assert said.below[0] == "64 drafted tokens a pass made each pass 6.0× as long."
    assert said.remedy and (said.remedy.label, said.remedy.loads) == ("Try the default", False)


def test_an_adapter_of_another_task_is_named_and_mended() -> None:
    slow = run(steps((1, 1.0), *[(1, 1.2)] * 12), PLAIN)
    assert headline(slow).remedy is None and "Few drafted tokens were accepted" in headline(slow).below[0]
    slow.origin = origin.Origin("How do I swim?", "e2e", "streaming", "m", "e2e", "cpu", "bfloat16")
    assert (
        headline(slow)
        .below[0]
        .endswith("If the prompt is not for “Restaurant descriptions (E2E NLG)”, choose its task.")
    )
    slow.mismatched = True
    said = headline(slow)
    assert "trained for another task" in said.below[0] and said.remedy and said.remedy.loads


def test_a_step_that_was_cheaper_than_a_standard_one_tells_nothing() -> None:
    noise = run(steps((1, 9.0), *[(1, 0.9)] * 12), PLAIN, speedup=0.66)
    assert headline(noise).below[0] == "Timings vary too much to tell why."


@pytest.mark.parametrize(
    ("agreement", "tone", "words"),
    [(Agreement.TIE, "warn", "two words were equally likely"), (Agreement.MISMATCH, "bad", "please report it")],
)
def test_texts_that_differ_say_from_where_with_the_numbers_in_the_details(
    agreement: Agreement, tone: str, words: str
) -> None:
    said = headline(run(FAST.steps, PLAIN, agreement))
    assert said.tone == tone and "The texts differ from token 5" in " ".join(said.below) and words in said.below[-1]
    html = lines.headline(said)
    assert "<details>" in html and "margin 0.125" in html and "margin" not in " ".join(said.below)


def test_times_that_scatter_are_told_until_it_is_measured_again() -> None:
    uneven = steps(*[(1, 0.5 if i % 2 else 2.0) for i in range(14)])
    assert busy(uneven) and not busy(PLAIN) and not busy(uneven[:5])
    view = run(FAST.steps, uneven)
    assert NOISY in headline(view).below and NOISY not in headline(view, [Ratio(2, 2)]).below


def test_standard_decoding_as_the_method_lacks_nothing() -> None:
    view = View(Feed("r"))
    for item in (Started("standard", 3), *steps((1, 1.0), (1, 1.0)), Finished(Reason.LENGTH)):
        view.add((Lane.METHOD, item))
    view.add(Verdict(Agreement.UNKNOWN, 0, "This is standard decoding."))
    said = headline(view)
    assert said.main == "2 tokens in 2 passes" and "not run" not in " ".join(said.below)


def test_while_it_goes_on_it_says_what_is_there() -> None:
    view = View(Feed("r"))
    assert headline(view).main == "Starting"
    view.add((Lane.METHOD, steps((1, 1.0))[0]))
    assert (headline(view).main, headline(view).parts) == ("Writing", ("1 token in 1 pass",))
    view.add((Lane.METHOD, Finished(Reason.EOS)))
    assert headline(view).main == "Measuring standard decoding"
