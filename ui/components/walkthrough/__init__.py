"""One step of a run in four clicks, and a slider for the value of correct guesses. Pure except ``component``.

The script reads ``{before, root, nodes, tokens, passes, cost, depth, rate, told}`` as JSON text: ``nodes`` and
``tokens`` as of ``ui.state.feed``, ``before`` the text that was there, ``cost`` of a step in standard steps, ``depth``
how many tokens ahead are guessed, ``rate`` of right guesses that gives the run's tokens per step, ``told`` which run
this is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from specstream.events import Fate, Lane, Step
from specstream.stats import step_cost

from ...state.feed import encode, step_values
from ...state.view import View, root_text

HERE = Path(__file__).parent
SHOWN = 90  # characters of the text before the step


def message(view: View, told: str) -> str:
    """The script's data for a run; empty for one without drafts."""
    index = telling(view.steps)
    if index is None:
        return ""
    step, stats = step_values(view.steps[index]), view.stats[Lane.METHOD]
    before = "".join(token.text for one in view.steps[:index] for token in one.tokens)
    depth = max((max(s.draft.depths(), default=0) for s in view.steps), default=1)
    cost = step_cost([view.stats[Lane.BASELINE]], [stats])
    return encode({
        "before": before[-SHOWN:], "root": root_text(view.steps, index), "nodes": step["d"], "tokens": step["t"],
        "cost": round(max(cost, 1.0), 2) if cost else 1.3, "measured": bool(cost and cost >= 1),
        "depth": depth, "rate": round(even_rate(stats.tokens_per_step or 1.0, depth), 2), "told": told,
    })  # fmt: skip


def even_rate(tokens: float, depth: int) -> float:
    """How often a guess is right, if every one is equally likely to be and a step brings so many ``tokens`` with
    ``depth`` guesses in a row. The share of right guesses among those compared is higher: many drafts end sooner."""
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**n for n in range(depth + 1)) < tokens else (low, middle)
    return high


def telling(steps: list[Step]) -> int | None:
    """A step that is easy to follow: it accepted several whole words and rejected something, in a small tree."""

    def worth(index: int) -> tuple[bool, int, int]:
        step = steps[index]
        fates, words = step.draft.fate, sum(token.text[:1] == " " for token in step.tokens)
        accepted = fates.count(Fate.ACCEPTED)
        return accepted > 0 and Fate.REJECTED in fates, min(accepted, 3) + words, -len(fates)

    with_drafts = [i for i in range(1, len(steps)) if len(steps[i].draft)]
    return max(with_drafts, key=worth) if with_drafts else None


def component(value: str) -> Any:
    """The walk-through component, whose value is such a message."""
    return gr.HTML(
        value,
        html_template=(HERE / "walkthrough.html").read_text(encoding="utf-8"),
        js_on_load=(HERE / "walkthrough.js").read_text(encoding="utf-8"),
        apply_default_css=False,
    )
