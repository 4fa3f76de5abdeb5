"""A game: the visitor guesses the next words of the run, competing with the streams."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from specstream.events import Fate
from specstream.stats import counted

from ..html import render
from ..state.view import View
from .handlers import QUIET, Updates

NAME = "Guess against the streams"
WORDS = 5  # that count
SHOWN = 300  # characters of the text before
AT_ONCE: dict[str, Any] = QUIET | {"queue": False}
Score = tuple[int, int]  # words guessed correctly by the visitor and by the streams


@dataclass
class Guess:
    """The panel's parts. ``place`` is the step to guess, ``score`` the correct guesses of both so far."""

    fold: gr.Accordion
    place: gr.State
    score: gr.State
    text: gr.HTML
    typed: gr.Textbox
    check: gr.Button
    another: gr.Button
    said: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.fold, self.place, self.score, self.text, self.typed, self.said]

    def show(self, view: View | None) -> Updates:
        """Another run is shown, or none."""
        if view is None or not places(view):
            return {self.fold: gr.update(visible=False)}
        return {self.fold: gr.update(visible=True), self.score: (0, 0), **self.ask(view)}

    def ask(self, view: View) -> Updates:
        """Another place to guess at."""
        index = random.choice(places(view))
        return {self.place: index, self.text: before(view, index), self.typed: "", self.said: ""}

    def wire(self, view: gr.State) -> None:
        """Connect the buttons."""

        def another(shown: View | None) -> Updates:
            return self.ask(shown) if shown and places(shown) else {self.said: render.status("Run a prompt first.")}

        def check(shown: View | None, index: int, typed: str, score: Score) -> Updates:
            if shown is None or index not in places(shown):
                return {self.said: render.status("Run a prompt first.")}
            if not (typed or "").strip():
                return {self.said: render.status("Type the words that you think come next.")}
            yours, theirs, words = judged(shown, index, typed)
            total = score[0] + yours, score[1] + theirs
            return {self.score: total, self.said: result(yours, theirs, words, total)}

        given = [view, self.place, self.typed, self.score]
        self.another.click(another, view, self.outputs, **AT_ONCE)
        gr.on([self.check.click, self.typed.submit], check, given, self.outputs, **AT_ONCE)


def places(view: View) -> list[int]:
    """Steps whose drafts begin a word and can be guessed, with some text before and after."""
    return [
        i for i, step in enumerate(view.steps)
        if i and len(step.draft) and step.tokens and step.tokens[0].text[:1] == " "
    ]  # fmt: skip


def before(view: View, index: int) -> str:
    """The text up to a step."""
    text = "".join(token.text for step in view.steps[:index] for token in step.tokens)[-SHOWN:]
    return f'<p class="ss-so-far-of">…{escape(text.lstrip())} <mark>?</mark></p>'


def judged(view: View, index: int, typed: str) -> tuple[int, int, list[str]]:
    """How many words in a row the visitor and the streams guessed correctly, and the actual words."""
    after = "".join(token.text for step in view.steps[index:] for token in step.tokens) + view.tail
    words = re.findall(r"\S+", after)[:WORDS]
    kept = view.steps[index].draft.fate.count(Fate.ACCEPTED)
    drafted = "".join(token.text for token in view.steps[index].tokens[:kept])
    whole = drafted if after[len(drafted) : len(drafted) + 1].strip() == "" else drafted.rpartition(" ")[0]
    return in_a_row(typed, words), in_a_row(whole, words), words


def in_a_row(text: str, words: list[str]) -> int:
    """How many leading words are equal, ignoring case and punctuation."""
    plain = [re.sub(r"\W", "", word).lower() for word in re.findall(r"\S+", text)]
    same = [a == re.sub(r"\W", "", b).lower() for a, b in zip(plain, words, strict=False)]
    return same.index(False) if False in same else len(same)


def result(yours: int, theirs: int, words: list[str], total: Score) -> str:
    """The result of a guess."""
    won = "You win" if yours > theirs else "The streams win" if theirs > yours else "A draw"
    said = f"{won}: you had {counted(yours, 'word')} right, the streams {theirs}. The model wrote “{' '.join(words)}”."
    tone = "good" if yours >= theirs else "plain"
    return render.status(said, tone) + render.status(f"So far: you {total[0]}, the streams {total[1]}.")


def layout(view: View | None = None) -> Guess:
    """Lay out the panel."""
    there = places(view) if view else []
    with gr.Accordion(NAME, open=False, visible=bool(there)) as fold:
        text = gr.HTML(before(view, there[0]) if view and there else "")
        with gr.Row(elem_classes="ss-search"):
            typed = gr.Textbox(label="What comes next?", placeholder=f"up to {WORDS} words", max_length=200, scale=4)
            check = gr.Button("Compare", size="sm", scale=0, min_width=100)
            another = gr.Button("Another place", size="sm", scale=0, min_width=120)
        said = gr.HTML()
    return Guess(fold, gr.State(there[0] if there else 0), gr.State((0, 0)), text, typed, check, another, said)
