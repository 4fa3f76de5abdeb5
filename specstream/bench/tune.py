"""Tuning for this machine: choose a tree on some prompts, test it on others, and compare predicted with measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from specstream.bench.prediction import predict
from specstream.bench.prompts import Case
from specstream.bench.results import result_rows
from specstream.bench.runner import Ours, bench
from specstream.bench.step_cost import Cost, shape_of, steady, tune, watched
from specstream.decoding.interfaces import never
from specstream.engine import Engine
from specstream.params import Method, Sampling


def tried(
    engine: Engine,
    cost: Cost,
    cases: Sequence[Case],
    method: Method,
    sampling: Sampling,
    repeats: int,
    stop: Callable[[], bool] = never,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Choose on every other prompt, then measure the choice and the given settings on the rest.

    ``predicted`` is the prediction from the prompts used for choosing, ``explained`` that from the test prompts for
    the same trees: its distance from ``measured`` is the prediction's own error, not a difference between prompts.
    All three are of runs without pauses and copies.
    ``done`` is called after each run of standard decoding, the choice and the given settings.
    Raises ValueError for fewer than two prompts. Once ``stop`` returns True it raises Cancelled, or returns the choice
    without ``trials`` if it is already known.
    """
    if len(cases) < 2:
        raise ValueError("Tuning needs at least two prompts: one to choose on, one to test the choice on.")
    method = engine.settled(method)
    ours, others = cases[::2], cases[1::2]
    traces = watched(engine, first_turns(engine, ours), method, sampling, stop)
    choice = tune(cost, traces, method)
    methods = [choice.method] if choice.method == method else [choice.method, method]
    contenders = [Ours(engine, steady(m), stop) for m in methods]
    measured = bench(engine, others, contenders, sampling, repeats, done, stop=stop)
    if stop():
        return choice.to_dict() | {"trials": []}
    rows = result_rows(measured, "")
    again = watched(engine, first_turns(engine, others), method, sampling, stop)
    plain = cost.plain_seconds
    return choice.to_dict() | {
        "trials": [
            {
                "settings": m.to_dict(),
                "predicted": predict(cost.of(m), plain, traces, shape_of(m, traces)).speedup,
                "explained": predict(cost.of(m), plain, again, shape_of(m, again)).speedup,
                "measured": row["decode_speedup"],
                "tokens_per_step": row["tokens_per_step"],
                "step_cost": row["step_cost"],
                "identical": row["identical"],
                "total": row["total"],
            }
            for m, row in zip(methods, rows[1:], strict=True)
        ]
    }


def first_turns(engine: Engine, cases: Sequence[Case]) -> list[str]:
    """The first prompt of each case."""
    return [case.prompt(engine, []) for case in cases]
