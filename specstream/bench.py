"""The benchmark: the same prompts with every method, interleaved in one process, on the engine's own clock."""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specstream.engine import Engine, versions
from specstream.params import METHODS, Method, Sampling, Standard
from specstream.session import token_ids, verdict
from specstream.stats import RunStats, mean_interval, speedup, summarize

WARM_UP_TOKENS = 32


@dataclass
class Row:
    """Everything measured with one method: one RunStats per prompt (the median of its repeats), and agreement."""

    method: Method
    runs: list[RunStats] = field(default_factory=list)
    identical: int = 0
    total: int = 0
    differences: list[str] = field(default_factory=list)


def bench(
    engine: Engine,
    prompts: Sequence[str],
    methods: Sequence[Method],
    sampling: Sampling,
    repeats: int = 1,
    done: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Measure. Standard decoding is always the first row.

    Per prompt the methods run one after the other, in turn forwards and backwards (A B, B A, ...), so that a drift of
    the machine's speed falls on all alike; before that, every method warms up. ``done`` is called after each run.
    """
    rows = [Row(Standard()), *(Row(m) for m in methods if not isinstance(m, Standard))]
    for row in rows:
        for prompt in prompts[:2]:
            list(engine.generate(prompt, row.method, _short(sampling)))
    turn = 0
    for prompt in prompts:
        taken: list[list[tuple[RunStats, list[Any]]]] = [[] for _ in rows]
        for _ in range(repeats):
            for index in range(len(rows)) if turn % 2 == 0 else reversed(range(len(rows))):
                events = list(engine.generate(prompt, rows[index].method, sampling))
                taken[index].append((summarize(events), events))
                done()
            turn += 1
        _book(engine, prompt, sampling, rows, taken)
    return rows


def _short(sampling: Sampling) -> Sampling:
    return Sampling(**sampling.to_dict() | {"max_new_tokens": min(WARM_UP_TOKENS, sampling.max_new_tokens)})


def _book(engine: Engine, prompt: str, sampling: Sampling, rows: list[Row], taken: list[list[Any]]) -> None:
    standard_events = taken[0][0][1]
    for row, runs in zip(rows, taken, strict=True):
        ordered = sorted(runs, key=lambda run: run[0].seconds)
        row.runs.append(ordered[len(ordered) // 2][0])
        row.total += 1
        other = [events for _, events in runs if token_ids(events) != token_ids(standard_events)]
        if not other:
            row.identical += 1
            continue
        row.differences.append(verdict(engine, prompt, sampling, other[0], standard_events).message)


def result_rows(rows: Sequence[Row], task: str, extra_parameters: int) -> list[dict[str, Any]]:
    """One plain dict per method, with the names that the protocol fixes."""
    return [_result(row, rows[0], task, extra_parameters) for row in rows]


def _result(row: Row, standard: Row, task: str, extra_parameters: int) -> dict[str, Any]:
    runs = row.runs
    total = total_of(runs)
    ratios = [r for a, b in zip(standard.runs, runs, strict=True) if (r := speedup(a, b))]
    low, high = bootstrap(ratios)
    return {
        "task": task,
        "method": row.method.name,
        "settings": row.method.to_dict(),
        "prompts": len(runs),
        "tokens": total.tokens,
        "steps": total.steps,
        "seconds": total.seconds,
        "prefill_seconds": total.prefill_seconds,
        "tokens_per_second": decode_tokens(runs) / total.decode_seconds if total.decode_seconds else None,
        "tokens_per_step": decode_tokens(runs) / total.steps if total.steps else None,
        "speedup": speedup(total_of(standard.runs), total),
        "speedup_geometric": statistics.geometric_mean(ratios) if ratios else None,
        "speedup_interval": [low, high],
        "speedup_lowest": min(ratios, default=None),
        "step_cost": _step_cost(runs, standard.runs),
        "identical": row.identical,
        "total": row.total,
        "differences": row.differences,
        "acceptance_by_depth": total.acceptance_by_depth,
        "outside_share": total.outside_share,
        "rows_per_token": (total.rows + total.stream_rows) / max(1, decode_tokens(runs)),
        "extra_parameters": extra_parameters if row.method.name != Standard.name else 0,
        "metric": None,
    }


def decode_tokens(runs: Sequence[RunStats]) -> int:
    """Tokens after the first of each run."""
    return sum(r.decode_tokens for r in runs)


def _step_cost(runs: Sequence[RunStats], standard: Sequence[RunStats]) -> float | None:
    """Time of one step as a multiple of a plain step: speed-up is tokens per step over this."""
    cost = [r.decode_seconds / r.steps for r in runs if r.steps]
    plain = [r.decode_seconds / r.steps for r in standard if r.steps]
    return statistics.median(cost) / statistics.median(plain) if cost and plain else None


def total_of(runs: Sequence[RunStats]) -> RunStats:
    """The counts and times of many runs, added up."""
    total = RunStats()
    for run in runs:
        for name in (
            "tokens",
            "accepted",
            "steps",
            "drafted",
            "rows",
            "stream_rows",
            "prefill_seconds",
            "decode_seconds",
        ):
            setattr(total, name, getattr(total, name) + getattr(run, name))
        for name in ("phase_seconds", "reached_depth", "accepted_depth"):
            getattr(total, name).update(getattr(run, name))
    return total


def bootstrap(ratios: Sequence[float], samples: int = 2000, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % interval of the geometric mean by resampling the prompts."""
    low, high = mean_interval([math.log(r) for r in ratios], samples, seed)
    return (None, None) if low is None or high is None else (math.exp(low), math.exp(high))


def machine() -> dict[str, Any]:
    """What a timing depends on beside the model."""
    return {"processor": _processor(), "system": platform.platform(), **versions()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def commit() -> str:
    """The commit of the program's own checkout, with a mark when files differ from it; empty outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return out.stdout.strip()


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table for people."""
    yield "| method | tokens/s | tokens per step | step cost | speed-up (95 %) | lowest | identical | outside pass |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in rows:
        low, high = r["speedup_interval"]
        interval = f" ({low:.2f}-{high:.2f})" if low else ""
        yield (
            f"| {METHODS[r['method']].label} | {_show(r['tokens_per_second'], 1)} | {_show(r['tokens_per_step'])} | "
            f"{_show(r['step_cost'])} | {_show(r['speedup'])}{interval} | {_show(r['speedup_lowest'])} | "
            f"{r['identical']}/{r['total']} | {_show(100 * (r['outside_share'] or 0), 1)} % |"
        )


def _show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
