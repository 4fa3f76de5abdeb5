"""The details below a run: panels about the run or one of its steps, each in a separate fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from specstream.runlog import RunLog

from ..export import page, story
from ..jobs.engine_host import Engines
from ..state.view import View
from . import branch, guess, lens, share
from .branch import Branch
from .guess import Guess
from .handlers import Updates
from .lens import Lens
from .share import Share


@dataclass
class Details:
    """The panels' parts. ``view`` holds the displayed run, None while one is in progress."""

    view: gr.State
    share: Share
    lens: Lens
    branch: Branch
    guess: Guess

    @property
    def outputs(self) -> list[Any]:
        """Every component that ``begun`` and ``ended`` may update."""
        own = (self.share, self.lens, self.branch, self.guess)
        return [self.view, *(part for panel in own for part in panel.outputs)]

    def begun(self) -> Updates:
        """A new run has started: clear the details of the previous one."""
        return {self.view: None} | self._shown(None)

    def ended(self, view: View) -> Updates:
        """A run has ended, or one from the log is shown."""
        return {self.view: view} | self._shown(view)

    def _shown(self, view: View | None) -> Updates:
        told = story.of_view(view) if view else None
        return self.share.show(told) | self.lens.show(view) | self.branch.show(view) | self.guess.show(view)

    def wire(self, player: gr.HTML, steps: gr.State, engines: Engines | None, runlog: RunLog | None) -> None:
        """``player.select`` fires with ``index`` when the visitor selects a step; ``steps`` holds the run's Steps.

        ``engines`` is None if there is no model to use, ``runlog`` if runs are not logged.
        """
        self.share.wire(self.view, story.of_view, page.run_page, engines)
        self.lens.wire(self.view, player, engines)
        self.branch.wire(self.view, player, engines, runlog)
        self.guess.wire(self.view)


def layout(view: View | None = None) -> Details:
    """Lay out the panels for a recorded or logged run, or for none yet."""
    told = story.of_view(view) if view else None
    return Details(gr.State(view), share.layout(told), lens.layout(view), branch.layout(view), guess.layout(view))
