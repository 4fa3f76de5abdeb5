"""The cost of a step of this model on this machine, measured in about a minute, and the tree that suits it best."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from typing import Any, TypeVar, cast

import torch

from specstream.bench.prediction import Curve, Prediction, Shape, Trace, cut, merit, predict, predicted, shapes, trace
from specstream.decoding.drafters.streaming import StreamingDrafter
from specstream.decoding.interfaces import Drafter, never
from specstream.decoding.loop import Run
from specstream.engine import Engine
from specstream.events import Draft, Step
from specstream.params import Method, PromptLookup, Sampling, Standard, Streaming

Kind = TypeVar("Kind", bound=Method)
SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48)
BUDGETS, WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48), (1, 2, 3, 4, 6, 8)
STEPS_PER_RUN = 64
PROBE = 1 << 28  # bytes read to measure memory bandwidth: more than any cache holds
VARIANTS = ("in-pass", "deferred")  # where the streams are computed, see params.Streaming
TEXT = "The history of the city begins with a small market by the river. Every morning the"


class Cancelled(ValueError):
    """The measurement was stopped before it had a result."""


class Turns(Drafter):
    """Alternates between drafters, one step each, so that a drift in the machine's speed affects all alike."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = drafters
        self._next = cycle(drafters)

    def propose(self, room: int) -> Draft:
        drafter = next(self._next)
        before = drafter.busy
        draft = drafter.propose(room)
        self.busy += drafter.busy - before
        return draft

    def observe(self, row: int) -> None:
        for drafter in self._drafters:
            drafter.observe(row)


class Filler(Drafter):
    """Drafts a fixed number of arbitrary tokens: only their cost matters."""

    def __init__(self, nodes: int) -> None:
        self._draft = Draft(tuple(range(nodes)), (-1,) * nodes, (1 / max(1, nodes),) * nodes)

    def propose(self, room: int) -> Draft:
        return self._draft if room else Draft()

    def observe(self, row: int) -> None:
        """Nothing to remember."""


@dataclass
class Samples:
    """Seconds of whole steps and of their forward passes, by number of drafted nodes; traces of the largest trees."""

    steps: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    passes: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    traces: list[Trace] = field(default_factory=list)

    def add(self, step: Step) -> None:
        self.steps[len(step.draft)].append(step.total_seconds)
        self.passes[len(step.draft)].append(step.seconds["verify"])

    def curve(self) -> Curve:
        """The median times. Sizes that occurred only a few times (at the end of a text) are left out."""
        enough = max(map(len, self.steps.values())) / 4
        return Curve(tuple((n, statistics.median(s)) for n, s in sorted(self.steps.items()) if len(s) >= enough))

    def to_list(self) -> list[dict[str, Any]]:
        return [
            {
                "nodes": n,
                "seconds": statistics.median(self.steps[n]),
                "pass_seconds": statistics.median(self.passes[n]),
                "fastest": min(self.steps[n]),
                "slowest": max(self.steps[n]),
                "steps": len(self.steps[n]),
            }
            for n in sorted(self.steps)
        ]


@dataclass
class Cost:
    """Measurements on ``device``: ``plain`` without streams; ``streaming`` by variant (empty without an adapter)."""

    plain: Samples = field(default_factory=Samples)
    streaming: dict[str, Samples] = field(default_factory=dict)
    device: str = "cpu"

    def of(self, method: Method) -> Curve:
        """The time of a step of a method by its number of drafted nodes."""
        return (self.streaming[method.on(self.device).streams] if isinstance(method, Streaming) else self.plain).curve()

    @property
    def plain_seconds(self) -> float:
        """Seconds of one step of standard decoding."""
        return self.plain.curve().seconds(0)


def measure(
    engine: Engine,
    prompts: Sequence[str] = (),
    seconds: float = 60.0,
    sizes: Sequence[int] = SIZES,
    params: Streaming | None = None,
    tick: Callable[[], object] = lambda: None,
    stop: Callable[[], bool] = never,
) -> Cost:
    """Run steps with trees of every size, in turn, for about ``seconds``; every size occurs at least once.

    ``prompts`` are the texts to continue (default: a sentence). The first run of each kind is a warm-up. ``tick`` is
    called after each run. Once ``stop`` returns True, the cost is what was measured so far; raises Cancelled if that is
    too little, and ValueError for a model that can't verify trees.
    """
    if reason := engine.info.unavailable.get(PromptLookup.name):
        raise ValueError(reason)
    variants = VARIANTS if Streaming.name not in engine.info.unavailable else ()
    cost = Cost(streaming={name: Samples() for name in variants}, device=engine.info.device)
    started = time.perf_counter()
    kinds: list[tuple[Samples, Streaming | None]] = [(cost.plain, None)]
    kinds += [(s, replace(params or Streaming(), streams=name)) for name, s in cost.streaming.items()]
    for turn, prompt in enumerate(cycle(prompts or [TEXT])):
        try:
            for samples, method in kinds:
                _sample(samples if turn else Samples(), _run(engine, prompt, sizes, method), max(sizes), stop)
                tick()
        except Cancelled:
            if turn < 2:  # some kind of step was not measured at all
                raise
            return cost
        if turn and time.perf_counter() - started >= seconds:
            return cost
    raise AssertionError("a cycle does not end")


def _run(engine: Engine, prompt: str, sizes: Sequence[int], method: Streaming | None) -> Run:
    """A run whose steps have each of the sizes in turn, drafted by streams or, without a method, by ``Filler``."""
    sampling = Sampling(max_new_tokens=8 * STEPS_PER_RUN, ignore_eos=True)
    run = engine.new_run(engine.encode(prompt), method or Standard(), sampling)
    drafters: list[Drafter] = [Filler(n) for n in sizes]
    if method:
        wide = replace(steady(method), tree="best-first", width=max(WIDTHS), depth=0)
        source: Any = run.target  # also the source of the streams
        drafters = [StreamingDrafter(source, replace(wide, budget=n), run.ids) for n in sizes if n]
    run.drafter = Turns(drafters)
    return run


def _sample(samples: Samples, run: Run, largest: int, stop: Callable[[], bool]) -> None:
    """Record the steps of a run. Only the largest trees show what smaller ones would have drafted."""
    for step in _steps(run, stop):
        samples.add(step)
        if len(step.draft) == largest:
            samples.traces.append(trace(step))


def _steps(run: Run, stop: Callable[[], bool]) -> Iterator[Step]:
    try:
        run.prompt_pass(never)
        for _ in range(STEPS_PER_RUN):
            if stop():
                raise Cancelled("Stopped before the cost of a step was known.")
            if run.reason is not None:
                return
            yield run.step()
    finally:
        run.target.release()


def watched(
    engine: Engine, prompts: Sequence[str], method: Method, sampling: Sampling, stop: Callable[[], bool] = never
) -> list[Trace]:
    """Record the steps of a method with its largest possible tree, over whole answers, to measure its acceptance.

    Raises Cancelled once ``stop`` returns True.
    """
    events = [e for p in prompts for e in engine.generate(p, largest(method), sampling, stop)]
    if stop():
        raise Cancelled("Stopped before the acceptance was known.")
    return [trace(e) for e in events if isinstance(e, Step) and e.index > 0]


def largest(method: Method) -> Method:
    """The method with a tree that contains every candidate tree."""
    if isinstance(method, Streaming):
        tree: dict[str, Any] = {"tree": "best-first", "budget": max(BUDGETS), "width": max(WIDTHS), "depth": 0}
        return replace(steady(method), **tree, prune=0.0)
    if isinstance(method, PromptLookup):
        return replace(method, budget=max(BUDGETS), depth=16)
    raise ValueError(f"{method.label} can't be tuned: choose {Streaming.name} or {PromptLookup.name}.")


def steady(method: Kind) -> Kind:
    """The method without pauses and copies, since predictions assume a draft by streams in every step."""
    return cast(Kind, replace(method, pause=0.0, copies="off")) if isinstance(method, Streaming) else method


@dataclass(frozen=True)
class Tuned:
    """The settings predicted to be fastest here, with their prediction and that of the given settings."""

    method: Method
    prediction: Prediction
    given: Prediction

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "settings": self.method.to_dict(),
            "predicted": asdict(self.prediction),
            "given": asdict(self.given),
        }


def tune(cost: Cost, traces: Sequence[Trace], method: Method) -> Tuned:
    """Choose budget and depth, and for streaming width and variant, by predicted speed-up.

    Raises ValueError if nothing was drafted.
    """
    plain = cost.plain_seconds
    deepest = max((depth for t in traces for depth, _ in t.nodes), default=0)
    if not deepest:
        raise ValueError("Nothing was drafted on these prompts, so there is nothing to tune: give other prompts.")
    found, choice = max(
        (
            (predicted(cost.of(variant), plain, shape, cuts), variant)
            for shape, cuts, variant in _options(cost, traces, method, deepest)
        ),
        key=lambda option: merit(option[0]),
    )
    given = predict(cost.of(method), plain, traces, shape_of(method, traces))
    return Tuned(shaped(choice, found.shape), found, given)


def _options(
    cost: Cost, traces: Sequence[Trace], method: Method, deepest: int
) -> Iterator[tuple[Shape, list[tuple[int, int]], Method]]:
    """Every tree with what it would have drafted and kept, for every variant of the method."""
    variants: list[Method] = [method]
    if isinstance(method, Streaming):
        variants = [replace(method, streams=name) for name in cost.streaming]
    for shape in shapes(BUDGETS, WIDTHS if isinstance(method, Streaming) else (0,), range(1, deepest + 1)):
        cuts = [cut(t, shape) for t in traces]
        yield from ((shape, cuts, variant) for variant in variants)


def shape_of(method: Method, traces: Sequence[Trace]) -> Shape:
    """The shape of the tree in a method's settings. Which nodes are likely enough depends on the tokens per step, here
    taken from the traces: slightly more than a smaller tree gets."""
    if isinstance(method, Streaming):
        least = method.least(statistics.fmean(t.emitted for t in traces))
        return Shape(method.nodes, method.width, method.depth, least)
    assert isinstance(method, PromptLookup)
    return Shape(method.nodes, 0, method.depth)


def shaped(method: Method, shape: Shape) -> Method:
    """The method with a tree of this shape."""
    if isinstance(method, Streaming):
        return replace(method, tree="best-first", budget=shape.budget, width=shape.width, depth=shape.depth)
    assert isinstance(method, PromptLookup)
    return replace(method, budget=shape.budget, depth=shape.depth)


def bandwidth(device: str, repeats: int = 5) -> float:
    """Memory bandwidth of the device in bytes per second, which limits a pass over the weights."""
    block = torch.ones(PROBE // 4, dtype=torch.float32, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else torch.mps.synchronize if device == "mps" else lambda: None
    seconds = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        block.sum()
        wait()
        seconds.append(time.perf_counter() - started)
    return PROBE / min(seconds)


def report(engine: Engine, cost: Cost) -> dict[str, Any]:
    """The measurements as plain values, with the least time that reading every weight once takes."""
    speed = bandwidth(engine.info.device)
    size = engine.info.parameters * torch.empty(0, dtype=getattr(torch, engine.info.dtype)).element_size()
    return {
        "plain": cost.plain.to_list(),
        "streaming": cost.streaming["in-pass"].to_list() if cost.streaming else [],
        "deferred": cost.streaming["deferred"].to_list() if cost.streaming else [],
        "gamma": engine.info.gamma,
        "weight_bytes": size,
        "bytes_per_second": speed,
        "limit_seconds": size / speed,
    }
