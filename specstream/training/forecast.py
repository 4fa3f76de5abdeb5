"""Forecasts the result of training from the curves of earlier runs and the speed of this machine. No torch."""

from __future__ import annotations

import math

# Tokens per step with 32 nodes on held-out prompts after a thousand rows, and the gain per doubling of the rows. From
# the cards of SmolLM2's adapters: E2E 3.58 after 6,159 rows (and 1.73 after 240, docs/training.md), SQL
# 2.88, 3.68 and 4.08 after 1,200, 3,600 and 11,744, DialogSum 2.53 and 2.75 after 880 and 3,680, chat 1.75, 1.89 and
# 1.98 after 480, 1,388 and 3,354.
CURVES = {"e2e": (2.5, 0.40), "sql": (2.8, 0.37), "dialogsum": (2.55, 0.11), "chat": (1.85, 0.08)}
HOUR = 3600.0


def gained(task: str, before: float, after: float) -> float:
    """The gain in tokens per step from ``before`` to ``after`` rows."""
    return CURVES[task][1] * math.log2(max(after, 1.0) / max(before, 1.0))


def expected(task: str, rows: float) -> float:
    """The expected tokens per step after this many rows; 1 is standard decoding."""
    return max(1.0, CURVES[task][0] + gained(task, 1000, rows))


def announced(task: str, seconds: float, batch: int, minutes: float) -> str:
    """Before training: the likely result of so many minutes at ``seconds`` per step of ``batch`` rows."""
    rows, hour = 60 * minutes / seconds * batch, HOUR / seconds * batch
    words = f"A step takes {seconds:.1f} s here: about {rows:,.0f} rows in {minutes:g} minutes."
    if task not in CURVES or rows < 50:
        return words
    told = f"{words} Earlier training runs of this task reached {expected(task, rows):.1f} tokens per step with as many"
    return told + (f", and {expected(task, hour):.1f} with an hour's worth." if minutes < 55 else ".")


def an_hour(task: str, reached: float, rows: float, seconds: float) -> str:
    """After ``seconds`` of training: the likely result of an hour; empty if that was already reached."""
    if task not in CURVES or not rows or seconds > 0.9 * HOUR:
        return ""
    hour = reached + gained(task, rows, rows * HOUR / seconds)
    return f"An hour in total is likely to reach {hour:.1f} tokens per step: continue with --resume --minutes 60."
