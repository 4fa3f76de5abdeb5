"""Predicts the speed of a tree on a machine from the cost of a step and recorded steps. Standard library only.

A best-first tree of a smaller budget, width or depth is a subset of the larger one, in the same order. A step with a
large tree therefore shows what any smaller tree would have drafted, and how much of it would have been accepted.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from specstream.events import Fate, Step
from specstream.tree import widest_on_path

NOISE = 1.05  # the largest ratio of two measurements that is taken for noise


@dataclass(frozen=True)
class Curve:
    """Time of a step against the number of drafted nodes: points (nodes, seconds), fewest nodes first."""

    points: tuple[tuple[float, float], ...]

    def seconds(self, nodes: float) -> float:
        """Linear interpolation between neighbouring points; outside all points, extrapolation from the nearest two."""
        if len(self.points) == 1:
            return self.points[0][1]
        right = next((i for i, (n, _) in enumerate(self.points) if n >= nodes), len(self.points) - 1)
        (n0, s0), (n1, s1) = self.points[max(0, right - 1)], self.points[max(1, right)]
        return s0 + (s1 - s0) * (nodes - n0) / (n1 - n0)


@dataclass(frozen=True)
class Shape:
    """A best-first tree's settings; 0 leaves width or depth unlimited. ``least`` is the smallest joint probability of a
    node."""

    budget: int
    width: int = 0
    depth: int = 0
    least: float = 0.0


@dataclass(frozen=True)
class Trace:
    """One step with a large tree. ``nodes`` holds, for every node, its depth and the worst rank on its path (0 is
    best); ``accepted`` are the nodes of the accepted path; ``emitted`` counts the step's tokens. ``joint`` holds every
    node's joint probability, the product of the drafted probabilities on its path."""

    nodes: tuple[tuple[int, int], ...]
    accepted: tuple[int, ...]
    emitted: int
    joint: tuple[float, ...]


@dataclass(frozen=True)
class Prediction:
    """The prediction for a shape. ``speedup`` is of the steps, without the prompt pass."""

    shape: Shape
    nodes: float
    tokens_per_step: float
    step_cost: float
    speedup: float


def trace(step: Step) -> Trace:
    """What a step with a draft reveals about smaller drafts."""
    ranks = (width - 1 for width in widest_on_path(step.draft))
    accepted = tuple(i for i, fate in enumerate(step.draft.fate) if fate is Fate.ACCEPTED)
    joint: list[float] = []
    for parent, prob in zip(step.draft.parents, step.draft.probs, strict=True):
        joint.append(prob * (joint[parent] if parent >= 0 else 1.0))
    return Trace(tuple(zip(step.draft.depths(), ranks, strict=True)), accepted, len(step.tokens), tuple(joint))


def cut(trace: Trace, shape: Shape) -> tuple[int, int]:
    """The nodes drafted and tokens emitted if the step had used a tree of this shape."""
    inside = [
        i
        for i, ((depth, rank), joint) in enumerate(zip(trace.nodes, trace.joint, strict=True))
        if (not shape.depth or depth <= shape.depth)
        and (not shape.width or rank < shape.width)
        and joint >= shape.least
    ]
    kept = inside[: shape.budget]
    survived = len(set(kept) & set(trace.accepted))
    return len(kept), trace.emitted if survived == len(trace.accepted) else survived + 1


def predict(curve: Curve, plain_seconds: float, traces: Sequence[Trace], shape: Shape) -> Prediction:
    """Tokens per step over the cost of a step. ``plain_seconds`` is the time of a step of standard decoding."""
    return predicted(curve, plain_seconds, shape, [cut(t, shape) for t in traces])


def predicted(curve: Curve, plain_seconds: float, shape: Shape, cuts: Sequence[tuple[int, int]]) -> Prediction:
    """The same, given the results of ``cut`` for every step, which do not depend on the curve."""
    tokens = statistics.fmean(emitted for _, emitted in cuts)
    cost = statistics.fmean(curve.seconds(nodes) for nodes, _ in cuts) / plain_seconds
    return Prediction(shape, statistics.fmean(nodes for nodes, _ in cuts), tokens, cost, tokens / cost)


def merit(prediction: Prediction) -> tuple[float, ...]:
    """A sort key, larger is better: predicted speed-up first, then fewer nodes."""
    shape = prediction.shape
    return round(prediction.speedup, 6), -prediction.nodes, -shape.budget, -shape.width


def fastest_tried(tuned: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings to use from the result of ``bench.tune.tried``: those measured to be fastest.

    The predicted choice stays unless others were faster by more than ``NOISE``, or if nothing was measured. None if
    standard decoding is faster than all of them.
    """
    tried = [(t["measured"], t["settings"]) for t in tuned["trials"] if t["measured"]]
    first, *others = tried or [(tuned["predicted"]["speedup"], tuned["settings"])]
    best = max([first, *(other for other in others if other[0] > NOISE * first[0])], key=lambda pair: pair[0])
    return best[1] if best[0] > 1 else None


def shapes(budgets: Sequence[int], widths: Sequence[int], depths: Sequence[int]) -> list[Shape]:
    """Every combination."""
    return [Shape(*values) for values in product(budgets, widths, depths)]


def chain_tokens(acceptance: Sequence[float]) -> float:
    """Tokens per step of a chain from its acceptance by depth: 1 + a1 + a1 a2 + ... (for a constant a, the textbook
    formula (1 - a^(n+1)) / (1 - a))."""
    total, alive = 1.0, 1.0
    for share in acceptance:
        alive *= share
        total += alive
    return total


def break_even(gamma: int, step_cost: float) -> float | None:
    """The constant acceptance at which a chain of ``gamma`` drafts is as fast as standard decoding; None if no
    acceptance is enough."""
    if step_cost > gamma + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if chain_tokens([middle] * gamma) < step_cost else (low, middle)
    return high
