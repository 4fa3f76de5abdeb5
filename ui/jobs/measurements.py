"""Benchmarks and tuning as jobs: one thread measures, the page watches, the log keeps the result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specstream.params import Method, Sampling, Streaming

from .engine_host import sentence
from .runs import ModelJob

if TYPE_CHECKING:  # the page starts without torch
    from specstream.engine import Engine

OFTEN = 3.0  # seconds between updates of the result so far, since computing it delays the next run
GRACE = 300.0  # seconds that a measurement continues after its last viewer left

Report = dict[str, Any]


@dataclass(frozen=True)
class MeasurementRequest:
    """What to measure: ``prompts`` of a task as typed, or the first ``limit`` rows (0: all) of a ``file``.

    ``references`` are the names of other libraries' methods.
    """

    task: str
    prompts: tuple[str, ...]
    methods: tuple[Method, ...]
    sampling: Sampling
    file: Path | None = None
    limit: int = 0
    references: tuple[str, ...] = ()
    repeats: int = 1
    seconds: float = 60.0

    @property
    def prompt(self) -> str:
        """The longest prompt, which the rules check before the model is used."""
        return max(self.prompts, key=len, default="")


@dataclass(frozen=True)
class Lap:
    """``done`` of ``total`` runs (or seconds, for a cost curve) are measured, and about ``left`` seconds remain."""

    words: str
    done: float
    total: float
    left: float | None = None


@dataclass(frozen=True)
class Result:
    """The result so far, in the form of ``bench --json`` and ``cost --json``; ``final``: nothing will be added."""

    report: Report
    final: bool = False


class Measurement(ModelJob):
    """The common part of both kinds. Items: Notice, Lap, Result."""

    ask: MeasurementRequest
    grace = GRACE

    def check(self) -> None:
        """Raises Refused if the rules do not allow it."""
        super().check()
        self._engines.rules.check_measurement(self.ask.repeats, self.ask.references)
        self._engines.rules.check_files(self.ask.file)

    def _cases(self, engine: Engine) -> Sequence[Any]:
        """The prompts with their template. Raises ValueError naming a bad line of the file."""
        from specstream import bench  # imports torch: only now, in the worker

        order = self.ask
        if order.file is None:
            return bench.prompts_as_cases([engine.prompt(order.task, prompt) for prompt in order.prompts])
        self._say("Reading the prompts")
        try:
            return bench.read_cases(engine, order.file, order.task, order.limit)
        except ValueError as error:  # the visitor knows the file by its name, not by its path here
            raise ValueError(str(error).replace(str(order.file), order.file.name)) from None

    def _keep(self, report: Report) -> None:
        """The end of the work: store the result in the log, if there is one, and show it on the page."""
        if self._runlog is not None:
            try:
                self._runlog.add_benchmark(report, self._visitor)
            except Exception as error:
                self._say(f"Not logged: {sentence(error)}", True)
        self.put(Result(report, final=True))


class Benchmark(Measurement):
    """The methods on every prompt, in turn."""

    def use(self, engine: Engine) -> None:
        from specstream import bench

        order = self.ask
        for method in order.methods:
            self._offer(engine).check(method.name)
        cases = self._cases(engine)
        self._say_mismatch(engine, order.task)
        contenders = [*(bench.Ours(engine, m, self.stop.is_set) for m in order.methods), *self._outside(engine)]
        self._head = bench.described(engine) | {
            "task": bench.task_of(cases, order.task), "repeats": order.repeats, "sampling": order.sampling.to_dict(),
        }  # fmt: skip
        self._done, self._total = 0, bench.runs_of(cases, contenders, order.repeats)
        self._began = self._told = 0.0
        self._guess: float | None = None
        self._warming = time.monotonic()
        self.put(Lap("Warming up", 0, self._total))
        rows = bench.bench(
            engine, cases, contenders, order.sampling, order.repeats, self._ran, self._booked, self.stop.is_set,
            self._warmed,
        )  # fmt: skip
        if rows[0].asked:
            self._keep(self._report(rows))

    def _outside(self, engine: Engine) -> Sequence[Any]:
        """The other libraries' methods, on a second copy of the model, which takes a moment to load."""
        from specstream import bench

        if not self.ask.references:
            return []
        self._say("Loading a second copy of the model, as transformers uses it")
        adapter = self._engines.choice["adapter"]
        return bench.references(
            self.ask.references, engine, engine.info.adapter if adapter == "auto" else adapter, None
        )

    def _warmed(self, made: int, of: int) -> None:
        """Called after each warm-up run, which is short: the others take longer in proportion to their tokens."""
        from specstream.bench.runner import WARM_UP_TOKENS

        most = self.ask.sampling.max_new_tokens
        pace = (time.monotonic() - self._warming) / made
        self._guess = pace * (of - made + self._total * most / min(WARM_UP_TOKENS, most))
        self.put(Lap(f"Warming up, run {made} of {of}", 0, self._total, self._guess))

    def _ran(self) -> None:
        """Called after each run. The time of the first is unknown, since the clock starts with it."""
        self._began = self._began or time.monotonic()
        self._done += 1
        measured = self._done - 1
        pace = (time.monotonic() - self._began) / measured if measured else None
        left = self._guess if pace is None else pace * (self._total - self._done)
        self.put(Lap(f"Run {self._done} of {self._total}", self._done, self._total, left))

    def _booked(self, rows: list[Any]) -> None:
        """After each prompt."""
        if self._done < self._total and time.monotonic() - self._told >= OFTEN:
            self.put(Result(self._report(rows)))
            self._told = time.monotonic()

    def _report(self, rows: list[Any]) -> Report:
        from specstream import bench

        return self._head | {"rows": bench.result_rows(rows, self._head["task"])}


class Tuning(Measurement):
    """The cost of a step by its tree's size, and the settings that suit the machine."""

    def use(self, engine: Engine) -> None:
        from specstream.bench import described, step_cost
        from specstream.bench import tune as tuning

        order, method = self.ask, self.ask.methods[0]
        self._offer(engine).check(method.name)
        step_cost.largest(method)  # raises for a method without a tree before a minute is spent
        cases = self._cases(engine)
        self._say_mismatch(engine, order.task)
        self._began = time.monotonic()
        self._tick()
        cost = step_cost.measure(
            engine, tuning.first_turns(engine, cases), order.seconds,
            params=method if isinstance(method, Streaming) else None, tick=self._tick, stop=self.stop.is_set,
        )  # fmt: skip
        report = described(engine) | {"task": order.task, "cost": step_cost.report(engine, cost)}
        self.put(Result(report))
        try:
            report = report | {"tuned": self._chosen(engine, cost, cases, method)}
            if self.stop.is_set():
                self._say("The settings are predicted: Cancel came before they were tried.", True)
        except step_cost.Cancelled as error:
            self._say(f"{error} The cost of a step is kept.", True)
        self._keep(report)

    def _tick(self) -> None:
        spent = min(time.monotonic() - self._began, self.ask.seconds)
        self.put(Lap("Measuring the cost of a step", spent, self.ask.seconds, self.ask.seconds - spent))

    def _chosen(self, engine: Engine, cost: Any, cases: Sequence[Any], method: Method) -> Report:
        """The chosen settings, tested on every other prompt; with a single prompt they can't be tested."""
        from specstream.bench import step_cost
        from specstream.bench import tune as tuning

        order, stop = self.ask, self.stop.is_set
        self._tries, self._most = 0, 3 * order.repeats * (len(cases) // 2)
        self.put(Lap("Watching what is accepted", 0, self._most))
        if len(cases) > 1:
            return tuning.tried(engine, cost, cases, method, order.sampling, order.repeats, stop, self._tried)
        traces = step_cost.watched(engine, tuning.first_turns(engine, cases), method, order.sampling, stop)
        return step_cost.tune(cost, traces, engine.settled(method)).to_dict() | {"trials": []}

    def _tried(self) -> None:
        self._tries += 1
        self.put(Lap("Trying the settings on other prompts", self._tries, self._most))
