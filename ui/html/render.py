"""Stats, verdicts and loaded models as HTML. Pure functions without gradio; every text from outside is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from zoneinfo import ZoneInfo

from specstream.events import Agreement, Draft, Lane
from specstream.info import EngineInfo
from specstream.model.memory import Need, gigabytes
from specstream.params import Standard
from specstream.stats import PHASES, RunStats, counted

from ..theme import DEEPEST, depth_class

NOTHING = "–"
PATH = re.compile(r"[/~.]|[A-Za-z]:[/\\]")  # prefixes of folder paths, with which no model name begins
LANES = {Lane.METHOD: "this run", Lane.BASELINE: "standard"}
KEYS = "Ctrl-Enter runs, Esc stops, ← and → step"

WORDS = {
    Agreement.IDENTICAL: ("good", "✓ Same text"),
    Agreement.TIE: ("warn", "≈ Nearly the same text"),
    Agreement.MISMATCH: ("bad", "✗ Different text"),
    Agreement.UNKNOWN: ("plain", "Not compared"),
}

STARTED = "Started"  # the fact of this name is a time
# Times are written in UTC, and converted to the visitor's time zone and language by the browser.
KEEP_LOCAL = """
const local = () => {
  for (const time of element.querySelectorAll("time[datetime]")) {
    const when = new Date(time.dateTime);
    if (isNaN(when) || !time.textContent.endsWith("UTC")) continue;
    time.textContent = when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
};
new MutationObserver(local).observe(element, { childList: true, characterData: true, subtree: true });
local();
"""


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A measured value for display, or a dash if nothing was measured."""
    return NOTHING if value is None else f"{value:,.{digits}f}{unit}"


def status(text: str, tone: str = "plain") -> str:
    """The status line. ``tone``: plain, busy, good, warn or bad."""
    return f'<p class="ss-status ss-{escape(tone)}" role="status">{escape(text)}</p>'


def legend(depths: int) -> str:
    """The legend of token colours, for trees of this many levels."""
    items = [_swatch(0, "chosen by the model")]
    shown = min(depths, DEEPEST)
    for depth in range(1, shown + 1):
        deeper = "+" if depth == DEEPEST and depths > DEEPEST else ""
        items.append(_swatch(depth, f"drafted {depth}{deeper} {'token' if depth == 1 else 'tokens'} ahead"))
    items.append(f'<li class="ss-keys-hint">{KEYS}</li>')
    return f'<ul class="ss-legend" aria-label="Colours of tokens">{"".join(items)}</ul>'


def _swatch(depth: int, words: str) -> str:
    return f'<li><span class="ss-tok {depth_class(depth)}">token</span> {escape(words)}</li>'


def counters(stats: RunStats, baseline: RunStats | None, speedup: float | None, times: int = 1) -> str:
    """The four numbers of a run. The speed-up is shown only when it was measured; it is the median of ``times``."""
    passes = f"{stats.steps + 1:,}" if stats.tokens else NOTHING
    instead = f"instead of {stats.tokens:,}" if stats.tokens else "standard decoding: one for each token"
    standard = baseline.tokens_per_second if baseline else None
    tiles = (
        ("Speed-up", number(speedup, 1, "×"), _speedup_words(stats, speedup, times)),
        ("Tokens per second", number(stats.tokens_per_second), _pace_words(standard, times)),
        ("Tokens per step", number(stats.tokens_per_step), "a step is one pass of the model; standard: 1"),
        ("Passes of the model", passes, instead),
    )
    return f'<dl class="ss-tiles">{"".join(_tile(*tile) for tile in tiles)}</dl>'


def _pace_words(standard: float | None, times: int) -> str:
    first = " in the first measurement" if times > 1 else ""
    return f"while writing{first}, without the prompt; standard decoding: {number(standard)}"


def _speedup_words(stats: RunStats, speedup: float | None, times: int) -> str:
    if stats.method == Standard.name:
        return "this is standard decoding, which counts as 1"
    if not speedup:
        return "measured once standard decoding has run"
    median = f", median of {times} measurements" if times > 1 else ""
    return f"wall time of standard decoding / this run, with the prompt{median}"


def tiles(rows: Iterable[tuple[str, str, str]]) -> str:
    """Numbers to read at a glance: a name, a value and a line that explains it each."""
    return f'<dl class="ss-tiles">{"".join(_tile(*row) for row in rows)}</dl>'


def _tile(label: str, value: str, words: str) -> str:
    return (
        f'<div class="ss-tile"><dt>{escape(label)}</dt><dd class="ss-value">{escape(value)}</dd>'
        f'<dd class="ss-words">{escape(words)}</dd></div>'
    )


def acceptance(stats: RunStats, levels: int) -> str:
    """Bars: at each depth, the share of steps that accepted a token, of those that compared one."""
    rates = stats.acceptance_by_depth
    count = max(levels, len(rates), 1)
    rows = (_bar(d, rates[d - 1] if d <= len(rates) else None) for d in range(1, count + 1))
    return f'<div class="ss-bars" role="group" aria-label="Acceptance by tokens ahead">{"".join(rows)}</div>'


def _bar(depth: int, rate: float | None) -> str:
    width = 0 if rate is None else round(100 * rate)
    text = NOTHING if rate is None else f"{width} %"
    return (
        f'<div class="ss-bar"><span>{depth} ahead</span><span class="ss-track">'
        f'<span class="ss-fill {depth_class(depth)}" style="width:{width}%"></span></span>'
        f'<span class="ss-num">{text}</span></div>'
    )


def phases(lanes: Mapping[Lane, RunStats]) -> str:
    """Bars: milliseconds per token in each phase, the method above standard decoding."""
    known = [(words, lanes[lane]) for lane, words in LANES.items() if lanes[lane].decode_tokens]
    if not known:
        return ""
    most = max(stats.decode_seconds / stats.decode_tokens for _, stats in known) or 1
    rows = "".join(_phase_row(words, stats, most) for words, stats in known)
    used = [phase for phase in PHASES if any(stats.phase_seconds[phase] for _, stats in known)]
    keys = "".join(f'<li><span class="ss-key ss-phase-{phase}"></span>{phase.replace("_", " ")}</li>' for phase in used)
    return f'<div class="ss-bars ss-phase-bars">{rows}<ul class="ss-keys">{keys}</ul></div>'


def _phase_row(words: str, stats: RunStats, most: float) -> str:
    per_token = {phase: stats.phase_seconds[phase] / stats.decode_tokens for phase in PHASES}
    parts = "".join(
        f'<span class="ss-fill ss-phase-{phase}" style="width:{100 * seconds / most:.1f}%"></span>'
        for phase, seconds in per_token.items()
    )
    total = 1000 * stats.decode_seconds / stats.decode_tokens
    return (
        f'<div class="ss-bar"><span>{words}</span><span class="ss-track">{parts}</span>'
        f'<span class="ss-num">{total:.0f} ms</span></div>'
    )


def model_card(info: EngineInfo, more: Iterable[tuple[str, str]] = ()) -> str:
    """What is loaded, where it runs and why, ``more`` names and values, and the methods that it can't run."""
    adapter = f"{info.adapter}, {counted(info.gamma, 'stream')}" if info.gamma else "none (no streams)"
    size = f"{_millions(info.draft_parameters)} parameters, {info.draft_bytes / 1e6:,.0f} MB"
    draft_model = [("Draft model", f"{info.draft_model}, {size}")] if info.draft_bytes else []
    rows = (
        ("Model", f"{info.model}, {_millions(info.parameters)} parameters, from {info.source}"),
        ("Adapter", f"{adapter}{_extra(info)}"),
        *draft_model,
        ("Device", f"{info.device}: {info.device_reason}"),
        ("Number format", f"{info.dtype}: {info.dtype_reason}"),
        *([("Passes", info.compiling)] if info.compiling else []),
        ("Context", f"{info.context:,} tokens"),
        *more,
    )
    return facts(rows) + sentences(info.notes)


def terms(model: str, licence: str, address: str) -> str:
    """A licence that must be accepted before a model is fetched."""
    link = f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(licence)} terms of use</a>'
    return f'<p class="ss-status">{escape(model)} may be used under the {link} only. Nothing is fetched before.</p>'


def memory_need(need: Need | None, free: int) -> str:
    """The memory that a model will take, before it is loaded, and what is free (bytes)."""
    there = f"{gigabytes(free)} are free now."
    if need is None:
        return status(f"What this model needs is known once it is fetched. {there}")
    full = f", and up to {gigabytes(need.cache)} more for a text of {need.context:,} tokens" if need.cache else ""
    fits = "" if need.weights < free else " It will not fit: choose a smaller model, or unload the present one."
    return status(f"The weights need {gigabytes(need.weights)}{full}. {there}{fits}", "bad" if fits else "plain")


def _extra(info: EngineInfo) -> str:
    return f", {_millions(info.extra_parameters)} extra parameters" if info.extra_parameters else ""


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"


def model_name(model: str) -> str:
    """A model's name; for a folder, the last part of its path, which would not fit on a line."""
    return model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] if PATH.match(model) else model


def model_line(info: EngineInfo) -> str:
    """What is loaded in one line of plain text."""
    adapter = f" + {model_name(info.adapter)}" if info.gamma else ", no adapter"
    return f"{model_name(info.model)}{adapter} on {info.device}, {info.dtype}"


def sentences(texts: Iterable[str]) -> str:
    """Notes that a user should see, one paragraph each."""
    return "".join(f'<p class="ss-note">{escape(text)}</p>' for text in texts)


def asked(prompt: str, model: str) -> str:
    """What was asked of which model, above a run."""
    return f'<p class="ss-words"><strong>{escape(prompt)}</strong><br>{escape(model)}</p>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair to a line."""
    body = "".join(
        f"<dt>{escape(name)}</dt><dd>{when(text) if name == STARTED else escape(text)}</dd>" for name, text in rows
    )
    return f'<dl class="ss-facts">{body}</dl>'


def when(utc: str) -> str:
    """A UTC time that ``KEEP_LOCAL`` converts to local time; a day alone is no time, and stays."""
    if "T" not in utc:
        return escape(utc)
    return f'<time datetime="{escape(utc[:19])}Z">{escape(minute(utc))}</time>'


def minute(utc: str, zone: str = "") -> str:
    """A UTC time as text, to the minute, in a time zone as browsers name it; in UTC, said so, if that is unknown."""
    try:
        there = datetime.fromisoformat(utc).replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
    except (ValueError, OSError, LookupError):  # no zone, or a name that this machine does not know
        return f"{utc[:16].replace('T', ' ')} UTC"
    return f"{there:%Y-%m-%d %H:%M}"


def tree_rows(draft: Draft) -> tuple[float, ...]:
    """Tidy vertical positions of a draft's nodes, in rows.

    Every leaf has a row of its own, a parent sits amid its children. Leaves are numbered in depth-first order, so edges
    never cross and no two nodes of one depth are less than a row apart.
    """
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(draft.parents):
        children.setdefault(parent, []).append(node)
    rows = [0.0] * len(draft)
    leaves = 0
    for node in _depth_first(children):
        if node not in children:
            rows[node] = float(leaves)
            leaves += 1
    for node in reversed(range(len(draft))):  # children come after their parents
        if node in children:
            rows[node] = (rows[children[node][0]] + rows[children[node][-1]]) / 2
    return tuple(rows)


def _depth_first(children: dict[int, list[int]]) -> Iterable[int]:
    stack = list(reversed(children.get(-1, [])))
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(children.get(node, [])))
