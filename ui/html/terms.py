"""Terms of the method that are explained in place, on hover and focus."""

from __future__ import annotations

import re
from html import escape

TERMS = {
    "pass": "One run of the whole model over some tokens. It takes nearly as long for five tokens as for one.",
    "draft": "The words that are guessed ahead, before the model has checked them.",
    "depth": "How many tokens ahead of the newest one a guess is: 1 is the next token.",
    "stream": "An extra row beside the text in the model's top layers, trained to guess one token further ahead.",
    "adapter": "A small file of trained weights for one model and one kind of text: with it the model guesses ahead.",
}
_PLURALS = {"passes": "pass", "drafts": "draft", "depths": "depth", "streams": "stream", "adapters": "adapter"}
_WORD = re.compile(r"\b(" + "|".join([*_PLURALS, *TERMS]) + r")\b", re.IGNORECASE)


def explained(text: str, known: set[str] | None = None) -> str:
    """Plain text as HTML, each term explained at its first occurrence. ``known`` collects the explained terms."""
    known = set() if known is None else known

    def term(found: re.Match[str]) -> str:
        name = _PLURALS.get(found[0].lower(), found[0].lower())
        if name in known:
            return found[0]
        known.add(name)
        return f'<dfn class="ss-term" tabindex="0" data-means="{escape(TERMS[name])}">{found[0]}</dfn>'

    return _WORD.sub(term, escape(text))
