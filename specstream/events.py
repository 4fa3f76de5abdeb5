"""The events of a run: frozen values that need only the standard library.

A run is a sequence ``Started, Step(index=0, the prompt pass), Step, ..., Finished``. The page, the log,
the benchmark and the command line are folds over this sequence; none of them sees the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """Where an emitted token came from."""

    DRAFT = "draft"  # drafted by the streams (or another drafter) and accepted by the target
    TARGET = "target"  # the target's own choice: first token, standard step, correction or bonus


class Fate(StrEnum):
    """The fate of one node of a draft tree."""

    ACCEPTED = "accepted"  # on the path that the target agreed with, and emitted
    REJECTED = "rejected"  # its parent was accepted, but the target chose another token
    UNREACHED = "unreached"  # its parent was not accepted, so it was never compared
    PRUNED = "pruned"  # dropped inside the pass, before the top layers: the target never scored it


class Reason(StrEnum):
    """Why a run ended."""

    EOS = "eos"
    STOP_STRING = "stop_string"
    LENGTH = "length"  # max_new_tokens
    CONTEXT = "context"  # the end of the model's context
    STOPPED = "stopped"  # by the user
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Token:
    """One emitted token.

    ``text`` is what this token adds to the visible text: the texts of all tokens plus ``Finished.tail`` make the whole
    text. It is empty while a character is incomplete or may be the start of a stop string.
    ``depth`` is the depth in the draft tree (1 = child of the root) for drafted tokens, 0 for the target's own.
    ``node`` is the index in ``Step.draft`` for drafted tokens, -1 otherwise.
    ``logprob`` is the natural log of the target's own probability (temperature 1, no truncation).
    """

    id: int
    text: str
    origin: Origin
    depth: int = 0
    node: int = -1
    logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of drafted tokens, parents before children. The root (the newest committed token) is not listed.

    ``parents[i]`` is the index of node i's parent, or -1 for a child of the root.
    ``probs[i]`` is the drafter's probability of the token at its depth.
    ``fate`` and ``target_probs`` are filled after verification; ``target_probs[i]`` is the target's probability
    (temperature 1) of the token after its parent, or None where the parent was not reached.
    ``texts`` are the tokens for display. ``copied[i]`` says that node i is an n-gram copy of earlier text rather than
    the method's own prediction. All tuples have one entry per node; ``copied`` may also be empty, if none is.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    fate: tuple[Fate, ...] = ()
    target_probs: tuple[float | None, ...] = ()
    texts: tuple[str, ...] = ()
    copied: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> tuple[int, ...]:
        """Depth of every node; children of the root have depth 1."""
        out: list[int] = []
        for parent in self.parents:
            out.append(1 if parent < 0 else out[parent] + 1)
        return tuple(out)


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins. ``settings`` are the sampling and method parameters as plain values."""

    method: str
    prompt_tokens: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One target pass and its outcome. Index 0 is the prompt pass, which emits the first token.

    ``seconds`` per phase: ``draft`` (the tree), ``draft_pass`` (computing the drafts' probabilities, such as deferred
    streams), ``verify`` (the forward pass), ``accept``, ``keep`` (cache). ``rows`` counts the rows of the lower layers
    (root and tree, pruned nodes included), ``stream_rows`` the stream rows of the top layers, in this pass or before
    it (deferred).
    """

    index: int
    draft: Draft
    tokens: tuple[Token, ...]
    seconds: dict[str, float]
    rows: int
    stream_rows: int = 0

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def pruned(self) -> int:
        """Drafted nodes that went through the lower layers but not through the top ones."""
        return self.draft.fate.count(Fate.PRUNED)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run ended. ``message`` is a sentence when the reason is ``error``.

    ``tail`` is text held back until now, because it might have become part of a stop string or was an incomplete
    character. It follows the text of the last token.
    """

    reason: Reason
    message: str = ""
    tail: str = ""


Event = Started | Step | Finished


class Lane(StrEnum):
    """Which of the two runs of a session an event belongs to."""

    METHOD = "method"
    BASELINE = "baseline"  # standard decoding of the same prompt, timed in the same session


class Agreement(StrEnum):
    """How the output of a method compares with that of standard decoding."""

    IDENTICAL = "identical"  # token for token
    TIE = "tie"  # first difference where the two likeliest tokens are equal within rounding
    MISMATCH = "mismatch"  # a real difference: a bug
    UNKNOWN = "unknown"  # standard decoding was switched off, or one of the runs was stopped early


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a session. ``speedup`` is measured, or None.

    ``position`` is the index of the first differing token, ``margin`` the gap there between the scores of
    the two tokens (logits after the warpers, with the run's noise when sampling). ``message`` is a sentence.
    """

    agreement: Agreement
    compared: int
    message: str
    position: int | None = None
    margin: float | None = None
    speedup: float | None = None


_KINDS: dict[str, type] = {"started": Started, "step": Step, "finished": Finished}


def to_dict(event: Event) -> dict[str, Any]:
    """Plain JSON-ready values of an event, with a ``kind``."""
    kind = type(event).__name__.lower()
    return {"kind": kind} | {f.name: _plain(getattr(event, f.name)) for f in fields(event)}


def from_dict(data: dict[str, Any]) -> Event:
    """The event that ``to_dict`` wrote. Raises ValueError for an unknown kind."""
    values = dict(data)
    kind = values.pop("kind", None)
    if kind == "step":
        values["draft"] = draft_from_dict(values["draft"])
        values["tokens"] = tuple(Token(**t | {"origin": Origin(t["origin"])}) for t in values["tokens"])
    elif kind == "finished":
        values["reason"] = Reason(values["reason"])
    if kind not in _KINDS:
        raise ValueError(f"unknown event kind {kind!r}")
    return _KINDS[kind](**values)


def draft_from_dict(data: dict[str, Any]) -> Draft:
    """A Draft from plain lists."""
    values = {name: tuple(items) for name, items in data.items()}
    values["fate"] = tuple(Fate(f) for f in values.get("fate", ()))
    return Draft(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Draft | Token):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, StrEnum):
        return str(value)
    return value
