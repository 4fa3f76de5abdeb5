"""The headline of a run: how much faster it was, whether the text is the same, and in how many passes.

For a slower run it also says why, and what fixes it. Pure, no gradio.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from specstream.data.tasks import TASKS
from specstream.events import Agreement, Lane, Step, Verdict
from specstream.params import Standard
from specstream.stats import RunStats, counted, step_cost

from ..html.headline import ALIKE, NOISY, Headline, Remedy
from .view import View

DEAR = 1.3  # in standard steps: a step cost above this makes the tree the cause of a slow run
FEW = 1.5  # tokens per pass: fewer hardly pay for drafting
BUSY, FEWEST = (
    0.5,
    8,
)  # spread of the step times ((90th - 10th percentile) / median), and the fewest steps to measure it
SAME = {
    Agreement.IDENTICAL: "same text ✓",
    Agreement.TIE: "nearly the same text ≈",
    Agreement.MISMATCH: "different text ✗",
    Agreement.UNKNOWN: "",
}


@dataclass(frozen=True)
class Ratio:
    """A run's speed-up over standard decoding: with the prompt pass, and without it."""

    whole: float
    writing: float | None

    @classmethod
    def of(cls, verdict: Verdict | None, stats: dict[Lane, RunStats]) -> Ratio | None:
        """None if there is no measured baseline."""
        if verdict is None or not verdict.speedup:
            return None
        ours, standard = stats[Lane.METHOD].tokens_per_second, stats[Lane.BASELINE].tokens_per_second
        return cls(verdict.speedup, ours / standard if ours and standard else None)


def headline(view: View, again: Sequence[Ratio] = ()) -> Headline:
    """The line of a run. ``again`` are ratios of further measurements of the same run."""
    ours = view.stats[Lane.METHOD]
    first = Ratio.of(view.verdict, view.stats)
    if view.verdict is None:
        return _under_way(view, ours)
    if first is None:
        return _alone(view, ours)
    ratios, middle = [first, *again], median(view, again) or first.whole
    slower = middle < 1 - ALIKE
    cause, remedy = _cause(view) if slower else ("", None)
    differs = view.verdict.agreement is Agreement.MISMATCH
    tone = "bad" if differs else "warn" if slower or view.verdict.agreement is Agreement.TIE else "good"
    below = (cause, _measured(ratios), difference(view.verdict), NOISY if len(again) < 1 and busy(view.plain) else "")
    details = "" if view.verdict.agreement is Agreement.IDENTICAL else view.verdict.message
    parts = (SAME[view.verdict.agreement], passes(view))
    return Headline(tone, pace(middle), _said(parts), _said(below), details, remedy)


def median(view: View, again: Sequence[Ratio] = ()) -> float | None:
    """The speed-up of all measurements of a run; None if there is none."""
    first = Ratio.of(view.verdict, view.stats)
    return statistics.median(ratio.whole for ratio in (first, *again)) if first else None


def pace(ratio: float) -> str:
    """A speed-up in words, with as many digits as can be measured."""
    if abs(ratio - 1) <= ALIKE:
        return "As fast as standard decoding"
    return f"{ratio:.1f}× faster" if ratio > 1 else f"{1 / ratio:.1f}× slower than standard decoding"


def passes(view: View) -> str:
    """The model's passes, including the prompt's, and how many standard decoding needs for the same text."""
    ours, standard = view.stats[Lane.METHOD], view.stats[Lane.BASELINE]
    needed = standard.steps + 1 if standard.tokens else ours.tokens
    return f"{_passes(ours.steps + 1)} instead of {needed:,}"


def busy(steps: Sequence[Step]) -> bool:
    """Whether the times of standard decoding's steps, which should be equal, scatter."""
    times = [step.total_seconds for step in steps[1:]]
    if len(times) < FEWEST:
        return False
    deciles = statistics.quantiles(times, n=10)
    return (deciles[-1] - deciles[0]) / statistics.median(times) > BUSY


def _under_way(view: View, ours: RunStats) -> Headline:
    if not ours.tokens:
        return Headline("busy", view.words if view.words.startswith("Waiting") else "Starting")
    written = f"{counted(ours.tokens, 'token')} in {_passes(ours.steps + 1)}"
    if ours.reason is None:
        return Headline("busy", "Writing", (written,))
    return Headline("busy", "Measuring standard decoding", (written,), ("The same prompt, one token a pass.",))


def _alone(view: View, ours: RunStats) -> Headline:
    if not ours.tokens:
        return Headline("plain", "Nothing was written")
    if ours.method == Standard.name:
        words = "One token a pass: what the other methods are compared with."
        return Headline("plain", f"{counted(ours.tokens, 'token')} in {_passes(ours.steps + 1)}", (), (words,))
    found = view.verdict.message if view.verdict else ""
    return Headline("plain", f"{counted(ours.tokens, 'token')} in {_passes(ours.steps + 1)}", (), _said((found,)))


def _passes(number: int) -> str:
    return f"{number:,} pass{'' if number == 1 else 'es'}"


def _said(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(filter(None, words))


def _measured(ratios: Sequence[Ratio]) -> str:
    """What the ratio refers to, and how reliable it is."""
    writing = [ratio.writing for ratio in ratios if ratio.writing]
    beside = f"Generation alone: {statistics.median(writing):.1f}×." if writing else ""
    beside = f"Including the prompt. {beside}".rstrip()
    if len(ratios) == 1:
        return beside
    whole = [ratio.whole for ratio in ratios]
    return f"Median of {len(ratios)} measurements, {min(whole):.1f}× to {max(whole):.1f}×. {beside}"


def difference(verdict: Verdict) -> str:
    """Where and why two texts diverge, in one sentence; empty if they are the same."""
    at = f" from token {verdict.position + 1}" if verdict.position is not None else ""
    if verdict.agreement is Agreement.TIE:
        return f"The texts differ{at}: two words were equally likely."
    return f"The texts differ{at}, which must not happen: please report it." if at else ""


def _cause(view: View) -> tuple[str, Remedy | None]:
    """Why a run was slower than standard decoding, and what fixes it."""
    ours, standard = view.stats[Lane.METHOD], view.stats[Lane.BASELINE]
    cost, gain = step_cost([standard], [ours]), ours.tokens_per_step
    if not cost or not gain or cost < 1:
        return "Timings vary too much to tell why.", None
    budget = int((view.settings.get("method") or {}).get("budget", 0))
    if budget > view.nodes and cost > DEAR:
        words = f"{budget} drafted tokens a pass made each pass {cost:.1f}× as long."
        return words, Remedy("Try the default")
    if gain < FEW and view.mismatched:
        words = "Few drafted tokens were accepted: the loaded adapter was trained for another task."
        return words, Remedy("Load its adapter", loads=True)
    few = "Few drafted tokens were accepted: a" if gain < FEW else "A"
    words = f"{few} pass yielded {gain:.1f} tokens and took as long as {cost:.1f} of standard decoding."
    if gain < FEW and view.origin and view.origin.task in TASKS:  # one's own question as a list of facts, for example
        words += f" If the prompt is not for “{TASKS[view.origin.task].label}”, choose its task."
    return words, None
