"""The whole page: tabs, theme and named endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from specstream.runlog import RunLog

from . import api, first_script
from .access_rules import OPEN, Rules
from .export import page
from .html import render
from .jobs.engine_host import Engines
from .tabs import benchmark, compare, finetune, howto, playground, sessions

KEYS = Path(__file__).parent / "keys.html"
NO_FILES = 1  # bytes of an upload where none is allowed: gradio's endpoint accepts files even if no field needs one
TITLE = "Speculative Streaming"
HEADER = (
    '<header class="ss-header"><a class="ss-skip" href="#">Skip to the main button</a><h1>Speculative Streaming</h1>'
    "<p>The model guesses its next few words, checks them all at once and keeps the right ones. Same text, fewer "
    "passes.</p></header>"
)


class Page(gr.Blocks):
    """Gradio's page, in which programs may omit trailing arguments of a call: they have defaults."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        if block_fn.api_visibility == "public":
            inputs += [part.value for part in block_fn.inputs[len(inputs) :]]
        super().validate_inputs(block_fn, inputs)


def build(engines: Engines, runlog: RunLog | None, warning: str = "") -> gr.Blocks:
    """The page for an engine and a log. ``runlog`` None: runs are not logged, which ``warning`` explains at the top."""
    rules = engines.rules
    with Page(title=TITLE, analytics_enabled=False) as demo:
        gr.HTML(HEADER)
        if rules.words:
            gr.HTML(render.status(rules.words))
        if warning:
            gr.HTML(render.status(warning, "bad"))
        with gr.Tabs() as tabs:
            with gr.Tab("Playground", id="playground"):
                play = playground.layout(engines)
            with gr.Tab("Compare", id="compare") as race_tab:
                contest = compare.layout()
            with gr.Tab("Benchmark", id=benchmark.TAB) as bench_tab:
                measured = benchmark.layout(engines)
            with gr.Tab("Sessions", id=sessions.TAB) as tab:
                logged = sessions.layout()
            if rules.may_train:
                with gr.Tab("Fine-tune", id=finetune.TAB) as train_tab:
                    training = finetune.layout(engines)
                finetune.wire(training, train_tab, tabs, demo, engines, play)
            with gr.Tab("How it works", id=howto.TAB):
                learned = howto.layout()
        playground.wire(play, demo, engines, runlog)
        compare.wire(contest, race_tab, demo, engines, runlog, play)
        play.task.change(None, play.task, measured.form.task, js=compare.SAME, api_visibility="private")
        benchmark.wire(measured, bench_tab, tabs, demo, engines, runlog, play)
        howto.wire(learned, play.view.details.view)
        sessions.wire(logged, tab, demo, engines, runlog)
        sessions.wire_links(logged, tabs, demo, runlog, rules)
        api.add(engines, runlog)
    return demo.queue(max_size=2 * playground.MOST_WAITING)


def launch_options(rules: Rules = OPEN) -> dict[str, Any]:
    """Arguments that gradio 6 takes at launch instead of at build: the theme, and what is switched off."""
    return {
        "max_file_size": None if rules.may_upload else NO_FILES,
        "theme": look(),
        "css": page.style(),
        "head": KEYS.read_text(encoding="utf-8"),
        "app_kwargs": {"middleware": [Middleware(first_script.FirstScript)]},
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "run_history": False,
        "_frontend": False,  # gradio's check of its own page has a timeout, which made the start fail on a busy machine
        "max_threads": 2 * playground.MOST_WAITING
        + 32,  # every waiting visitor occupies one; Stop must find a free one
    }


def look() -> gr.themes.Base:
    """Gradio's theme in the page's colours, with darker buttons and hints for legibility."""
    readable = {"block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300"}
    for mode in ("", "_dark"):
        readable[f"button_primary_background_fill{mode}"] = "*primary_700"
        readable[f"button_primary_background_fill_hover{mode}"] = "*primary_800"
        readable[f"button_cancel_background_fill{mode}"] = "#b42318"
        readable[f"button_cancel_background_fill_hover{mode}"] = "#8f1a12"
    # Gradio's semibold files lack most letters; bold ones are used instead.
    text, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("Source Sans Pro", "IBM Plex Mono"))
    fonts: dict[str, Any] = {
        "font": [text, "system-ui", "sans-serif"],
        "font_mono": [mono, "ui-monospace", "monospace"],
    }
    return gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts).set(**readable)
