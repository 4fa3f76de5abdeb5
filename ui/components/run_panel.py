"""A run on the page: numbers, text and tree, steps, charts. The same for a live run and for a logged one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from specstream.events import Lane

from ..charts import runs
from ..html import render
from ..jobs.engine_host import Engines
from ..state import insights
from ..state.feed import Feed, encode
from ..state.view import View, root_text
from ..theme import DEEPEST
from . import details
from .details import Details
from .player import player

Updates = dict[Any, Any]


@dataclass
class RunView:
    """The parts of a run on the page."""

    counters: gr.HTML
    acceptance: gr.HTML
    verdict: gr.HTML
    player: gr.HTML
    insights: gr.HTML
    steps: gr.State
    charts: gr.Column
    per_step: gr.Plot
    phases: gr.Plot
    depths: gr.Plot
    tree: gr.Plot
    details: Details

    @property
    def outputs(self) -> list[Any]:
        own = [part for part in vars(self).values() if part is not self.details]
        return own + self.details.outputs

    def running(self, view: View) -> Updates:
        """Updates while a run goes on: only what is new travels."""
        waiting = {} if view.verdict else {self.verdict: render.pending()}
        return self._numbers(view) | waiting | {self.player: encode(view.feed.new())}

    def ended(self, view: View) -> Updates:
        """Updates when a run has ended: all of it, and the charts."""
        return self.summary(view) | self.drawn(view)

    def summary(self, view: View) -> Updates:
        """What is known at once: numbers, verdict, every step."""
        return self._numbers(view) | {
            self.player: encode(view.feed.whole()),
            self.steps: view.steps,
            self.insights: insights.panel(view.steps, view.stats, view.speedup),
            **self.details.ended(view),
        }

    def drawn(self, view: View) -> Updates:
        """The charts, which take longer."""
        if not view.steps:
            return {self.charts: gr.update(visible=False)}
        return {
            self.charts: gr.update(visible=True),
            self.per_step: runs.per_step(view.steps),
            self.phases: runs.phases(view.stats),
            self.depths: runs.acceptance(view.stats[Lane.METHOD]),
            self.tree: self.explore(view.steps, len(view.steps) - 1),
        }

    def _numbers(self, view: View) -> Updates:
        stats = view.stats[Lane.METHOD]
        return {
            self.counters: render.counters(stats, view.baseline, view.speedup),
            self.acceptance: render.acceptance(stats, len(stats.reached_depth)),
            self.verdict: render.verdict(view.verdict),
        }

    def explore(self, steps: list[Any], index: int) -> Any:
        """The tree of one step to zoom and hover."""
        return runs.tree(steps[index].draft, root_text(steps, index))

    def begun(self) -> Updates:
        """Updates when a run begins: what belongs to the one before goes."""
        return {self.insights: "", **self.details.begun()}

    def wire(self, engines: Engines | None = None) -> None:
        """The step that the user settles on is drawn large. ``engines`` lend the model to the details."""

        def selected(steps: list[Any] | None, event: gr.EventData) -> Any:
            index = event._data.get("index", 0)
            return self.explore(steps, index) if steps and 0 <= index < len(steps) else gr.skip()

        self.player.select(
            selected, self.steps, self.tree, queue=False, show_progress="hidden", api_visibility="private"
        )
        self.details.wire(self.player, self.steps, engines)


def layout(view: View | None = None) -> RunView:
    """Lay out the view of one run: a recorded one, or empty."""
    known = view or View(Feed(""))
    stats = known.stats[Lane.METHOD]
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=320):
            counters = gr.HTML(render.counters(stats, known.baseline, known.speedup))
        with gr.Column(scale=1, min_width=260):
            acceptance = gr.HTML(render.acceptance(stats, len(stats.reached_depth) or 4))
    gr.HTML(render.legend(DEEPEST))
    play = player(encode(known.feed.whole()) if view else "", "recorded-run" if view else None)
    verdict = gr.HTML(render.verdict(known.verdict) or render.pending(), elem_classes="ss-verdict-slot")
    more = gr.HTML(insights.panel(known.steps, known.stats, known.speedup))
    with gr.Column(visible=False) as group:
        with gr.Row():
            per_step, phases, depths = (_plot(name) for name in ("Tokens per step", "Time per token", "Acceptance"))
        with gr.Accordion("Explore the tree of the chosen step: zoom, hover", open=False):
            tree = _plot("Draft tree")
    steps = gr.State(known.steps or None)
    closer = details.layout(view)
    return RunView(counters, acceptance, verdict, play, more, steps, group, per_step, phases, depths, tree, closer)


def _plot(label: str) -> gr.Plot:
    return gr.Plot(label=label, show_label=False, container=False, min_width=300, elem_classes="ss-plot")
