"""From runs to numbers: one plain dict per method. docs/metrics.md defines every number."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from specstream.bench.prediction import break_even
from specstream.bench.runner import Asked, MethodRuns
from specstream.events import Agreement
from specstream.stats import Interval, RunStats, bootstrap, speedup, step_cost


def result_rows(rows: Sequence[MethodRuns], task: str) -> list[dict[str, Any]]:
    """One dict per method, with the names of docs/metrics.md. The first row is standard decoding."""
    return [_result(row, rows[0], task) for row in rows]


def _result(row: MethodRuns, standard: MethodRuns, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "method": row.contender.name,
        "label": row.contender.label,
        "settings": row.contender.settings,
        **amounts(row.runs),
        **_speedups(standard.runs, row.runs),
        **_costs(row, standard),
        "identical": row.identical,
        "compared": sum(a.verdict.agreement is not Agreement.UNKNOWN for a in row.asked),
        "total": len(row.asked),
        "differences": [_difference(i, a) for i, a in enumerate(row.asked) if a.verdict.position is not None],
        "peak_memory": row.memory.get("peak_memory"),
        "load_memory": row.memory.get("load_memory"),
        "extra_parameters": row.contender.extra_parameters,
        "calibration": [list(values) for values in total_of(row.runs).calibration],
        "metric": None,
        "by_category": _by_category(row, standard),
        "per_prompt": [_prompt(a, b) for a, b in zip(standard.asked, row.asked, strict=True)],
    }


def amounts(runs: Sequence[RunStats]) -> dict[str, Any]:
    """Tokens, steps and times of many runs, with the names of docs/metrics.md."""
    total = total_of(runs)
    return {
        "prompts": len(runs),
        "tokens": total.tokens,
        "steps": total.steps,
        "seconds": total.seconds,
        "prefill_seconds": total.prefill_seconds,
        "decode_seconds": total.decode_seconds,
        "tokens_per_second": decode_tokens(runs) / total.decode_seconds if total.decode_seconds else None,
        "tokens_per_step": decode_tokens(runs) / total.steps if total.steps else None,
    }


def _speedups(standard: Sequence[RunStats], runs: Sequence[RunStats]) -> dict[str, Any]:
    ratios = [r for a, b in zip(standard, runs, strict=True) if (r := speedup(a, b))]
    logs = [math.log(r) for r in ratios]
    value, interval = suite([(r.seconds, r.tokens) for r in standard], [(r.seconds, r.tokens) for r in runs])

    def geometric(picked: Sequence[int]) -> float:
        return math.exp(statistics.fmean([logs[i] for i in picked]))

    return {
        "speedup": value,
        "speedup_interval": interval,
        "speedup_geometric": geometric(range(len(logs))) if logs else None,
        "speedup_geometric_interval": bootstrap(geometric, len(logs)),
        "speedup_lowest": min(ratios, default=None),
        "slower_prompts": sum(r < 1 for r in ratios),
        "decode_speedup": _over(_rate(runs), _rate(standard)),
        "speedup_spec_bench": _over(_mean_rate(runs), _mean_rate(standard)),
    }


def suite(slow: Sequence[tuple[float, int]], fast: Sequence[tuple[float, int]]) -> tuple[float | None, Interval]:
    """Speed-up of ``fast`` over ``slow`` over all prompts together, in time per token, and its 95 % interval.

    Both hold (seconds, tokens) of the same prompts.
    """

    def ratio(picked: Sequence[int]) -> float | None:
        columns = zip(*((*slow[i], *fast[i]) for i in picked), strict=True)
        seconds, tokens, other_seconds, other_tokens = map(sum, columns)
        return seconds / tokens / (other_seconds / other_tokens) if tokens and other_tokens and other_seconds else None

    return ratio(range(len(slow))), bootstrap(ratio, len(slow))


def _rate(runs: Sequence[RunStats]) -> float:
    seconds = sum(r.decode_seconds for r in runs)
    return decode_tokens(runs) / seconds if seconds else 0.0


def _mean_rate(runs: Sequence[RunStats]) -> float:
    return statistics.fmean([r.tokens / r.seconds for r in runs if r.seconds] or [0.0])


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _costs(row: MethodRuns, standard: MethodRuns) -> dict[str, Any]:
    runs, ours = row.runs, row.contender.ours
    total, tokens = total_of(runs), decode_tokens(runs)
    cost = step_cost(standard.runs, runs)
    depth = len(total.acceptance_by_depth)
    return {
        "step_cost": cost,
        "ideal_speedup": _over(tokens / total.steps if total.steps else None, cost),
        "break_even_acceptance": break_even(depth, cost) if cost and depth else None,
        "acceptance_by_depth": total.acceptance_by_depth,
        "node_yield": total.accepted / total.drafted if total.drafted else None,
        "rows_per_token": (total.rows + total.stream_rows) / tokens if ours and tokens else None,
        "waste": (total.drafted - total.accepted) / tokens if ours and tokens else None,
        "outside_share": total.outside_share if ours else None,
    }


def _difference(index: int, asked: Asked) -> dict[str, Any]:
    said = asked.verdict
    return {
        "prompt": index,
        "position": said.position,
        "margin": said.margin,
        "agreement": str(said.agreement),
        "message": said.message,
    }


def _by_category(row: MethodRuns, standard: MethodRuns) -> dict[str, Any]:
    names = list(dict.fromkeys(a.category for a in row.asked if a.category))
    out = {}
    for name in names:
        picked = [i for i, a in enumerate(row.asked) if a.category == name]
        runs, plain = [row.runs[i] for i in picked], [standard.runs[i] for i in picked]
        agreed = sum(row.asked[i].verdict.agreement is Agreement.IDENTICAL for i in picked)
        out[name] = amounts(runs) | {"speedup": speedup(total_of(plain), total_of(runs)), "identical": agreed}
    return out


def _prompt(standard: Asked, asked: Asked) -> dict[str, Any]:
    run, times = asked.stats, asked.seconds
    return {
        "category": asked.category,
        "prompt_tokens": run.prompt_tokens,
        "tokens": run.tokens,
        "steps": run.steps,
        "seconds": run.seconds,
        "fastest": min(times),
        "slowest": max(times),
        "repeats": len(times),
        "prefill_seconds": run.prefill_seconds,
        "tokens_per_step": run.tokens_per_step,
        "speedup": speedup(standard.stats, run),
        "agreement": str(asked.verdict.agreement),
        "position": asked.verdict.position,
    }


def decode_tokens(runs: Sequence[RunStats]) -> int:
    """Tokens after the first of each run."""
    return sum(r.decode_tokens for r in runs)


def total_of(runs: Sequence[RunStats]) -> RunStats:
    """The sums of the counts and times of many runs."""
    total = RunStats()
    for run in runs:
        for f in fields(RunStats):
            value = getattr(run, f.name)
            if isinstance(value, Counter):
                getattr(total, f.name).update(value)
            elif isinstance(value, int | float):
                setattr(total, f.name, getattr(total, f.name) + value)
    return total
