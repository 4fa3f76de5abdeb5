"""The slot at the end of a run: panels that look closer at it or at one of its steps, each in a fold of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..jobs.engine_host import Engines
from ..state.view import View

Updates = dict[Any, Any]


@dataclass
class Details:
    """The panels' parts. ``view`` holds the run that is shown, None while one goes on."""

    view: gr.State

    @property
    def outputs(self) -> list[Any]:
        """Every component that ``begun`` and ``ended`` may update."""
        return [self.view]

    def begun(self) -> Updates:
        """A new run has begun: what was said of the one before goes."""
        return {self.view: None}

    def ended(self, view: View) -> Updates:
        """A run has ended, or one from the log is shown."""
        return {self.view: view}

    def wire(self, player: gr.HTML, steps: gr.State, engines: Engines | None) -> None:
        """``player.select`` fires with ``index`` when the visitor settles on a step; ``steps`` holds the run's Steps.

        ``engines`` is None where no model can be asked.
        """


def layout(view: View | None = None) -> Details:
    """Lay out the panels for a recorded or logged run, or for none yet."""
    return Details(gr.State(view))
