"""Two logged runs side by side: request, settings, result, and where the texts diverge. No gradio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from os.path import commonprefix
from typing import Any

from specstream.events import Finished, Lane, Step
from specstream.runlog import RunLog
from specstream.stats import RunStats, summarize

from ..html.render import NOTHING, STARTED, number, when
from . import history

Row = tuple[str, str, str]  # name, value of the first run, value of the second


@dataclass(frozen=True)
class Side:
    """One of the two runs: its row of the log, its numbers, and the text of every token."""

    run: Mapping[str, Any]
    stats: RunStats
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def token_at(self, character: int) -> int:
        """The number of the token, from 1, that contains this character of the text; at the end, one more than all."""
        return sum(end <= character for end in accumulate(map(len, self.texts))) + 1


def side(runlog: RunLog, run: str, visitor: str | None = None) -> Side:
    """Read a run. Raises RunLogError if the visitor has no such run."""
    found = runlog.run(run, visitor)
    events = runlog.events(found["id"], Lane.METHOD, visitor)
    texts = [token.text for event in events if isinstance(event, Step) for token in event.tokens]
    texts += [event.tail for event in events if isinstance(event, Finished) and event.tail]
    return Side(found, summarize(events), tuple(texts))


def rows(one: Side, other: Side) -> Iterator[Row]:
    """The compared facts, as texts, including the settings that differ; see ``alike`` for the rest."""
    yield from zip(NAMES, _values(one), _values(other), strict=True)
    for name, left, right in _settings(one, other):
        if left != right:
            yield name, left, right


def alike(one: Side, other: Side) -> str:
    """The settings that both runs have in common and that are not the defaults, in one line."""
    sides = [history.changed(side.run["settings"], side.run["method"]).split(", ") for side in (one, other)]
    return ", ".join(words for words in sides[0] if words and words in sides[1]) or "the defaults"


def _settings(one: Side, other: Side) -> Iterator[Row]:
    left, right = history.flat(one.run["settings"]), history.flat(other.run["settings"])
    for name in dict.fromkeys([*left, *right]):
        label = history.label(name, (one if name in left else other).run["method"])
        one_says, other_says = (history.said(side[name]) if name in side else NOTHING for side in (left, right))
        yield label, one_says, other_says


NAMES = (
    STARTED, "Prompt", "Task", "Method", "Model", "Tokens", "Steps", "Tokens per step", "Tokens per second",
    "Rows per token", "Seconds", "Speed-up", "Against standard decoding",
)  # fmt: skip


def _values(side: Side) -> Iterator[str]:
    run, stats = side.run, side.stats
    yield run["started_utc"]
    yield run["prompt"]
    yield history.task(run)
    yield history.method_label(run["method"])
    yield history.model_words(run)
    yield str(stats.tokens)
    yield str(stats.steps)
    yield number(stats.tokens_per_step, 2)
    yield number(stats.tokens_per_second)
    yield number(stats.rows_per_token)
    yield number(stats.seconds, 2)
    yield number(run["speedup"], 1, "×")
    yield history.outcome(run)


def compared(one: Side, other: Side) -> str:
    """The whole comparison as HTML. Rows that differ have a sign, not only a colour."""
    head = "".join(f'<th scope="col">{name}<br>{escape(s.run["id"])}</th>' for name, s in _named(one, other))
    body = "".join(_row(*row) for row in rows(one, other))
    return (
        '<section class="ss-pair" aria-label="Two runs compared"><h2 class="ss-heading">Two runs compared</h2>'
        f'<table class="ss-grid"><thead><tr><th scope="col">≠ differs</th>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table><p class="ss-words">Settings of both: {escape(alike(one, other))}.</p>'
        f"{_texts(one, other)}</section>"
    )


def _named(one: Side, other: Side) -> Iterable[tuple[str, Side]]:
    return ("Run A", one), ("Run B", other)


def _row(name: str, left: str, right: str) -> str:
    sign = "≠ " if left != right else ""
    kind = ' class="ss-differs"' if left != right else ""
    cells = "".join(f"<td>{when(text) if name == STARTED else escape(text)}</td>" for text in (left, right))
    return f'<tr{kind}><th scope="row">{sign}{escape(name)}</th>{cells}</tr>'


def _texts(one: Side, other: Side) -> str:
    shared = len(commonprefix([one.text, other.text]))
    panes = "".join(_pane(name, s.text, shared) for name, s in _named(one, other))
    return f'<p class="ss-words">{difference(one, other)}</p><div class="ss-lanes">{panes}</div>'


def difference(one: Side, other: Side) -> str:
    """One sentence about where the texts diverge."""
    if one.text == other.text:
        return f"Both runs wrote the same text, {len(one.text):,} characters."
    shared = len(commonprefix([one.text, other.text]))
    if not shared:
        return "The texts differ from the first character on."
    places = f"token {one.token_at(shared)} of run A, token {other.token_at(shared)} of run B"
    return f"The first {shared:,} characters are the same; the texts part at {places}."


def _pane(name: str, text: str, shared: int) -> str:
    rest = text[shared:]
    marked = f'<mark class="ss-part">≠{escape(rest)}</mark>' if rest else ""
    return (
        f'<div class="ss-lane"><h3>{name}</h3><div class="ss-text" role="region" tabindex="0" '
        f'aria-label="Text of the {name.lower()}">{escape(text[:shared])}{marked}</div></div>'
    )
