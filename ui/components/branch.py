"""Branching: a new run from any token of a run, or from a rejected guess, shown beside the original run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.context import Context

from specstream import params
from specstream.data.chat import Chat
from specstream.params import Sampling, Standard
from specstream.runlog import RunLog
from specstream.stats import counted

from ..html import render
from ..jobs import visitor
from ..jobs.engine_host import Engines
from ..jobs.lens import same_model
from ..jobs.runs import RunJob, RunRequest
from ..state.feed import Feed
from ..state.history import shorten
from ..state.view import View
from .handlers import QUIET, Updates

NAME = "Continue from another word"
HINT = "Click any token of the run above, in the text or in the tree, then continue from there."


@dataclass
class Branch:
    """The panel's parts. ``begin`` is how the new run's text begins, empty while nothing is chosen."""

    fold: gr.Accordion
    begin: gr.State
    key: gr.Textbox
    button: gr.Button
    status: gr.HTML
    shown: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.fold, self.begin, self.button, self.status, self.shown]

    def show(self, view: View | None) -> Updates:
        """Another run is shown, or none."""
        there = view is not None and view.origin is not None and bool(view.steps)
        nothing = {self.begin: "", self.shown: "", self.status: render.status(HINT)}
        return nothing | {self.fold: gr.update(visible=there), self.button: gr.update(visible=False)}

    def chosen(self, view: View, index: int, node: int, token: int) -> Updates:
        """A token or a node was clicked."""
        begin, last = beginning(view, index, node, token)
        if not begin.strip():
            return {self.begin: ""}
        words = f"Continue from “{shorten(last.strip())}”"
        return {self.begin: begin, self.button: gr.update(visible=True, value=words)}

    def wire(self, view: gr.State, player: gr.HTML, engines: Engines | None, runlog: RunLog | None) -> None:
        """React to clicks in the player. ``engines`` None: nothing can be run."""
        if engines is None:
            return
        if Context.root_block is not None:  # the page that is being built
            visitor.wire(self.key, Context.root_block)

        def clicked(shown: View | None, event: gr.EventData) -> Updates:
            if shown is None or not shown.steps:
                return {self.begin: ""}
            found = (int(event._data.get(name, -1)) for name in ("index", "node", "token"))
            return self.chosen(shown, *found)

        def run(shown: View | None, begin: str, key: str, request: gr.Request) -> Iterator[Updates]:
            if shown is None or not begin:
                yield {self.status: render.status(HINT, "bad")}
                return
            try:
                if engines.state.info is not None and shown.origin is not None:
                    same_model(engines.state.info, shown.origin)
                job = RunJob(engines, runlog, asked(shown, begin), visitor.name(key, request))
            except ValueError as error:
                yield {self.status: render.status(str(error), "bad")}
                return
            yield from self.follow(shown, begin, job, str(request.session_hash))

        player.input(clicked, view, self.outputs, queue=False, **QUIET)
        self.button.click(run, [view, self.begin, self.key], self.outputs, concurrency_limit=None, **QUIET)

    def follow(self, first: View, begin: str, job: RunJob, session: str) -> Iterator[Updates]:
        """The new run as it is written, beside the first."""
        view = View(Feed("branch"))
        busy = {self.button: gr.update(interactive=False)}
        with closing(job.batches(session)) as batches:
            for batch in batches:
                for item in batch:
                    view.add(item)
                words = render.status(view.words, view.tone)
                yield busy | {self.status: words, self.shown: both(first, view, begin)}
        view.close(job.stop.is_set())
        words = render.status(view.words, view.tone)
        yield {self.button: gr.update(interactive=True), self.status: words, self.shown: both(first, view, begin)}


def beginning(view: View, index: int, node: int, token: int) -> tuple[str, str]:
    """The text up to a token of a step, or up to a node of its tree including its ancestors; and that token's text."""
    index = min(max(index, 0), len(view.steps) - 1)
    step = view.steps[index]
    before = "".join(one.text for other in view.steps[:index] for one in other.tokens)
    if 0 <= token < len(step.tokens):
        return before + "".join(one.text for one in step.tokens[: token + 1]), step.tokens[token].text
    path = []
    while 0 <= node < len(step.draft):
        path.append(step.draft.texts[node])
        node = step.draft.parents[node]
    return before + "".join(reversed(path)), path[0] if path else ""


def asked(view: View, begin: str) -> RunRequest:
    """The request of the first run, with the start of its text given. Raises ValueError for obsolete settings."""
    assert view.origin is not None, "a run of unknown origin"
    settings = view.origin.settings or {}
    sampling = dict(settings.get("sampling", {}))
    sampling["stop"] = tuple(sampling.get("stop", ()))
    method = params.method(view.origin.method, **settings.get("method", {}))
    chat = Chat.from_dict(settings["chat"]) if settings.get("chat") else None
    baseline = not isinstance(method, Standard)
    given = (settings.get("branch") or {}).get("after", "")
    return RunRequest(view.origin.prompt, view.origin.task, method, Sampling(**sampling), baseline, chat, given + begin,
               view.log_id)  # fmt: skip


def both(first: View, branch: View, begin: str) -> str:
    """The two texts side by side; what they share is marked."""
    shared = f'<mark class="ss-shared">{escape(begin)}</mark>'
    kept = first.text[len(begin) :] if first.text.startswith(begin) else ""
    one = f"{shared}{escape(kept)}" if kept else escape(first.text)
    other = f"{shared}{escape(branch.text)}"
    panes = _pane("The first run", one, first) + _pane("From there", other, branch)
    return f'<div class="ss-lanes ss-branches">{panes}</div>'


def _pane(name: str, text: str, view: View) -> str:
    passes = len(view.steps)
    tokens = counted(sum(len(step.tokens) for step in view.steps), "token")
    facts = f"{tokens} in {passes} pass{'' if passes == 1 else 'es'}"
    where = (
        f' · <a href="?run={escape(view.log_id)}" target="_blank" rel="noopener">in the log</a>' if view.log_id else ""
    )
    return (
        f'<section class="ss-lane" aria-label="{name}"><h3>{name}</h3><div class="ss-text" tabindex="0" role="region" '
        f'aria-label="Text: {name}">{text}</div><p class="ss-words">{facts}{where}</p></section>'
    )


def layout(view: View | None = None) -> Branch:
    """Lay out the panel."""
    with gr.Accordion(NAME, open=False, visible=view is not None) as fold:
        status = gr.HTML(render.status(HINT))
        button = gr.Button("Continue", size="sm", scale=0, min_width=180, visible=False, variant="primary")
        shown = gr.HTML()
    return Branch(fold, gr.State(""), visitor.layout(), button, status, shown)
