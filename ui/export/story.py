"""A run or a race as a self-contained story: a headline, lanes of text over time, and what it ran on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from specstream.data.tasks import TASKS
from specstream.events import Agreement, Lane, Step, Verdict
from specstream.params import Standard
from specstream.stats import speedup

from .. import theme
from ..html.render import STARTED, model_name
from ..jobs.comparisons import Entry
from ..state import history
from ..state.origin import Origin
from ..state.view import View

SAME = {Agreement.IDENTICAL: "same text", Agreement.TIE: "texts differ where two words were equally likely",
        Agreement.MISMATCH: "different text"}  # fmt: skip
STANDARD = "Standard decoding"

Piece = tuple[str, int]  # a token's text and its depth, 0 where the model chose it


@dataclass(frozen=True)
class Track:
    """One lane: ``passes`` are (milliseconds at its end, its tokens)."""

    label: str
    colour: str
    passes: tuple[tuple[float, tuple[Piece, ...]], ...]

    @property
    def total(self) -> float:
        return self.passes[-1][0] if self.passes else 0.0

    def facts(self, moment: float) -> str:
        """Passes and time, up to a moment in milliseconds."""
        done = sum(end <= moment for end, _ in self.passes)
        return f"{done} pass{'' if done == 1 else 'es'} · {min(moment, self.total) / 1000:.1f} s"


@dataclass(frozen=True)
class Story:
    """Standard decoding, where it was measured, is the first track. ``run`` is the id in the log, empty for none."""

    headline: str
    prompt: str
    text: str
    tracks: tuple[Track, ...]
    facts: tuple[tuple[str, str], ...]
    machine: str
    run: str = ""

    @property
    def words(self) -> str:
        """The whole as text, to paste into a message."""
        labels = ", ".join(track.label for track in self.tracks)
        facts = dict(self.facts)
        where = ", ".join(facts[name] for name in ("Model", "Processor") if name in facts)
        compared = f"Compared: {labels}" if len(self.tracks) > 1 else f"Method: {labels}"
        parts = (self.headline, compared, f"Prompt: {self.prompt}", f"Text: {self.text.strip()}", where)
        return "\n\n".join(filter(None, parts))


def of_view(view: View) -> Story | None:
    """The story of a run; None for one that wrote nothing or whose origin is unknown."""
    if view.origin is None or not view.steps:
        return None
    ours = track(view.origin.method, history.method_label(view.origin.method), view.steps, view.tail)
    plain = [track(Standard.name, STANDARD, view.plain)] if view.plain else []
    passes, needed = len(view.steps), len(view.plain) or view.stats[Lane.METHOD].tokens
    words = headline(view.speedup, view.verdict, passes, needed)
    facts = (("Method", ours.label), *about(view.origin))
    return Story(
        words, view.origin.prompt, view.text, (*plain, ours), facts, machine(view.origin), view.log_id
    )  # fmt: skip


def of_entries(entries: Sequence[Entry], origin: Origin) -> Story | None:
    """The story of a race; its headline is that of the fastest method."""
    if not entries:
        return None
    first, *others = entries
    best = min(others or [first], key=lambda entry: entry.stats.seconds)
    ratio = speedup(first.stats, best.stats) if others else None
    words = headline(ratio, best.verdict, len(best.steps), len(first.steps))
    tracks = tuple(
        track(entry.method, entry.label, entry.steps, entry.tail, theme.lane(place))
        for place, entry in enumerate(entries)
    )
    text = "".join(token.text for step in best.steps for token in step.tokens) + best.tail
    named = f"{best.label}: {words}" if others else words
    return Story(named, origin.prompt, text, tracks, tuple(about(origin)), machine(origin))


def track(method: str, label: str, steps: Iterable[Step], tail: str = "", colour: str = "") -> Track:
    """The lane of a run. ``tail`` is text after that of the last token."""
    steps = list(steps)
    ends = accumulate(1000 * step.total_seconds for step in steps)
    tokens = [[(token.text, token.depth) for token in step.tokens] for step in steps]
    if tail and tokens and tokens[-1]:
        text, depth = tokens[-1][-1]
        tokens[-1][-1] = text + tail, depth
    passes = tuple((end, tuple(new)) for end, new in zip(ends, tokens, strict=True))
    return Track(label, colour or theme.STRONG[0 if method == Standard.name else 1], passes)


def headline(ratio: float | None, verdict: Verdict | None, passes: int, needed: int) -> str:
    """How much faster, whether the text is the same, and in how many passes."""
    same = SAME.get(verdict.agreement, "") if verdict else ""
    said = history.pace(ratio) if ratio else ""
    counted = f"{passes:,} pass{'' if passes == 1 else 'es'}" + (f" instead of {needed:,}" if needed != passes else "")
    return " · ".join(filter(None, (said[:1].upper() + said[1:], same, counted)))


def about(origin: Origin) -> Iterator[tuple[str, str]]:
    """The model, machine and settings, as names and texts."""
    adapter = "no adapter" if origin.adapter in ("", "none") else f"adapter {model_name(origin.adapter)}"
    yield "Task", TASKS[origin.task].label if origin.task in TASKS else "none: the prompt as it is"
    yield "Model", f"{model_name(origin.model)}, {adapter}, {origin.dtype} on {origin.device}"
    if origin.processor:
        yield "Processor", origin.processor
    yield "Settings", history.changed(origin.settings, origin.method) or "default settings"
    if origin.when:
        yield STARTED, origin.when


def machine(origin: Origin) -> str:
    """One line about the model and machine."""
    return ", ".join(filter(None, (model_name(origin.model), origin.dtype, origin.processor or origin.device)))
