"""Results as tables, for the terminal and the page. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REFERENCES = {
    "hf": "transformers generate",
    "hf-prompt-lookup": "transformers prompt lookup",
    "hf-assistant": "transformers assistant model",
}
SPEC_BENCH = "spec-bench"  # the name of Spec-Bench's questions among the tasks
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of methods: its heading, a short explanation, and its cell as a function of a result."""

    heading: str
    words: str
    cell: Callable[[Result], str]


def _number(name: str, digits: int = 2) -> Callable[[Result], str]:
    return lambda row: _show(row[name], digits)


def _speedup(row: Result) -> str:
    low, high = row["speedup_interval"]
    return _show(row["speedup"]) + (f" ({low:.2f}-{high:.2f})" if low is not None else "")


def _share(row: Result) -> str:
    return "-" if row["outside_share"] is None else f"{100 * row['outside_share']:.1f} %"


def _identical(row: Result) -> str:
    compared = row.get("compared", row["total"])  # absent from older results
    return f"{row['identical']}/{compared}" if compared else "-"


def _memory(row: Result) -> str:
    return f"{row['peak_memory'] / 1e6:.0f} ({row['load_memory'] / 1e6:.0f})" if row.get("load_memory") else "-"


COLUMNS = (
    Column("method", "what was measured", lambda row: row["label"]),
    Column("tokens/s", "tokens after the first per second of the steps", _number("tokens_per_second", 1)),
    Column("tokens per step", "1 for standard decoding", _number("tokens_per_step")),
    Column("step cost", "median time of a step, in steps of standard decoding", _number("step_cost")),
    Column("speed-up (95 %)", "time of standard decoding over that of the method, all prompts together", _speedup),
    Column("ideal", "tokens per step / step cost", _number("ideal_speedup")),
    Column("lowest", "speed-up of the slowest prompt", _number("speedup_lowest")),
    Column("waste", "drafted tokens that were verified but not accepted, per token written", _number("waste")),
    Column("identical", "prompts with the same tokens as standard decoding", _identical),
    Column("prompt passes, s", "time until the first tokens, not part of tokens/s", _number("prefill_seconds")),
    Column("outside pass", "share of the steps' time spent outside the model's passes", _share),
    Column("extra weights", "weights needed in addition to the model's", lambda r: f"{r['extra_parameters']:,}"),
)
MEMORY = Column("memory, MB (loading)", "peak during the runs of a separate process (until loaded)", _memory)


def table(rows: Sequence[Result]) -> Iterator[str]:
    """Lines of a Markdown table, one per method, with a column for the memory if it was measured."""
    columns = (*COLUMNS, MEMORY) if any(row.get("load_memory") for row in rows) else COLUMNS
    yield f"| {' | '.join(column.heading for column in columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(column.cell(row) for column in columns)} |"


def categories(rows: Sequence[Result]) -> Iterator[str]:
    """Lines of a Markdown table of the speed-up by category; none if the questions have no categories."""
    names = list(rows[0]["by_category"])
    if names:
        yield f"\n| speed-up by category | {' | '.join(names)} |"
        yield "|---" * (1 + len(names)) + "|"
        for row in rows[1:]:
            yield f"| {row['label']} | {' | '.join(_show(row['by_category'][name]['speedup']) for name in names)} |"


def differences(rows: Sequence[Result]) -> Iterator[str]:
    """A sentence for each prompt on which a method's tokens differ from those of standard decoding."""
    for row in rows:
        for found in row["differences"]:
            margin = "" if found["margin"] is None else f", where the two best scores are {found['margin']:.2g} apart"
            yield (
                f"{row['label']}, prompt {found['prompt'] + 1}: first difference at token {found['position'] + 1}"
                f"{margin}. {found['message']}"
            )


def cost_table(curve: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a Markdown table of the time of a step, and the limit set by memory bandwidth."""
    kinds = {name: {p["nodes"]: p for p in curve[key]} for key, name in CURVES.items() if curve.get(key)}
    unit = curve["plain"][0]["seconds"]
    yield f"| nodes | {' | '.join(f'{name}: step, ms | in standard steps' for name in kinds)} |"
    yield "|---|" + "---|---|" * len(kinds)
    for nodes in sorted({n for points in kinds.values() for n in points}):
        yield f"| {nodes} | {' | '.join(_pair(points.get(nodes), unit) for points in kinds.values())} |"
    yield f"\nReading every weight once takes at least {1000 * curve['limit_seconds']:.1f} ms here."


CURVES = {"plain": "without streams", "streaming": "streams in the pass", "deferred": "streams deferred"}


def _pair(point: Mapping[str, Any] | None, unit: float) -> str:
    return "- | -" if point is None else f"{1000 * point['seconds']:.1f} | {point['seconds'] / unit:.2f}"


def tuning_table(tuned: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a Markdown table. The speed-ups are those of the steps, without the prompt pass."""
    yield "| settings | predicted | measured on other prompts | predicted from those prompts |"
    yield "|---|---|---|---|"
    for name, trial in zip(("chosen", "given"), tuned["trials"], strict=False):
        words = ", ".join(f"{k} {v}" for k, v in trial["settings"].items())
        values = (_show(trial[key]) for key in ("predicted", "measured", "explained"))
        yield f"| {name}: {words} | {' | '.join(values)} |"


def _show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
