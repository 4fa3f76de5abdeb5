"""The slot at the end of a run: panels that look closer at it or at one of its steps, each in a fold of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..export import page, story
from ..jobs.engine_host import Engines
from ..state.view import View
from . import lens, share
from .lens import Lens
from .share import Share

Updates = dict[Any, Any]


@dataclass
class Details:
    """The panels' parts. ``view`` holds the run that is shown, None while one goes on."""

    view: gr.State
    share: Share
    lens: Lens

    @property
    def outputs(self) -> list[Any]:
        """Every component that ``begun`` and ``ended`` may update."""
        return [self.view, *self.share.outputs, *self.lens.outputs]

    def begun(self) -> Updates:
        """A new run has begun: what was said of the one before goes."""
        return {self.view: None, **self.share.show(None), **self.lens.show(None)}

    def ended(self, view: View) -> Updates:
        """A run has ended, or one from the log is shown."""
        return {self.view: view, **self.share.show(story.of_view(view)), **self.lens.show(view)}

    def wire(self, player: gr.HTML, steps: gr.State, engines: Engines | None) -> None:
        """``player.select`` fires with ``index`` when the visitor settles on a step; ``steps`` holds the run's Steps.

        ``engines`` is None where no model can be asked.
        """
        self.share.wire(self.view, story.of_view, page.run_page, engines)
        self.lens.wire(self.view, player, engines)


def layout(view: View | None = None) -> Details:
    """Lay out the panels for a recorded or logged run, or for none yet."""
    return Details(gr.State(view), share.layout(story.of_view(view) if view else None), lens.layout(view))
