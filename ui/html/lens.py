"""The stream lens as HTML: every stream's predictions at each of its layers, its attention, and the actual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from specstream.stats import counted

from ..theme import depth_class
from .render import NOTHING

AROUND = 6  # tokens shown before and after an attended one
WORDS = (
    "Each column is a stream: an extra row that guesses one token further ahead. Read it upwards: what it would have "
    "guessed when it began, and after each layer that it went through. ✓ marks what the model wrote there in the end."
)


def panel(look: Mapping[str, Any], step: int, root: str, came: Sequence[str]) -> str:
    """The streams' table. ``came`` are the texts of the tokens that followed the root; fewer if the text ended."""
    streams = look["streams"]
    came = [*came, *[""] * len(streams)][: len(streams)]
    head = "".join(f'<th scope="col">{counted(n, "token")} ahead</th>' for n in range(1, len(streams) + 1))
    rows = "".join(_row(look, layer, came) for layer in reversed(range(len(look["layers"]))))
    truth = "".join(f"<td>{_token(text, depth) if text else NOTHING}</td>" for depth, text in enumerate(came, 1))
    where = "".join(f"<td>{_looked(stream['looked'])}</td>" for stream in streams)
    return (
        f'<section class="ss-lens" aria-label="The streams of step {step}"><p class="ss-words">{WORDS}</p>'
        f'<div class="ss-scroll" tabindex="0" role="region" aria-label="What the streams of step {step} believed">'
        f'<table><thead><tr><th scope="col">after “{visible(root)}”</th>{head}</tr></thead><tbody>'
        f'<tr class="ss-truth"><th scope="row">what came</th>{truth}</tr>{rows}'
        f'<tr><th scope="row">looked most at</th>{where}</tr></tbody></table></div>{_text(look)}</section>'
    )


def _row(look: Mapping[str, Any], layer: int, came: Sequence[str]) -> str:
    name = f"after layer {look['layers'][layer]}" if layer else "when it began"
    cells = (_beliefs(s["beliefs"][layer], truth) for s, truth in zip(look["streams"], came, strict=True))
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _beliefs(found: Sequence[Sequence[Any]], truth: str) -> str:
    items = (
        f'<li class="{"ss-true" if text == truth else ""}" style="--share:{prob:.3f}"><code>{visible(text)}</code>'
        f"<span>{'✓ ' if text == truth else ''}{prob:.0%}</span></li>"
        for text, prob in found
    )
    return f"<ol>{''.join(items)}</ol>"


def _looked(places: Sequence[Sequence[Any]]) -> str:
    if not places:
        return NOTHING
    return "<br>".join(f"<code>{visible(text)}</code> {share:.0%}" for _, text, share in places[:3])


def _token(text: str, depth: int) -> str:
    return f'<span class="ss-tok {depth_class(depth)}">{visible(text)}</span>'


def _text(look: Mapping[str, Any]) -> str:
    """The preceding text, with the tokens marked that the streams attended to; the rest is left out."""
    texts, shares = look.get("text") or [], dict[int, float]()
    for stream in look["streams"]:
        for place, _, share in stream["looked"]:
            shares[place] = max(share, shares.get(place, 0.0))
    if not texts or not shares:
        return ""
    near = {n for place in shares for n in range(place - AROUND, place + AROUND + 1)}
    pieces, gap = [], False
    for n, text in enumerate(texts):
        if n not in near:
            pieces += [] if gap else ["…"]
        elif n in shares:
            strength = min(1.0, 2 * shares[n])
            pieces.append(f'<mark style="--share:{strength:.2f}" title="{shares[n]:.0%} of a stream\'s attention">'
                          f"{escape(text)}</mark>")  # fmt: skip
        else:
            pieces.append(escape(text))
        gap = n not in near
    return (
        '<h3>Where they looked</h3><p class="ss-words">The text that the model had read and written so far; the '
        f'stronger the mark, the more a stream looked there.</p><p class="ss-looked">{"".join(pieces)}</p>'
    )


def visible(text: str) -> str:
    """A token's text, escaped, with visible blanks."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    shown = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in shown)
    return escape("␣" + shown[1:] if shown.startswith(" ") else shown) or "∅"
