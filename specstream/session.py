"""A session: a method, then standard decoding of the same prompt, and what the two have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from specstream.engine import Engine
from specstream.events import Agreement, Draft, Event, Finished, Lane, Reason, Step, Verdict
from specstream.params import Method, Sampling, Standard
from specstream.sampling import Picker
from specstream.stats import speedup, summarize

Item = tuple[Lane, Event] | Verdict


def run_session(
    engine: Engine,
    prompt: str,
    method: Method,
    sampling: Sampling,
    baseline: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Item]:
    """Events of the method, then of standard decoding when ``baseline``; the last item is the Verdict."""
    lanes: dict[Lane, list[Event]] = {}
    for lane, params in ((Lane.METHOD, method), (Lane.BASELINE, Standard())):
        if lane is Lane.BASELINE and (not baseline or should_stop()):
            continue
        lanes[lane] = []
        for event in engine.generate(prompt, params, sampling, should_stop):
            lanes[lane].append(event)
            yield lane, event
    yield verdict(engine, prompt, sampling, lanes[Lane.METHOD], lanes.get(Lane.BASELINE))


def token_ids(events: list[Event]) -> list[int]:
    """The emitted token ids of a run."""
    return [t.id for e in events if isinstance(e, Step) for t in e.tokens]


def verdict(
    engine: Engine, prompt: str, sampling: Sampling, ours: list[Event], standard: list[Event] | None
) -> Verdict:
    """Compare a run with standard decoding, token for token; a difference is looked into."""
    if standard is None:
        return Verdict(Agreement.UNKNOWN, 0, "Standard decoding was not run, so there is nothing to compare with.")
    a, b = token_ids(ours), token_ids(standard)
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if _stopped(ours) or _stopped(standard):
        if common == min(len(a), len(b)):
            return Verdict(Agreement.UNKNOWN, common, f"Stopped early; the first {common} tokens are identical.")
    elif a == b:
        ratio = speedup(summarize(standard), summarize(ours))
        return Verdict(
            Agreement.IDENTICAL, len(a), f"Identical to standard decoding, all {len(a)} tokens.", speedup=ratio
        )
    return _difference(
        engine, engine.encode(prompt) + a[:common], common, sampling, speedup(summarize(standard), summarize(ours))
    )


def _stopped(events: list[Event]) -> bool:
    return not events or not isinstance(last := events[-1], Finished) or last.reason is Reason.STOPPED


def _difference(engine: Engine, prefix: list[int], position: int, sampling: Sampling, ratio: float | None) -> Verdict:
    """Tie or mismatch: a tie when the margin between the two best scores is within twice the rounding error there.

    The rounding error is the largest change of a logit between two ways to compute the same row: in one pass and token
    by token, and, for a half-precision model, in float32.
    """
    picker = Picker(sampling)
    stepwise = row_logits(engine, prefix, stepwise=True)
    others = [row_logits(engine, prefix, stepwise=False)]
    with engine.float32():
        others.append(row_logits(engine, prefix, stepwise=False))
    error = max(float((stepwise - o).abs().max()) for o in others) / (sampling.temperature or 1.0)
    best = picker.scores(stepwise, prefix).topk(2).values
    margin = float(best[0] - best[1])
    tie = margin <= 2 * error
    words = "a numerical tie" if tie else "a real mismatch: please report it"
    message = f"First difference at token {position + 1}: top-2 margin {margin:.3g}, rounding {error:.3g}, so {words}."
    return Verdict(Agreement.TIE if tie else Agreement.MISMATCH, position, message, position, margin, ratio)


def row_logits(engine: Engine, prefix: list[int], stepwise: bool) -> Tensor:
    """Logits ``[vocab]`` after ``prefix``, computed in one pass or with its last token in a pass of its own."""
    target = engine.make_target(False)
    try:
        if not stepwise or len(prefix) < 2:
            return target.prefill(prefix)[-1].cpu()
        target.prefill(prefix[:-1])
        return target.verify(prefix[-1], Draft())[-1].cpu()
    finally:
        target.release()
