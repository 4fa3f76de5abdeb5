"""A conversation as HTML, the newest answer in the colours of its guesses. Every text from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from specstream.events import Step

from ..theme import depth_class

NOTHING_YET = "A conversation: each message is answered with all that was said before."
STOPPED = "stopped: not part of the conversation"


def conversation(
    turns: Sequence[tuple[str, str]], message: str | None = None, steps: Sequence[Step] = (), stopped: bool = False
) -> str:
    """A chat, oldest turn first. ``message`` is one that is being answered, with ``steps`` so far, or one whose answer
    was ``stopped``; without a message ``steps`` are those of the last answer."""
    said = [text for turn in turns for text in (_said("You", escape(turn[0].strip())), _reply(turn[1]))]
    if message is not None:
        said += [_said("You", escape(message.strip())), _answer(steps, stopped)]
    elif turns and steps:
        said[-1] = _said("Model", coloured(steps))
    if not said:
        return f'<p class="ss-note ss-plain">{NOTHING_YET}</p>'
    return f'<div class="ss-turns" role="log" aria-label="Conversation" tabindex="0"><ol>{"".join(said)}</ol></div>'


def coloured(steps: Iterable[Step]) -> str:
    """A text with its guessed tokens in the colours of their depths, without surrounding spaces, like every turn."""
    tokens = [token for step in steps for token in step.tokens]
    return "".join(
        f'<span class="ss-tok {depth_class(token.depth)}">{escape(text)}</span>'
        for token, text in zip(tokens, _stripped([token.text for token in tokens]), strict=True)
        if text
    )


def _stripped(texts: Sequence[str]) -> Iterable[str]:
    """The parts of a text without the spaces before its first word and after its last."""
    whole = "".join(texts)
    start, end, at = len(whole) - len(whole.lstrip()), len(whole.rstrip()), 0
    for text in texts:
        yield whole[max(at, start) : min(at + len(text), end)]
        at += len(text)


def _reply(text: str) -> str:
    return _said("Model", escape(text.strip()))


def _answer(steps: Sequence[Step], stopped: bool) -> str:
    if stopped:
        return _said("Model", coloured(steps), " ss-stopped-turn", f' <em class="ss-cut">{STOPPED}</em>')
    return _said("Model", coloured(steps) or "…", " ss-pending" if not steps else "")


def _said(who: str, html: str, more: str = "", mark: str = "") -> str:
    return (
        f'<li class="ss-{who.lower()}{more}"><span class="ss-who">{who}{mark}</span>'
        f'<div class="ss-said" dir="auto">{html}</div></li>'
    )
