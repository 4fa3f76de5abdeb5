"""Forecasts the result of training from the curves of earlier runs and the speed of this machine. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from specstream.adapters.card import Card

# Tokens per step with 32 nodes on held-out prompts after a thousand rows, and the gain per doubling of the rows. From
# the cards of SmolLM2's adapters: E2E 3.58 after 6,159 rows (and 1.73 after 240, docs/training.md), SQL
# 2.88, 3.68 and 4.08 after 1,200, 3,600 and 11,744, DialogSum 2.53 and 2.75 after 880 and 3,680, chat 1.75, 1.89 and
# 1.98 after 480, 1,388 and 3,354.
CURVES = {"e2e": (2.5, 0.40), "sql": (2.8, 0.37), "dialogsum": (2.55, 0.11), "chat": (1.85, 0.08)}
HOUR = 3600.0
Progress = dict[str, Any]
LITTLE = 0.05  # tokens per step that are not worth an hour


@dataclass(frozen=True)
class Stage:
    """What an adapter has learned from: ``rows`` in all of its stages, and the tokens per step that it then reached
    with ``gamma`` streams (None: not measured)."""

    task: str
    gamma: int
    rows: int = 0
    reached: float | None = None

    @classmethod
    def of(cls, card: Card, progress: Progress | None = None) -> Stage:
        """The stage in which the adapter with this card was saved; ``progress`` is that of its end, if it went on."""
        found = card.training
        before, now = found.get("earlier"), progress or found.get("progress")
        done = [*(s.get("progress") for s in before if isinstance(s, dict)), now] if isinstance(before, list) else [now]
        rows = sum(_number(p.get("examples")) or 0.0 for p in done if isinstance(p, dict))
        return cls(card.task, card.gamma, int(rows), _number(card.metrics.get("tokens_per_step")))

    @property
    def known(self) -> bool:
        """Whether there is a curve to go by; without streams there is nothing to forecast."""
        return self.task in CURVES and self.gamma > 0

    def at_most(self, tokens_per_step: float) -> float:
        """A step gives every drafted token and one more at most, and one at least."""
        return min(max(1.0, tokens_per_step), self.gamma + 1.0)

    def after(self, rows: float, slope: float = math.inf) -> float:
        """The expected tokens per step after so many further rows. ``slope`` is the gain per doubling of all rows that
        was seen; the gain is never taken to be larger than that of earlier runs of the task."""
        start, usual = CURVES[self.task]
        if self.reached is None:
            return self.at_most(start + usual * math.log2(max(self.rows + rows, 1.0) / 1000))
        gain = min(max(slope, 0.0), usual) * math.log2((self.rows + rows) / max(self.rows, 1.0))
        return self.at_most(self.reached + gain)


def in_minutes(number: float) -> str:
    """A budget in words."""
    return f"{number:g} minute{'' if number == 1 else 's'}"


def announced(task: str, gamma: int, seconds: float, batch: int, minutes: float, start: Stage | None = None) -> str:
    """Before training: the likely result of so many minutes at ``seconds`` per step of ``batch`` rows. ``start`` is
    the stage of the adapter that training starts from."""
    rows, hour = 60 * minutes / seconds * batch, HOUR / seconds * batch
    words = f"A step takes {seconds:.1f} s here: about {rows:,.0f} rows in {in_minutes(minutes)}."
    stage = Stage(task, gamma, start.rows if start else 0, start.reached if start else None)
    if not stage.known or rows < 50 or (start and (start.task != task or not start.rows or start.reached is None)):
        return words
    if start:
        told = f"The adapter that it starts from reached {start.reached:.1f} tokens per step"
        return f"{words} {told}; {stage.after(rows):.1f} are likely."
    told = f"{words} Earlier training runs of this task reached {stage.after(rows):.1f} tokens per step with as many"
    return told + (f", and {stage.after(hour):.1f} with an hour's worth." if minutes < 55 else ".")


def an_hour(stage: Stage, progress: Progress) -> str:
    """After training: the likely result of an hour in total; empty if an hour is over or nothing is known.
    ``progress`` is that of the stage at its end (``trainer.TrainerState``)."""
    rows, seconds = progress["examples"], progress["seconds"]
    if not stage.known or not rows or stage.reached is None or seconds > 0.9 * HOUR:
        return ""
    hour = stage.after(rows * (HOUR / seconds - 1), seen_slope(stage.rows, progress))
    if hour - stage.reached < LITTLE:
        return "More training of this kind is likely to gain little."
    return f"An hour in total is likely to reach {hour:.1f} tokens per step: continue with --resume --minutes 60."


def seen_slope(rows: int, progress: Progress) -> float:
    """The gain in tokens per step per doubling of all rows, from the first to the last validation of a stage after
    which ``rows`` were seen in all; infinite if there are no two."""
    found = [v for v in progress.get("history", []) if "tokens_per_step" in v]
    if len(found) < 2:
        return math.inf
    first, last = found[0], found[-1]
    per_step = progress["examples"] / progress["step"]
    before = [rows - per_step * (progress["step"] - v["step"]) for v in (first, last)]
    doublings = math.log2(before[1] / before[0])
    return float(last["tokens_per_step"] - first["tokens_per_step"]) / doublings


def _number(value: object) -> float | None:
    """A value of somebody's card, if it is a finite number."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e12 else None
