"""A hint if the loaded adapter does not match the chosen task, and a button that loads the one that does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from specstream.adapters.find import bundled
from specstream.data.tasks import TASKS
from specstream.info import EngineInfo

from ..html import render
from ..jobs.engine_host import State
from ..state.methods import mismatch
from .handlers import Updates


@dataclass
class Suit:
    """The hint's parts."""

    group: gr.Row
    words: gr.HTML
    load: gr.Button
    reason: gr.HTML  # why the chosen method can't run

    @property
    def outputs(self) -> list[Any]:
        return [self.group, self.words, self.load]

    def updates(self, task: str, info: EngineInfo | None) -> Updates:
        """The hint for a task, none if everything matches."""
        words = mismatch(task, info) if info else ""
        return {
            self.group: gr.update(visible=bool(words)),
            self.words: render.sentences([words] if words else []),
            self.load: gr.update(visible=bool(words and info and task in bundled(info.model))),
        }


def hint(task: str, info: EngineInfo | None) -> Any:
    """The same sentence for a tab without the button; hidden if everything matches."""
    words = mismatch(task, info) if info else ""
    return gr.update(value=render.sentences([words] if words else []), visible=bool(words))


def layout() -> Suit:
    """Lay out the hint, hidden."""
    with gr.Row(visible=False, elem_classes="ss-suit") as group:
        words = gr.HTML(min_width=240)
        load = gr.Button("Load the adapter for this task", size="sm", scale=0, min_width=240)
    return Suit(group, words, load, gr.HTML(visible=False))


def loads_by_itself(task: str, state: State, choice: Mapping[str, str]) -> bool:
    """Whether choosing a task loads its adapter; it never replaces one that the visitor chose by name."""
    info = state.info
    if info is None or state.loading or task not in TASKS or task == info.task:
        return False
    known = bundled(info.model)
    return task in known and choice.get("adapter", "auto") in ("auto", *known)
