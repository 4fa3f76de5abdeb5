"""The How it works tab: the method in five pictures of the recorded run, its limits, and the glossary of metrics.

Every number and token comes from the recorded run. The glossary is docs/metrics.md, word for word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from specstream.events import Fate, Lane, Origin, Step
from specstream.info import EngineInfo, top_layers
from specstream.installation import data_file
from specstream.params import METHODS
from specstream.stats import RunStats, step_cost

from ..components import walkthrough
from ..components.handlers import QUIET
from ..html import howto_pictures as pictures
from ..html import render
from ..html.render import number
from ..html.terms import explained
from ..state import recording
from ..state.recording import Recording
from ..state.view import View
from ..theme import depth_class

TAB = "howto"
IN_THE_CODE = "In the code"  # a section of the metrics for readers of the code
METRICS = data_file("docs/metrics.md")
PAPER = "https://arxiv.org/abs/2402.11131"
PAPER_NAME = "Speculative Streaming: Fast LLM Inference without Auxiliary Models"


@dataclass(frozen=True)
class Story:
    """The data of the pictures: the steps of both lanes of a run (their prompt passes first), and their numbers."""

    info: EngineInfo
    steps: list[Step]
    plain: list[Step]
    stats: dict[Lane, RunStats]
    speedup: float
    where: str

    @property
    def deepest(self) -> int:
        """The step with the deepest draft, of several the one with most accepted: it uses the most streams."""

        def worth(index: int) -> tuple[int, int]:
            draft = self.steps[index].draft
            return max(draft.depths(), default=0), draft.fate.count(Fate.ACCEPTED)

        return max(range(1, len(self.steps)), key=worth)

    @property
    def telling(self) -> int:
        """The step with the most to see: a path accepted with a branch beside it, if there is one; tokens accepted,
        then kinds of fates, then few branches side by side."""

        def worth(index: int) -> tuple[bool, bool, int, int, int]:
            step = self.steps[index]
            fates = step.draft.fate
            own = step.tokens[-1].origin is Origin.TARGET
            branches = len(fates) - len({parent for parent in step.draft.parents if parent >= 0})
            accepted = fates.count(Fate.ACCEPTED)
            return own, accepted > 1 and branches > 1, accepted, len(set(fates)), -branches

        return max(range(1, len(self.steps)), key=worth)

    def before(self, index: int) -> list[str]:
        """The texts of all tokens before a step; the last is the root of its tree."""
        return [token.text for step in self.steps[:index] for token in step.tokens]

    @property
    def cost(self) -> float:
        """Mean time of a step divided by that of a standard step."""
        return step_cost([self.stats[Lane.BASELINE]], [self.stats[Lane.METHOD]]) or 1.0


def story(recorded: Recording) -> Story:
    """Read a recorded run."""
    view = recorded.view()
    speedup = view.verdict.speedup if view.verdict else None
    where = f"{recorded.values['processor']}, {recorded.info.dtype}, {recorded.values['recorded']}"
    return Story(recorded.info, view.steps, view.plain, view.stats, speedup or 0.0, where)


# ---- the five lessons ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """A picture with its explanation. ``picture`` and ``more`` are HTML, ``words`` plain sentences."""

    title: str
    picture: str
    words: tuple[str, ...]
    more: str = ""


def lessons(tale: Story) -> list[Lesson]:
    """The five, in order."""
    return [_standard(tale), _streams(tale), _tree(tale), _verify(tale), _gain(tale)]


def _standard(tale: Story) -> Lesson:
    stats = tale.stats[Lane.BASELINE]
    return Lesson(
        "Standard decoding: one pass, one token",
        pictures.standard(tale.plain, tale.info.layers),
        (
            f"To write a token the whole model runs once, all {tale.info.layers} layers of it. What comes out goes in "
            "again, so no pass can begin before the one before has ended.",
            f"In the recorded run that made {stats.tokens} tokens in {stats.tokens} passes, the first of them over the "
            "prompt. Most of a pass is spent on fetching the model's weights, and they are fetched for one token only.",
        ),
    )


def _streams(tale: Story) -> Lesson:
    index, info = tale.deepest, tale.info
    row, own = ["", *tale.before(index)][-2:]
    return Lesson(
        "Streams: extra rows guess what follows",
        pictures.streams(row, own, tale.steps[index].draft, info.layers, info.stream_layers, info.gamma),
        (
            f"Beside each token {info.gamma} extra rows, the streams, run through {top_layers(info.stream_layers)}. "
            "Each has learned to guess one token further ahead; the number below a guess is how sure it is.",
            f"They use the model's own layers and {info.extra_parameters / 1e6:.1f} million extra weights beside its "
            f"{info.parameters / 1e6:.0f} million, so no second model is needed. The model itself never looks at them: "
            "its own next token stays what it was.",
        ),
    )


def _tree(tale: Story) -> Lesson:
    index = tale.telling
    draft = tale.steps[index].draft
    return Lesson(
        "The guesses become a tree",
        pictures.drafted(tale.before(index)[-1], draft),
        (
            "A stream rarely knows just one answer, so its likeliest tokens become branches: those of stream 1 stand "
            "below the newest token, those of stream 2 below these, and so on.",
            f"Not every combination is kept. This tree, drafted for step {index} of the recorded run, has the "
            f"{len(draft)} nodes with the largest product of probabilities on the way down.",
            "Streams don't know of each other's guesses. The bundled adapters therefore also weigh each token by how "
            "well it follows the one above it (a pair map, which the paper does not have), so that few branches are "
            "words that nobody would write in a row.",
        ),
    )


def _verify(tale: Story) -> Lesson:
    index = tale.telling
    step, root = tale.steps[index], tale.before(index)[-1]
    chosen = " ".join(f"“{pictures.label(token.text)}”" for token in step.tokens)
    return Lesson(
        "One pass checks the whole tree",
        pictures.mask(root, step.draft) + pictures.verified(root, step),
        (
            f"All {step.rows} rows go through the model together: the newest token and the {len(step.draft)} drafted "
            "ones. The mask lets each row see the text so far, its own branch and itself, so every branch is read as "
            "if it were alone.",
            "From the top the model's own choice is followed: where it was drafted the next choice is known too, and "
            f"where it was not it comes instead of a draft. Here that gave {chosen}: {len(step.tokens)} tokens "
            "from one pass, and just those that the model would have written one by one.",
        ),
    )


def _gain(tale: Story) -> Lesson:
    ours, theirs = tale.stats[Lane.METHOD], tale.stats[Lane.BASELINE]
    items = "".join(f"<li>{escape(words)}</li>" for words in limits(tale))
    return Lesson(
        "What it gains, and where it does not",
        _frames(tale.steps) + _bars(ours, theirs),
        (
            f"The same {ours.tokens} tokens took {ours.steps + 1} passes instead of {theirs.steps + 1}: "
            f"{number(ours.tokens_per_step, 2)} tokens per step. Each frame in the text is one pass.",
            f"But a pass over more rows takes longer: a step cost {tale.cost:.2f} standard steps. What is left is "
            f"{tale.speedup:.1f} times the speed of standard decoding, measured on {tale.where}.",
        ),
        f'<h3>Where it gains little or nothing</h3><ul class="ss-limits">{items}</ul>',
    )


def limits(tale: Story) -> Iterator[str]:
    """Sentences about the limits of the method, with the numbers of this run."""
    ours, top = tale.stats[Lane.METHOD], top_layers(tale.info.stream_layers)
    rows, streams = (count / max(ours.steps, 1) for count in (ours.rows, ours.stream_rows))
    yield (
        "Where arithmetic is the limit and not the fetching of weights, as on most processors: a step of this run put "
        f"{rows:.0f} rows through all layers and {streams:.0f} more through {top}, instead of 1. It pays above "
        f"{tale.cost:.2f} tokens per step, and this run made {number(ours.tokens_per_step, 2)}."
    )
    yield (
        "With many texts at a time (large batches): the hardware is busy already, and rows that are thrown away cost "
        "in full."
    )
    yield (
        "At a high temperature: the model's choice is harder to foresee, so fewer drafted tokens are accepted. The "
        "text stays right, the gain goes."
    )
    yield (
        f"With small models: drafting, accepting and keeping order took {100 * (ours.outside_share or 0):.0f} % of the "
        "time of this run's steps, and the smaller the model, the larger that share."
    )
    yield (
        "Without training: streams must be trained for a model and a kind of text, and guess worse on text of another "
        "kind."
    )


def _frames(steps: list[Step]) -> str:
    """The text of the run, with a frame for every pass, and each token in the colour of its depth."""
    passes = ("".join(_token(token.text, token.depth) for token in step.tokens) for step in steps)
    frames = "".join(f'<li class="ss-frame">{tokens}</li>' for tokens in passes)
    return f'<ol class="ss-frames" aria-label="The text of the run, pass by pass">{frames}</ol>'


def _token(text: str, depth: int) -> str:
    return f'<span class="ss-tok {depth_class(depth)}">{escape(text or pictures.END)}</span>'


def _bars(ours: RunStats, theirs: RunStats) -> str:
    """Passes and seconds of both methods."""
    counts = (("passes", theirs.steps + 1, ours.steps + 1, 0), ("seconds", theirs.seconds, ours.seconds, 2))
    rows = "".join(
        _bar("standard decoding", what, standard, longest, "d0", digits)
        + _bar(METHODS[ours.method].label, what, mine, longest, "d1", digits)
        for what, standard, mine, digits in counts
        for longest in [max(standard, mine)]
    )
    return f'<div class="ss-ideal" role="group" aria-label="Passes and seconds of both methods">{rows}</div>'


def _bar(name: str, what: str, value: float, longest: float, colour: str, digits: int) -> str:
    return (
        f'<div><span>{escape(name)}, {what}</span><span class="ss-track"><span class="ss-fill {colour}" '
        f'style="width:{100 * value / longest:.1f}%"></span></span><span class="ss-num">{value:.{digits}f}</span></div>'
    )


def html(tale: Story) -> str:
    """The five lessons as a list; each term is explained at its first occurrence."""
    known: set[str] = set()
    return f'<ol class="ss-lessons">{"".join(_lesson(lesson, known) for lesson in lessons(tale))}</ol>'


def _lesson(lesson: Lesson, known: set[str]) -> str:
    words = "".join(f"<p>{explained(sentence, known)}</p>" for sentence in lesson.words)
    return (
        f'<li class="ss-card ss-lesson"><h2>{escape(lesson.title)}</h2><div class="ss-figure">{lesson.picture}</div>'
        f"<div>{words}{lesson.more}</div></li>"
    )


# ---- the glossary ----------------------------------------------------------------------------------------------------


def glossary() -> list[tuple[str, str]]:
    """Titles and Markdown of the sections of docs/metrics.md. Links into the documentation become plain text."""
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", METRICS.read_text(encoding="utf-8"))
    first, *rest = re.split(r"(?m)^## ", text)
    sections = [("One run", first.split("\n", 1)[1].strip())]
    sections += [(title.strip(), body.strip()) for title, body in (part.split("\n", 1) for part in rest)]
    return [section for section in sections if section[0] != IN_THE_CODE]


@dataclass
class HowTo:
    """The parts that change: the walk-through, and the button that takes its step from the last run."""

    walk: gr.HTML
    mine: gr.Button
    status: gr.HTML


def wire(tab: HowTo, last: gr.State) -> None:
    """``last`` holds the run that the Playground shows."""

    def use(view: View | None) -> dict[Any, Any]:
        found = walkthrough.message(view, "From your last run in the Playground.") if view else ""
        if not found:
            words = "There is no run with guesses yet: run a prompt in the Playground first."
            return {tab.status: render.status(words, "bad")}
        return {tab.walk: found, tab.status: ""}

    tab.mine.click(use, last, [tab.walk, tab.status], queue=False, **QUIET)


def layout() -> HowTo:
    """Lay out the tab."""
    recorded = recording.load()
    with gr.Column(elem_classes="ss-guide"):
        walk = walkthrough.component(walkthrough.message(recorded.view(), "From the recorded run."))
        with gr.Row():
            mine = gr.Button("Use my last run", size="sm", scale=0, min_width=160)
            status = gr.HTML(min_width=200)
        gr.HTML(
            f'<p class="ss-lead">The pictures are drawn from a recorded run. {escape(recorded.about)} The method is '
            f'from the paper <a href="{PAPER}" target="_blank" rel="noopener">{PAPER_NAME} (arXiv 2402.11131)</a>.</p>'
        )
        gr.HTML(html(story(recorded)))
        gr.HTML('<h2 class="ss-heading">Glossary: every number on these pages, and its formula</h2>')
        for place, (title, body) in enumerate(glossary()):
            with gr.Accordion(title, open=place == 0):
                gr.Markdown(body, elem_classes="ss-glossary")
    return HowTo(walk, mine, status)
