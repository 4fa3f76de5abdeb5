"""The runs of a benchmark: every method on every prompt, interleaved, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import Any, Protocol

from specstream import processes
from specstream.bench.prompts import Case
from specstream.decoding.interfaces import never
from specstream.engine import Engine
from specstream.events import Agreement, Event, Verdict
from specstream.params import DraftModel, Method, Sampling, Standard, Streaming
from specstream.session import text_of, token_ids, verdict
from specstream.stats import RunStats, summarize

WARM_UP_TOKENS = 32
WARM_UPS = 3


class Contender(Protocol):
    """A method to time. ``ours`` is False for another library's, of whose passes only the times are known."""

    name: str
    label: str
    settings: dict[str, Any]
    extra_parameters: int
    ours: bool

    def run(self, prompt: str, sampling: Sampling) -> list[Event]: ...


class Ours:
    """A method of this program. A run ends early once ``stop`` returns True."""

    ours = True

    def __init__(self, engine: Engine, method: Method, stop: Callable[[], bool] = never) -> None:
        self._engine, self.method, self._stop = engine, method, stop
        self.name, self.label, self.settings = method.name, method.described(), engine.settled(method).to_dict()
        extra = {Streaming.name: engine.info.extra_parameters, DraftModel.name: engine.info.draft_parameters}
        extra |= engine.info.head_parameters
        self.extra_parameters = extra.get(method.name, 0)

    def run(self, prompt: str, sampling: Sampling) -> list[Event]:
        return list(self._engine.generate(prompt, self.method, sampling, self._stop))


@dataclass
class Asked:
    """One prompt with one method: the repeat with the median time, all times, and the verdict."""

    stats: RunStats
    seconds: list[float]
    verdict: Verdict
    category: str


@dataclass
class MethodRuns:
    """Everything measured with one method, one ``Asked`` per prompt in the order of the prompts."""

    contender: Contender
    asked: list[Asked] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)  # measured by ``bench.memory``; empty if not measured

    @property
    def runs(self) -> list[RunStats]:
        return [a.stats for a in self.asked]

    @property
    def identical(self) -> int:
        return sum(a.verdict.agreement is Agreement.IDENTICAL for a in self.asked)


def bench(
    engine: Engine,
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    sampling: Sampling,
    repeats: int = 1,
    done: Callable[[], object] = lambda: None,
    booked: Callable[[list[MethodRuns]], object] = lambda rows: None,
    stop: Callable[[], bool] = never,
    warmed: Callable[[int, int], object] = lambda made, of: None,
) -> list[MethodRuns]:
    """Run the benchmark. Standard decoding is always the first row, whether or not it is among the contenders.

    On each prompt the methods run alternately forwards and backwards (A B, B A, ...), so that a drift in the machine's
    speed affects all alike; before that, every method warms up. ``done`` is called after each run, ``booked`` with the
    rows so far after each prompt, ``warmed`` after each run of the warm-up. Once ``stop`` returns True, the result
    covers the prompts that every method has answered at least once. The processes of ``accelerate launch`` share the
    prompts, and all get the result; its times are then those of concurrent runs.
    """
    engine.refresh(wait=True)
    rows = [MethodRuns(Ours(engine, Standard(), stop)), *(MethodRuns(c) for c in contenders if c.name != Standard.name)]
    _warm_up(engine, cases, rows, sampling, stop, warmed)
    turns = list(accumulate((repeats * len(case.turns) for case in cases), initial=0))

    def measured(numbered: tuple[int, Case]) -> list[list[Asked]]:
        turn, case = numbered
        own = [MethodRuns(row.contender) for row in rows]
        for asked in _turns(engine, case, own, sampling, repeats, turn, done, stop):
            _add(own, asked)
        return [row.asked for row in own]

    for found in processes.shared(list(zip(turns, cases, strict=False)), measured):
        _add(rows, found)
        if stop():
            return rows
        booked(rows)
    return rows


def _add(rows: Sequence[MethodRuns], found: Sequence[list[Asked]]) -> None:
    for row, asked in zip(rows, found, strict=True):
        row.asked += asked


def _turns(
    engine: Engine,
    case: Case,
    rows: list[MethodRuns],
    sampling: Sampling,
    repeats: int,
    turn: int,
    done: Callable[[], object],
    stop: Callable[[], bool],
) -> Iterator[list[list[Asked]]]:
    """The results of every method for each turn of a case, without a turn that ``stop`` interrupted."""
    answers: list[str] = []
    while len(answers) < len(case.turns):
        prompt = case.prompt(engine, answers)
        taken: list[list[list[Event]]] = [[] for _ in rows]
        for index in _order(len(rows), turn, repeats):
            if stop():
                break
            events = rows[index].contender.run(prompt, sampling)
            if not stop():  # otherwise it may have been cut short
                taken[index].append(events)
                done()
        if all(taken):
            yield _said(engine, prompt, sampling, taken, case.category)
        if stop():
            return
        answers.append(text_of(taken[0][0]))
        turn += repeats


def _order(methods: int, turn: int, repeats: int) -> Iterator[int]:
    """Method indices, alternately forwards and backwards."""
    for now in range(turn, turn + repeats):
        yield from range(methods) if now % 2 == 0 else reversed(range(methods))


def runs_of(cases: Sequence[Case], contenders: Sequence[Contender], repeats: int) -> int:
    """How many runs ``bench`` will make, without the warm-up."""
    methods = 1 + sum(c.name != Standard.name for c in contenders)
    return repeats * methods * sum(len(c.turns) for c in cases)


def _warm_up(
    engine: Engine,
    cases: Sequence[Case],
    rows: Sequence[MethodRuns],
    sampling: Sampling,
    stop: Callable[[], bool],
    warmed: Callable[[int, int], object],
) -> None:
    """Run a short, a medium and a long prompt with every method, since kernels and buffers depend on the size."""
    prompts = sorted((c.prompt(engine, []) for c in cases), key=len)
    picked = [prompts[round(i * (len(prompts) - 1) / (WARM_UPS - 1))] for i in range(WARM_UPS)]
    short = {"max_new_tokens": min(WARM_UP_TOKENS, sampling.max_new_tokens), "stop": sampling.stop}
    for made, (prompt, row) in enumerate(product(picked, rows), 1):
        if not stop():
            row.contender.run(prompt, Sampling(**sampling.to_dict() | short))
            warmed(made, len(picked) * len(rows))


def _said(
    engine: Engine, prompt: str, sampling: Sampling, taken: list[list[list[Event]]], category: str
) -> list[list[Asked]]:
    """The median run of every method on a prompt, and its verdict against standard decoding, the first method."""
    standard, out = taken[0][0], []
    for runs in taken:
        stats = sorted((summarize(events) for events in runs), key=lambda s: s.seconds)
        differ = [events for events in runs if token_ids(events) != token_ids(standard)]
        said = verdict(engine, prompt, sampling, differ[0] if differ else runs[0], standard)
        out.append([Asked(stats[len(stats) // 2], [s.seconds for s in stats], said, category)])
    return out
