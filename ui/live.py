"""The player: a run's text, tree and steps in the browser, fed by ``ui.feed``."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent / "player"


def player() -> gr.HTML:
    """A component that shows the messages of ``ui.feed`` live and lets the user walk through the steps.

    Its value is a message as JSON text. Text from the model is set with textContent only. It fires ``select`` with
    ``index`` when the user settles on a step. (A subclass would make gradio write a stub file beside this one.)
    """
    return gr.HTML(
        html_template=(HERE / "player.html").read_text(encoding="utf-8"),
        js_on_load=(HERE / "player.js").read_text(encoding="utf-8"),
        apply_default_css=False,
    )
