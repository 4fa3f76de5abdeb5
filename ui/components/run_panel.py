"""A run on the page: its headline, texts, guesses and numbers. The same for a live run and a logged one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from specstream.events import Lane
from specstream.runlog import RunLog

from ..html import headline as lines
from ..html import insights, render
from ..jobs.engine_host import Engines
from ..state.feed import Feed, encode
from ..state.headline import Ratio, headline, median
from ..state.view import View
from ..theme import DEEPEST
from . import details
from .details import Details
from .handlers import Updates
from .player import player

FEWEST_LEVELS = 4  # of the tree, while there is none


@dataclass
class RunView:
    """The parts of a run on the page. ``again`` and ``mend`` are shown if runs can be started."""

    headline: gr.HTML
    mend: gr.Button
    again: gr.Button
    player: gr.HTML
    counters: gr.HTML
    acceptance: gr.HTML
    phases: gr.HTML
    insights: gr.HTML
    steps: gr.State
    details: Details

    @property
    def outputs(self) -> list[Any]:
        own = [part for part in vars(self).values() if part is not self.details]
        return own + self.details.outputs

    def running(self, view: View) -> Updates:
        """Updates during a run: only changes are sent."""
        return {self.headline: lines.headline(headline(view)), self.player: encode(view.feed.new())}

    def ended(self, view: View) -> Updates:
        """Updates when a run has ended: everything."""
        stats = view.stats[Lane.METHOD]
        return self.said(headline(view)) | {
            self.player: encode(view.feed.whole()),
            self.steps: view.steps,
            self.counters: render.counters(stats, view.baseline, view.speedup),
            self.acceptance: render.acceptance(stats, len(stats.reached_depth)),
            self.phases: render.phases(view.stats),
            self.insights: insights.panel(view.steps, view.stats, view.speedup),
            **self.details.ended(view),
        }

    def said(self, line: lines.Headline) -> Updates:
        """The headline, and the button that fixes a slow run."""
        label = line.remedy.label if line.remedy else ""
        return {
            self.headline: lines.headline(line),
            self.mend: gr.update(value=label, visible=bool(label) and self.again.visible is not False),
        }

    def measured_again(self, view: View, again: Sequence[Ratio]) -> Updates:
        """What further measurements of a run change: every speed-up is the median of all."""
        middle, times = median(view, again), 1 + len(again)
        return self.said(headline(view, again)) | {
            self.counters: render.counters(view.stats[Lane.METHOD], view.baseline, middle, times),
            self.insights: insights.panel(view.steps, view.stats, middle, times),
        }

    def begun(self) -> Updates:
        """Updates when a run starts: the previous one is cleared."""
        nothing = View(Feed(""))
        stats = nothing.stats[Lane.METHOD]
        return {
            self.mend: gr.update(visible=False),
            self.counters: render.counters(stats, None, None),
            self.acceptance: render.acceptance(stats, FEWEST_LEVELS),
            self.phases: "",
            self.insights: "",
            **self.details.begun(),
        }

    def wire(self, engines: Engines | None = None, runlog: RunLog | None = None) -> None:
        """Connect the details; they use the model of ``engines``, and their runs go into the log."""
        self.details.wire(self.player, self.steps, engines, runlog)


def layout(view: View | None = None, live: bool = False) -> RunView:
    """Lay out the view of one run: a recorded one, or empty. ``live``: it can be measured again and fixed."""
    known = view or View(Feed(""))
    stats = known.stats[Lane.METHOD]
    with gr.Column(elem_classes="ss-stage"):
        with gr.Row(elem_classes="ss-result"):
            line = gr.HTML(lines.headline(headline(known)) if view else "", min_width=240)
            mend = gr.Button("", visible=False, size="sm", scale=0, min_width=100, elem_classes="ss-mend")
            again = gr.Button("Measure again", interactive=False, visible=live, size="sm", scale=0, min_width=130)
        play = player(encode(known.feed.whole()) if view else "", "recorded-run" if view else None)
    with gr.Accordion("Numbers: speed, acceptance, where the time went, what if", open=False):
        gr.HTML(render.legend(DEEPEST))
        counters = gr.HTML(render.counters(stats, known.baseline, known.speedup))
        with gr.Row(equal_height=True):
            acceptance = gr.HTML(render.acceptance(stats, len(stats.reached_depth) or FEWEST_LEVELS), min_width=280)
            phases = gr.HTML(render.phases(known.stats), min_width=280)
        more = gr.HTML(insights.panel(known.steps, known.stats, known.speedup))
    steps = gr.State(known.steps or None)
    closer = details.layout(view)
    return RunView(line, mend, again, play, counters, acceptance, phases, more, steps, closer)
