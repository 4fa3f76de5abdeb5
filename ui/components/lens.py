"""The stream lens of a run's chosen step: from the recording, or computed by the loaded model on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..html import lens as html
from ..html import render
from ..jobs.engine_host import Engines
from ..jobs.lens import Look, Looked, Place
from ..state.messages import Notice
from ..state.view import View, root_text
from .handlers import QUIET, Updates

NAME = "Look inside a step: what each stream believed, layer by layer"


@dataclass
class Lens:
    """The panel's parts. ``index`` is the chosen step."""

    fold: gr.Accordion
    index: gr.State
    button: gr.Button
    status: gr.HTML
    shown: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.fold, self.index, self.button, self.status, self.shown]

    def show(self, view: View | None) -> Updates:
        """Another run is shown, or none."""
        if view is None or not looks_at(view):
            return {self.fold: gr.update(visible=False)}
        return {self.fold: gr.update(visible=True), **self.choose(view, telling(view))}

    def choose(self, view: View, index: int) -> Updates:
        """Another step is chosen: its recorded lens is shown at once."""
        index = min(max(index, 1), len(view.steps) - 1)
        known = view.looks.get(index)
        return {
            self.index: index,
            self.button: gr.update(value=f"Look inside step {index}", visible=known is None),
            self.status: "",
            self.shown: drawn(view, index, known) if known else "",
        }

    def wire(self, view: gr.State, player: gr.HTML, engines: Engines | None) -> None:
        """Follow the player's steps; ``engines`` None: only recorded ones can be shown."""

        def selected(shown: View | None, event: gr.EventData) -> Any:
            if shown is None or not looks_at(shown):
                return {self.index: gr.skip()}
            return self.choose(shown, event._data.get("index", 0))

        def looked(shown: View | None, index: int, request: gr.Request) -> Iterator[Updates]:
            if shown is None or engines is None:
                yield {self.status: render.status("Run a prompt first.", "bad")}
                return
            yield {self.button: gr.update(interactive=False), self.status: render.status("Looking", "busy")}
            yield from self.follow(shown, index, Look(engines, place(shown, index)), str(request.session_hash))

        player.select(selected, view, self.outputs, queue=False, **QUIET)
        self.button.click(looked, [view, self.index], self.outputs, concurrency_limit=None, **QUIET)

    def follow(self, view: View, index: int, job: Look, session: str) -> Iterator[Updates]:
        """Wait for the model, and show the result."""
        ended: Updates = {self.button: gr.update(interactive=True)}
        with closing(job.batches(session)) as batches:
            for batch in batches:
                for item in batch:
                    if isinstance(item, Looked):
                        ended |= {self.shown: drawn(view, index, item.values), self.status: ""}
                    elif isinstance(item, Notice):
                        ended[self.status] = render.status(item.text, "bad" if item.failed else "busy")
                yield {self.status: ended.get(self.status, "")}
        yield ended


def looks_at(view: View) -> bool:
    """Whether this run was drafted by streams."""
    return view.origin is not None and view.origin.method == "streaming" and len(view.steps) > 1


def telling(view: View) -> int:
    """The most instructive step: it accepted some drafted tokens and rejected others, early in the text."""

    def worth(index: int) -> float:
        step = view.steps[index]
        return min(len(step.tokens), 4) + min(len(step.draft) - len(step.tokens), 2) - index / 100

    return max(range(1, len(view.steps)), key=worth)


def place(view: View, index: int) -> Place:
    """The position at which a step begins."""
    assert view.origin is not None, "a run of unknown origin"
    return Place(view.origin, tuple(token.id for step in view.steps[:index] for token in step.tokens))


def drawn(view: View, index: int, look: dict[str, Any]) -> str:
    """The lens, with the tokens that the model wrote there."""
    came = [token.text for step in view.steps[index:] for token in step.tokens]
    return html.panel(look, index, root_text(view.steps, index), came)


def layout(view: View | None = None) -> Lens:
    """Lay out the panel."""
    there = view is not None and looks_at(view)
    index = telling(view) if view is not None and there else 1
    known = view.looks.get(index) if view else None
    with gr.Accordion(NAME, open=False, visible=there) as fold:
        button = gr.Button(f"Look inside step {index}", size="sm", scale=0, min_width=180, visible=known is None)
        status = gr.HTML()
        shown = gr.HTML(drawn(view, index, known) if view and known else "")
    return Lens(fold, gr.State(index), button, status, shown)
