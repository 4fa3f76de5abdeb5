"""Tune for this machine: choose a tree on some prompts, then run it on others, and set predicted against measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from specstream.bench.cases import Case
from specstream.bench.curve import Cost, shape_of, tune, watched
from specstream.bench.predict import predict
from specstream.bench.results import result_rows
from specstream.bench.runner import Ours, bench
from specstream.engine import Engine
from specstream.params import Method, Sampling


def tried(
    engine: Engine, cost: Cost, cases: Sequence[Case], method: Method, sampling: Sampling, repeats: int
) -> dict[str, Any]:
    """Choose on every other prompt, then measure the choice and the given settings on the rest.

    ``predicted`` says what the prompts of the choice promise. ``explained`` says what the other prompts promise for
    the same trees: what is left between it and ``measured`` is the prediction's own error, not that of other prompts.
    Raises ValueError for fewer than two prompts.
    """
    if len(cases) < 2:
        raise ValueError("Tuning needs two prompts or more: one to choose on, one to try the choice on.")
    ours, others = cases[::2], cases[1::2]
    traces = watched(engine, _prompts(engine, ours), method, sampling)
    choice = tune(cost, traces, method)
    methods = [choice.method] if choice.method == method else [choice.method, method]
    rows = result_rows(bench(engine, others, [Ours(engine, m) for m in methods], sampling, repeats), "")
    again = watched(engine, _prompts(engine, others), method, sampling)
    curve, plain = cost.of(type(method)), cost.plain_seconds
    return choice.to_dict() | {
        "trials": [
            {
                "settings": m.to_dict(),
                "predicted": predict(curve, plain, traces, shape_of(m)).speedup,
                "explained": predict(curve, plain, again, shape_of(m)).speedup,
                "measured": row["decode_speedup"],
                "tokens_per_step": row["tokens_per_step"],
                "step_cost": row["step_cost"],
                "identical": row["identical"],
                "total": row["total"],
            }
            for m, row in zip(methods, rows[1:], strict=True)
        ]
    }


def _prompts(engine: Engine, cases: Sequence[Case]) -> list[str]:
    return [case.prompt(engine, []) for case in cases]


def table(tuned: dict[str, Any]) -> Iterator[str]:
    """Lines of a Markdown table for people. The speed-ups are those of the steps, without the prompt pass."""
    yield "| settings | predicted | measured on other prompts | predicted from those prompts |"
    yield "|---|---|---|---|"
    for name, trial in zip(("chosen", "given"), tuned["trials"], strict=False):
        words = ", ".join(f"{k} {v}" for k, v in trial["settings"].items())
        yield (f"| {name}: {words} | {trial['predicted']:.2f} | {trial['measured']:.2f} | {trial['explained']:.2f} |")
