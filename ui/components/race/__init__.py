"""Measured runs side by side: what the race on the page reads, the table, and a file to share. Pure, no gradio.

The race reads ``{lanes: [...]}`` as JSON text. A lane is ``{label, colour, steps, total, count, tone, words, differs,
place}``: a step is ``[milliseconds at its end, [[text, depth], ...]]``, ``total`` the milliseconds of all steps,
``count`` their tokens, ``differs`` the index of the first token that standard decoding has not, or null.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from specstream.events import Agreement
from specstream.installation import data_file
from specstream.stats import counted, speedup

from ... import theme
from ...html.render import NOTHING, WORDS, facts, number
from ...jobs.comparisons import Entry
from ...state.feed import encode

HERE = Path(__file__).parent
STYLE = data_file("assets/style.css")
HEADERS = ("Method", "Tokens", "Passes", "Seconds", "Tokens/s", "Tokens/step", "Rows/token", "Speed-up", "Text", "Run")
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 260, 44, 30  # of the drawing
ORDINALS = ("first", "second", "third")


def text(name: str) -> str:
    """A file that lies beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def message(entries: Sequence[Entry]) -> str:
    """What the race reads."""
    ranking = sorted(entries, key=lambda entry: entry.stats.seconds)
    lanes = [_lane(entry, number, ranking.index(entry)) for number, entry in enumerate(entries)]
    return encode({"lanes": lanes})


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
        "place": ORDINALS[rank] if rank < len(ORDINALS) else f"place {rank + 1}",
    }
    count = sum(len(step.tokens) for step in entry.steps)
    total = round(ends[-1], 3) if ends else 0
    return about | {"steps": steps, "total": total, "count": count, "tone": tone, "words": words, "differs": differs}


def outcome(entry: Entry) -> tuple[str, str]:
    """Tone and sentence on how the text compares with that of standard decoding."""
    if entry.verdict is None:
        return "plain", "What the others are compared with."
    tone, words = WORDS[entry.verdict.agreement]
    return tone, f"{words}. {entry.verdict.message}"


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
        f"{stats.tokens}", f"{stats.steps + 1}", number(stats.seconds, 2), number(stats.tokens_per_second),
        number(stats.tokens_per_step, 2), number(stats.rows_per_token), number(_speedup(entry, reference), 2, "×"),
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
    """Tone and one sentence on the whole."""
    compared = [entry.verdict for entry in entries if entry.verdict]
    same = sum(verdict.agreement is Agreement.IDENTICAL for verdict in compared)
    best = min(entries, key=lambda entry: entry.stats.seconds)
    ratio = _speedup(best, entries[0])
    fastest = f"Fastest: {best.label}" + (
        f", {ratio:.2f}× as fast as standard decoding" if ratio and best is not entries[0] else ""
    )
    if not compared:
        return "good", f"{fastest}."
    words = f"{same} of {len(compared)} wrote the same text as standard decoding, token for token"
    return ("good" if same == len(compared) else "bad"), f"{fastest}. {words}."


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


def share(entries: Sequence[Entry], prompt: str, about: Sequence[tuple[str, str]], base: str | None) -> str:
    """A page that shows the result without a network: style, data, script and drawing are in it.

    ``base`` is the address under which whoever gets the file finds the runs, None where there is none.
    """
    tone, words = summary(entries)
    values = {
        "title": "One prompt, several decoding methods",
        "intro": escape(words),
        "facts": facts([("Prompt", prompt), *about]),
        "style": theme.variables() + STYLE.read_text(encoding="utf-8"),
        "race": text("race.html"),
        "table": table(entries, base),
        "chart": lines_svg(entries),
        "data": message(entries),
        "script": text("race.js"),
    }
    return string.Template(text("share.html")).substitute(values)
