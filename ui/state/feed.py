"""Events of a run as compact messages for the player in the browser. Pure, no gradio.

A message is ``{run, seq, title, note, drafter, done, at, method, baseline}``; ``note`` says that this is no live run,
``drafter`` names the method. ``method`` and ``baseline`` are the steps that are new since the last message and ``at``
says how many came before, so the whole run (``at`` 0) repairs whatever was missed. A step is ``{t: tokens, d: tree, s:
milliseconds per phase, r: rows, sr: stream rows}``, with ``e`` 1 for a last step that had one token left to write, and
so nothing to draft, and ``c`` the nodes that were copied from the text before, if any; a token is ``[text, depth,
probability, node]``; a node is ``[text, parent, drafted probability, fate, target probability or null, row]``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from specstream.events import Draft, Event, Fate, Finished, Lane, Reason, Started, Step, Token
from specstream.stats import PHASES

from ..html.render import tree_rows

CODES = {Fate.ACCEPTED: "a", Fate.REJECTED: "r", Fate.UNREACHED: "u", Fate.PRUNED: "p"}


@dataclass
class Feed:
    """Collects the steps of a run and says what is new."""

    run: str
    title: str = "Text"
    note: str = ""
    drafter: str = ""
    seq: int = 0
    steps: dict[Lane, list[dict[str, Any]]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    sent: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))

    def add(self, lane: Lane, event: Event) -> None:
        """Fold one event in. Text held back until the end is added to the last token's."""
        if isinstance(event, Step):
            self.steps[lane].append(step_values(event))
        elif isinstance(event, Started) and lane is Lane.METHOD:
            self.drafter = event.method
        elif isinstance(event, Finished) and self.steps[lane]:
            self._end(self.steps[lane], event)

    def _end(self, steps: list[dict[str, Any]], event: Finished) -> None:
        if event.tail:
            [token for step in steps for token in step["t"]][-1][0] += event.tail
        if event.reason in (Reason.LENGTH, Reason.CONTEXT) and not steps[-1]["d"]:
            steps[-1]["e"] = 1

    def new(self) -> dict[str, Any]:
        """The steps since the last message."""
        return self._message(dict(self.sent), done=False)

    def whole(self) -> dict[str, Any]:
        """All steps: the last message of a run, or a logged run."""
        return self._message(dict.fromkeys(Lane, 0), done=True)

    def _message(self, at: dict[Lane, int], done: bool) -> dict[str, Any]:
        self.seq += 1
        self.sent = {lane: len(steps) for lane, steps in self.steps.items()}
        new = {str(lane): steps[at[lane] :] for lane, steps in self.steps.items()}
        places = {str(lane): n for lane, n in at.items()}
        about = {"run": self.run, "seq": self.seq, "title": self.title, "note": self.note}
        about |= {"drafter": self.drafter}
        return about | {"done": done, "at": places} | new


def encode(message: dict[str, Any]) -> str:
    """A message as JSON text, without a bare ``<``.

    Deliberately text: gradio sends lists as differences to the previous list, and mishandles shrinking nested lists.
    """
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def step_values(step: Step) -> dict[str, Any]:
    """A step as the player reads it."""
    copied = [node for node, copy in enumerate(step.draft.copied) if copy]
    return ({"c": copied} if copied else {}) | {
        "t": [_token(token) for token in step.tokens],
        "d": nodes(step.draft),
        "s": [round(1000 * step.seconds.get(phase, 0.0), 3) for phase in PHASES],
        "r": step.rows,
        "sr": step.stream_rows,
    }


def _token(token: Token) -> list[Any]:
    return [token.text, token.depth, round(math.exp(token.logprob), 3), token.node]


def nodes(draft: Draft) -> list[list[Any]]:
    """A draft's nodes with their positions; parents before children."""
    targets = draft.target_probs or (None,) * len(draft)
    rows = tree_rows(draft)
    return [
        [text, parent, round(prob, 3), CODES[fate], None if target is None else round(target, 3), row]
        for text, parent, prob, fate, target, row in zip(
            draft.texts, draft.parents, draft.probs, draft.fate, targets, rows, strict=True
        )
    ]
