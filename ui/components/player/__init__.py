"""The player: a run's text, tree and steps in the browser, fed by ``ui.state.feed``."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
SCRIPTS = ("words", "text", "tree", "detail", "walk")


def text(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def script() -> str:
    """All scripts as one, which uses ``element``, ``props``, ``watch`` and ``trigger`` as provided by gradio."""
    return "\n".join(text(f"{name}.js") for name in SCRIPTS)


def player(value: str = "", elem_id: str | None = None) -> gr.HTML:
    """A component that shows the messages of ``ui.state.feed`` live and lets the user walk through the steps.

    Its value is a message as JSON text. Text from the model is set with textContent only. It fires ``select`` with
    ``index`` when the user selects a step, and ``play`` when it has drawn the beginning of a live run. (A subclass
    would make gradio write a stub file beside this one.)
    """
    return gr.HTML(
        value,
        html_template=text("player.html"),
        js_on_load=script(),
        apply_default_css=False,
        elem_id=elem_id,
    )
