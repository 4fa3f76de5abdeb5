"""Measured runs side by side: the data of the race on the page, the table, and a drawing. Pure, no gradio.

The race reads ``{run, done, lanes: [...]}`` as JSON text. A lane is ``{label, colour, state, at, steps}``: ``state``
is waiting, measured (now) or over, a step is ``[milliseconds at its end, [[text, depth], ...]]``, and ``at`` how many
came with messages before. When all is ``done``, a lane has all its steps and ``{total, count, tone, words, differs,
place}``: ``total`` the milliseconds of all steps, ``count`` their tokens, ``differs`` the index of the first token that
standard decoding has not, or null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate, count
from pathlib import Path
from typing import Any

from specstream.events import Agreement
from specstream.stats import counted, speedup

from ... import theme
from ...html.headline import Headline
from ...html.render import NOTHING, WORDS, number
from ...jobs.comparisons import Entry, Lap
from ...state.feed import encode
from ...state.headline import difference

HERE = Path(__file__).parent
_runs = count(1)
HEADERS = ("Method", "Tokens", "Passes", "Seconds", "Tokens/s", "Tokens/step", "Rows/token", "Speed-up", "Text", "Run")
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 260, 44, 30  # of the drawing
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def text(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def message(entries: Sequence[Entry]) -> str:
    """The data of the race when everything has been measured."""
    ranking = sorted(entries, key=lambda entry: entry.stats.seconds)
    lanes = [_lane(entry, number, ranking.index(entry)) for number, entry in enumerate(entries)]
    return encode({"done": True, "lanes": lanes})


@dataclass
class Live:
    """The lanes while they are measured, one after the other: a fold over the laps of a contest."""

    labels: Sequence[str]
    run: int = field(default_factory=lambda: next(_runs))
    steps: list[list[list[Any]]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def add(self, lap: Lap) -> None:
        """Fold one lap in. A lane that is over does not change any more."""
        while len(self.steps) < lap.number:
            self.steps.append([])
        if lap.step:
            lane = self.steps[lap.number - 1]
            end = (lane[-1][0] if lane else 0) + round(1000 * lap.step.total_seconds, 3)
            lane.append([end, [[token.text, token.depth] for token in lap.step.tokens]])

    def message(self) -> str:
        """The changes since the last message."""
        states = ["over"] * (len(self.steps) - 1) + ["measured"] * bool(self.steps)
        states += ["waiting"] * (len(self.labels) - len(states))
        known = self.steps + [[]] * (len(self.labels) - len(self.steps))
        before = self.sent + [0] * (len(known) - len(self.sent))
        self.sent = [len(steps) for steps in known]
        lanes = [
            {"label": label, "colour": place, "state": state, "at": at, "steps": steps[at:]}
            for place, (label, state, steps, at) in enumerate(zip(self.labels, states, known, before, strict=True))
        ]
        return encode({"run": self.run, "done": False, "lanes": lanes})


def _lane(entry: Entry, place: int, rank: int) -> dict[str, Any]:
    ends = list(accumulate(1000 * step.total_seconds for step in entry.steps))
    tokens = [[[token.text, token.depth] for token in step.tokens] for step in entry.steps]
    if tokens and tokens[-1]:
        tokens[-1][-1][0] = str(tokens[-1][-1][0]) + entry.tail
    steps = [[round(end, 3), new] for end, new in zip(ends, tokens, strict=True)]
    tone, words = outcome(entry)
    differs = entry.verdict.position if entry.verdict else None
    about = {
        "label": entry.label,
        "colour": place,
        "place": ORDINALS[rank] if rank < len(ORDINALS) else f"{rank + 1}th",
    }
    written = sum(len(step.tokens) for step in entry.steps)
    total = round(ends[-1], 3) if ends else 0
    return about | {"steps": steps, "total": total, "count": written, "tone": tone, "words": words, "differs": differs}


def outcome(entry: Entry) -> tuple[str, str]:
    """Tone and sentence on how the text compares with that of standard decoding."""
    if entry.verdict is None:
        return "plain", "What the others are compared with."
    tone, words = WORDS[entry.verdict.agreement]
    return tone, f"{words}. {difference(entry.verdict) or entry.verdict.message}"


def table(entries: Sequence[Entry], base: str | None = "") -> str:
    """The runs as an HTML table. ``base`` is the address of the page, for links to the runs in its log; None: none."""
    head = "".join(f'<th scope="col">{name}</th>' for name in HEADERS)
    body = "".join(_row(entry, entries[0], base) for entry in entries)
    return (
        '<div class="ss-scroll" tabindex="0" role="region" aria-label="Measured runs"><table class="ss-grid">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(entry: Entry, reference: Entry, base: str | None) -> str:
    stats = entry.stats
    cells = (
        f"{stats.tokens}", f"{stats.steps + 1}", number(stats.seconds, 1), number(stats.tokens_per_second),
        number(stats.tokens_per_step), number(stats.rows_per_token), number(_speedup(entry, reference), 1, "×"),
        _agreement(entry), _link(entry.run, base),
    )  # fmt: skip
    return f'<tr><th scope="row">{escape(entry.label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _speedup(entry: Entry, reference: Entry) -> float | None:
    return 1.0 if entry is reference else speedup(reference.stats, entry.stats)


def _agreement(entry: Entry) -> str:
    if entry.verdict is None:
        return "reference"
    different = f" at token {entry.verdict.position + 1}" if entry.verdict.position is not None else ""
    return escape(WORDS[entry.verdict.agreement][1] + different)


def _link(run: str, base: str | None) -> str:
    if not run:
        return NOTHING
    if base is None:
        return escape(run[-6:])
    return f'<a href="{escape(base)}?run={escape(run)}" target="_blank" rel="noopener">{escape(run[-6:])}</a>'


def summary(entries: Sequence[Entry]) -> tuple[str, str]:
    """Tone and one sentence about the whole race."""
    said = headline(entries)
    return said.tone, f"{'; '.join([said.main, *said.parts])}."


def headline(entries: Sequence[Entry]) -> Headline:
    """The fastest, and whether the texts are the same."""
    compared = [entry.verdict for entry in entries if entry.verdict]
    same = sum(verdict.agreement is Agreement.IDENTICAL for verdict in compared)
    best = min(entries, key=lambda entry: entry.stats.seconds)
    ratio = _speedup(best, entries[0]) or 1.0
    main = f"Fastest: {best.label}" + (f", {ratio:.1f}× faster" if best is not entries[0] else "")
    if not compared:
        return Headline("good", main)
    words = "same text ✓" if same == len(compared) else f"{same} of {len(compared)} wrote the same text"
    passes = f"{best.stats.steps + 1:,} passes instead of {entries[0].stats.steps + 1:,}"
    parts = (words, passes) if best is not entries[0] else (words,)
    return Headline(
        "good" if same == len(compared) else "bad",
        main,
        parts,
        ("Compared with standard decoding, including the prompt; measured one after the other.",),
    )


def lines_svg(entries: Sequence[Entry]) -> str:
    """Tokens over time as a drawing that needs no script, for the file to share."""
    longest = max((entry.stats.seconds for entry in entries), default=0) or 1
    most = max((entry.stats.tokens for entry in entries), default=0) or 1
    across, down = (WIDTH - LEFT - 8) / longest, (HEIGHT - BOTTOM - 8) / most

    def at(seconds: float, tokens: float) -> str:
        return f"{LEFT + across * seconds:.1f},{HEIGHT - BOTTOM - down * tokens:.1f}"

    pieces = [f'<path d="M{at(0, most)} L{at(0, 0)} L{at(longest, 0)}" fill="none" stroke="var(--ss-muted)"/>']
    for place, entry in enumerate(entries):
        points = " ".join(at(x, y) for x, y in curve(entry))
        pieces.append(f'<polyline points="{points}" fill="none" stroke="{theme.lane(place)}" stroke-width="2.5"/>')
    marks = ((LEFT - 6, 16, f"{most}"), (LEFT - 6, HEIGHT - BOTTOM, "0"), (WIDTH - 8, HEIGHT - 8, f"{longest:.2f} s"))
    pieces += [f'<text x="{x}" y="{y}" text-anchor="end">{words}</text>' for x, y, words in marks]
    words = f"Tokens over time, up to {counted(most, 'token')} in {longest:.2f} seconds"
    return (
        f'<h2>Tokens over time</h2>{_keys(entries)}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{words}" class="ss-lines">{"".join(pieces)}</svg>'
    )


def _keys(entries: Sequence[Entry]) -> str:
    items = (
        f'<li><span class="ss-key" style="background:{theme.lane(place)}"></span>{escape(entry.label)}</li>'
        for place, entry in enumerate(entries)
    )
    return f'<ul class="ss-legend">{"".join(items)}</ul>'


def curve(entry: Entry) -> list[tuple[float, int]]:
    """(seconds since the start, tokens so far), a stair with one tread per pass."""
    points: list[tuple[float, int]] = [(0.0, 0)]
    for step in entry.steps:
        seconds, tokens = points[-1]
        after = seconds + step.total_seconds
        points += [(after, tokens), (after, tokens + len(step.tokens))]
    return points
