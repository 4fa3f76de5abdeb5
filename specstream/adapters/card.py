"""An adapter's card: its shape and how it was made, as JSON beside its weights. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from specstream.hub.download import ADAPTER, PEFT

WEIGHTS, CARD = ADAPTER, "card.json"  # the files of an adapter
FORMAT = 1
MODES = ("shared", "lossless", "plain")
PROJECTIONS = ("shared", "own")
SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")
LIMITS: dict[str, tuple[float, float]] = {
    "format": (FORMAT, FORMAT),
    "gamma": (0, 16),
    "layers": (1, 1000),
    "start_rank": (0, 4096),
    "lora_rank": (0, 4096),
    "main_rank": (0, 4096),
    "exit_rank": (0, 4096),
    "draft_vocabulary": (0, 1 << 24),
    "pair_rank": (0, 4096),
    "lora_scale": (-1000, 1000),
    "main_scale": (-1000, 1000),
    "value_rotation": (0, 7),
}
HEAD_KINDS = ("medusa", "exit")
HEAD_LIMITS: dict[str, tuple[float, float]] = {
    "count": (1, 16),
    "layers": (0, 1000),
    "rank": (0, 1 << 16),
    "draft_vocabulary": (0, 1 << 24),
}


_KINDS: dict[str, type] = {"str": str, "int": int, "float": float, "dict": dict}


class AdapterError(ValueError):
    """An adapter can't be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class HeadCard:
    """Heads that draft for the model with an adapter, in a separate file beside it: their shape and how they were made.

    ``kind`` is "medusa": ``count`` heads, one per depth, with a "shared" or "own" ``projection`` to the vocabulary;
    or "exit": one head of ``rank`` on the hidden state after the first ``layers`` layers.
    """

    kind: str
    count: int = 1
    projection: str = "shared"
    layers: int = 0
    rank: int = 0
    draft_vocabulary: int = 0
    data: str = ""
    licence: str = ""
    command: str = ""
    date: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_fields(self, HEAD_LIMITS)
        _check_choice("the kind of heads", self.kind, HEAD_KINDS)
        _check_choice("projection", self.projection, PROJECTIONS)

    @property
    def file(self) -> str:
        """The name of the weights' file in the adapter's folder."""
        return f"{self.kind}.safetensors"

    def shape(self) -> dict[str, Any]:
        """The fields that must agree for training to continue with these heads."""
        return {n: getattr(self, n) for n in ("kind", "count", "projection", "layers", "rank", "draft_vocabulary")}


@dataclass(frozen=True)
class Card:
    """An adapter's shape, the base model it belongs to, and how it was made.

    ``base_shape`` is the base's model type, layers, hidden size and vocabulary size; the adapter loads onto no other.
    ``gamma`` is 0 only in ``plain`` mode. ``exit_rank`` is the rank of the early exit o_theta that prunes drafts
    (0: none), ``draft_vocabulary`` the number of tokens that streams can draft (0: all), ``value_rotation`` the angle
    per stream, in radians, that replaces stream embeddings (0: embeddings), ``pair_rank`` the rank of the pair map
    (0: none). ``main_rank`` and ``main_scale`` describe the LoRA that fine-tuned the model before ``lossless`` streams
    were trained on it (0: the base was not tuned). ``heads`` describes, by kind, the heads stored beside the adapter.
    """

    base: str
    base_shape: dict[str, Any]
    task: str
    mode: str
    gamma: int
    layers: int
    start_rank: int
    lora_rank: int
    lora_scale: float
    exit_rank: int = 0
    draft_vocabulary: int = 0
    value_rotation: float = 0.0
    pair_rank: int = 0
    main_rank: int = 0
    main_scale: float = 0.0
    data: str = ""
    licence: str = ""
    command: str = ""
    date: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, HeadCard] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if isinstance(self.format, int) and self.format != FORMAT:
            raise AdapterError(f"The adapter has format {self.format}; this version reads format {FORMAT}.")
        _check_fields(self, LIMITS)
        object.__setattr__(self, "heads", {k: _head_card(k, v) for k, v in self.heads.items()})
        _check_choice("mode", self.mode, MODES)
        if (self.gamma == 0) != (self.mode == "plain"):
            raise _damaged(f"it names {self.gamma} streams and the mode {self.mode}")
        self._check_shape()

    def _check_shape(self) -> None:
        """Check the shape of the base, and the draft vocabularies against it."""
        kinds = {name: str if name == "model_type" else int for name in SHAPE}
        if any(type(self.base_shape.get(name)) is not kind for name, kind in kinds.items()):
            raise _damaged(f"base_shape must give {', '.join(SHAPE)}")
        most = self.base_shape["vocab_size"]
        if max(self.draft_vocabulary, *(head.draft_vocabulary for head in self.heads.values()), 0) > most:
            raise _damaged(f"draft_vocabulary must be at most {most}, all tokens of the base model")

    @property
    def tuning(self) -> tuple[int, float]:
        """Rank and scale of the LoRA that fine-tunes the main stream; rank 0 if there is none."""
        return (self.main_rank, self.main_scale) if self.mode == "lossless" else (self.lora_rank, self.lora_scale)


def _damaged(what: str) -> AdapterError:
    return AdapterError(f"The adapter's card is damaged: {what}.")


def _head_card(kind: str, value: Any) -> HeadCard:
    if isinstance(value, HeadCard):
        return value
    if not isinstance(value, dict):
        raise _damaged(f"the card of the heads {kind} must be an object, not {_short(value)}")
    return HeadCard(**{f.name: value[f.name] for f in fields(HeadCard) if f.name in value} | {"kind": kind})


def _check_fields(card: Any, limits: dict[str, tuple[float, float]]) -> None:
    """Raise AdapterError for a field whose type differs from its annotation, or whose value is outside its limits."""
    words = {str: "a text", dict: "an object"}
    for f in fields(card):
        value, kind = getattr(card, f.name), _KINDS[str(f.type).partition("[")[0]]
        if kind in words and not isinstance(value, kind):
            raise _damaged(f"{f.name} must be {words[kind]}, not {_short(value)}")
        if f.name in limits:
            _check_number(f.name, value, *limits[f.name], kind)


def _check_number(name: str, value: Any, low: float, high: float, kind: type) -> None:
    number = isinstance(value, kind if kind is int else int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # NaN and infinity are outside any limits
        what = "a whole number" if kind is int else "a number"
        raise _damaged(f"{name} must be {what} from {low} to {high}, not {_short(value)}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise _damaged(f"{name} must be {' or '.join(choices)}, not {_short(value)}")


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:40]}..."


def files(card: Card) -> list[str]:
    """The names of an adapter's own files: its weights, those of its heads, and its card."""
    return [WEIGHTS, *(head.file for head in card.heads.values()), CARD]


def write_card(folder: Path, card: Card) -> None:
    """Write only the card."""
    with replacing(folder / CARD) as new:
        new.write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new file to write, which then replaces ``file``, so that no reader ever sees a half-written one."""
    new = file.with_name(f"{file.name}.new")
    try:
        yield new
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def read_card(folder: Path) -> Card:
    """The card of an adapter folder. Raises AdapterError if it is missing or damaged."""
    try:
        data = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"There is no adapter in {folder}: {_instead(folder)}.") from None
    except OSError as error:
        raise AdapterError(f"The adapter's card {folder / CARD} can't be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise _damaged("it is not a JSON object") from None
    if not isinstance(data, dict):
        raise _damaged("it is not a JSON object")
    if missing := [f.name for f in fields(Card) if f.name not in data and f.default is f.default_factory is MISSING]:
        raise _damaged(f"it has no {missing[0]}")
    return Card(**{f.name: data[f.name] for f in fields(Card) if f.name in data})


def _instead(folder: Path) -> str:
    """What a folder without a card holds instead, and what to do with it."""
    if (folder / PEFT).is_file():
        return "it holds a PEFT adapter, which has no streams. Merge it into its base model and give that as the model"
    if (folder / "config.json").is_file():
        return "it holds a model. Give it as the model"
    return f"the file {CARD} is missing"
