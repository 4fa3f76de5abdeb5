"""Why a run differs from standard decoding: a numerical tie, or a real mismatch."""

from __future__ import annotations

from torch import Tensor

from specstream.decoding.sampling import Picker
from specstream.decoding.verify import walk
from specstream.engine import Engine
from specstream.events import Agreement, Draft, Event, Started, Step, Verdict
from specstream.model.memory import out_of_memory
from specstream.params import Method, Standard, method


def difference(
    engine: Engine,
    prompt: list[int],
    ours: list[Event],
    a: list[int],
    b: list[int],
    picker: Picker,
    speedup: float | None,
) -> Verdict:
    """The verdict when the token ids ``a`` of a run differ from ``b`` of standard decoding.

    It is a tie if changing the two candidates' logits by twice the rounding error would make standard decoding choose
    the run's token, and repeating the step in float32 does not contradict that. The rounding error is the largest
    change of the two logits between three ways to compute the row: in one pass, token by token, in float32.
    """
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if at == min(len(a), len(b)):  # one run ended where the other continued
        return Verdict(
            Agreement.MISMATCH, at, f"The runs end differently after token {at}: a real mismatch.", at, None, speedup
        )
    prefix, pair = prompt + a[:at], (a[at], b[at])
    with engine.lock:
        rows = [row_logits(engine, prefix, stepwise) for stepwise in (True, False)]
        checked, same = _in_float32(engine, prompt, ours, a, at, picker, rows)
    error = max(float((rows[0] - row)[list(pair)].abs().max()) for row in rows)
    scores = picker.scores(rows[0], prefix)
    margin = abs(float(scores[pair[1]] - scores[pair[0]]))  # recomputed, either of the two may lead
    tie = same and any(_within(row, pair, error, picker, prefix) for row in rows)
    words = "a numerical tie" if tie else "a real mismatch: please report it"
    message = f"First difference at token {at + 1}: margin {margin:.3g}, rounding {error:.2g}{checked}, so {words}."
    return Verdict(Agreement.TIE if tie else Agreement.MISMATCH, at, message, at, margin, speedup)


def _within(logits: Tensor, pair: tuple[int, int], error: float, picker: Picker, prefix: list[int]) -> bool:
    """Whether a change by twice the rounding error makes standard decoding choose the method's token, ``pair[0]``."""
    nudged = logits.clone()
    nudged[pair[0]] += 2 * error
    nudged[pair[1]] -= 2 * error
    return picker.pick(nudged, prefix) == pair[0]


def _in_float32(
    engine: Engine, prompt: list[int], ours: list[Event], a: list[int], at: int, picker: Picker, rows: list[Tensor]
) -> tuple[str, bool]:
    """Add the float32 row to ``rows`` and repeat the step in float32. Returns words for the message, and whether the
    repeated step agrees with standard decoding."""
    try:
        with engine.float32() as changed:
            if not changed:
                return "", True
            rows.append(row_logits(engine, prompt + a[:at], False))
            return ", checked in float32", _step_agrees(engine, prompt, ours, a, at, picker)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return " (no memory to check it in float32)", True


def _step_agrees(engine: Engine, prompt: list[int], ours: list[Event], a: list[int], at: int, picker: Picker) -> bool:
    """Repeat the step at which the runs diverged, and decode the same tokens one by one: do both choose alike?"""
    start = 0
    for step in (e for e in ours if isinstance(e, Step)):
        if start + len(step.tokens) > at:
            break
        start += len(step.tokens)
    if not start:
        return True  # the prompt pass has no tree
    prefix = prompt + a[:start]
    target = engine.make_target(_method(ours))
    try:
        target.prefill(prefix[:-1])
        picks = [p.token for p in walk(target.verify(prefix[-1], step.draft), step.draft, picker, prefix)]
    finally:
        target.release()
    return all(
        picker.pick(row_logits(engine, prefix + picks[:i], True), prefix + picks[:i]) == token
        for i, token in enumerate(picks)
    )


def _method(events: list[Event]) -> Method:
    """The method of a run with its settings in force; Standard for another library's, which has no settings here."""
    for event in events:
        if isinstance(event, Started) and "method" in event.settings:
            return method(event.method, **event.settings["method"])
    return Standard()


def row_logits(engine: Engine, prefix: list[int], stepwise: bool) -> Tensor:
    """Logits ``[vocab]`` after ``prefix``, computed in one pass or, if ``stepwise``, with its last token separately."""
    target = engine.make_target(Standard())
    try:
        if not stepwise or len(prefix) < 2:
            return target.prefill(prefix)[-1].cpu()
        target.prefill(prefix[:-1])
        return target.verify(prefix[-1], Draft())[-1].cpu()
    finally:
        target.release()
