"""A session: a method, then standard decoding of the same prompt, and the comparison of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from specstream.decoding.sampling import Picker
from specstream.divergence import difference
from specstream.engine import Engine
from specstream.events import Agreement, Event, Finished, Lane, Reason, Started, Step, Verdict
from specstream.params import Method, Sampling, Standard, method
from specstream.stats import counted, speedup, summarize

Item = tuple[Lane, Event] | Verdict
SAMPLED = "Sampled drafts give a text of the same distribution, but not the same text: there are no tokens to compare."


def run_session(
    engine: Engine,
    prompt: str,
    method: Method,
    sampling: Sampling,
    baseline: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Item]:
    """Events of the method, then of standard decoding when ``baseline``; the last item is the Verdict."""
    engine.refresh()
    lanes: dict[Lane, list[Event]] = {}
    for lane, params in ((Lane.METHOD, method), (Lane.BASELINE, Standard())):
        if lane is Lane.BASELINE and (not baseline or should_stop()):
            continue
        lanes[lane] = []
        # If the session is closed early, close it now and not when its frame is freed.
        with closing(engine.generate(prompt, params, sampling, should_stop)) as events:
            for event in events:
                lanes[lane].append(event)
                yield lane, event
    yield verdict(engine, prompt, sampling, lanes[Lane.METHOD], lanes.get(Lane.BASELINE))


def token_ids(events: list[Event]) -> list[int]:
    """The emitted token ids of a run."""
    return [t.id for e in events if isinstance(e, Step) for t in e.tokens]


def text_of(events: list[Event]) -> str:
    """The text of a run."""
    parts = ["".join(t.text for t in e.tokens) if isinstance(e, Step) else "" for e in events]
    return "".join(parts) + "".join(e.tail for e in events if isinstance(e, Finished))


def verdict(
    engine: Engine, prompt: str, sampling: Sampling, ours: list[Event], standard: list[Event] | None
) -> Verdict:
    """Compare a run with standard decoding, token for token, and explain a difference."""
    if standard is None and _is_standard(ours):
        return Verdict(Agreement.UNKNOWN, 0, "This is standard decoding, which the other methods are compared with.")
    if standard is None:
        return Verdict(Agreement.UNKNOWN, 0, "Standard decoding was not run, so there is nothing to compare with.")
    a, b = token_ids(ours), token_ids(standard)
    shorter = min(len(a), len(b))
    if _stopped(ours) or _stopped(standard):
        a, b = a[:shorter], b[:shorter]
        if a == b:
            return Verdict(
                Agreement.UNKNOWN,
                shorter,
                f"Stopped early: identical as far as both runs got ({counted(shorter, 'token')}).",
            )
    ratio = speedup(summarize(standard), summarize(ours))
    if a != b and not _exact(ours, sampling):
        return Verdict(Agreement.UNKNOWN, 0, SAMPLED, speedup=ratio)
    if a == b:
        return Verdict(
            Agreement.IDENTICAL,
            len(a),
            f"Identical to standard decoding, token for token ({counted(len(a), 'token')}).",
            speedup=ratio,
        )
    return difference(engine, engine.encode(prompt), ours, a, b, Picker(sampling), ratio)


def _exact(events: list[Event], sampling: Sampling) -> bool:
    """Whether a run must give the tokens of standard decoding; true for other libraries' methods, which have no
    settings here."""
    started = (e for e in events if isinstance(e, Started) and "method" in e.settings)
    return all(method(e.method, **e.settings["method"]).exact(sampling) for e in started)


def _is_standard(events: list[Event]) -> bool:
    return any(isinstance(event, Started) and event.method == Standard.name for event in events)


def _stopped(events: list[Event]) -> bool:
    return not events or not isinstance(last := events[-1], Finished) or last.reason is Reason.STOPPED
