"""Stream adapters: their weights, and how they lie on disk (safetensors and one JSON card)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specstream.adapters.local import CARD, WEIGHTS, mine
from specstream.adapters.lora import LoRA
from specstream.hub.catalogue import catalogue
from specstream.hub.download import PEFT, folder_named
from specstream.model.cpu_linear import merged_copies
from specstream.model.introspection import Anatomy
from specstream.streams.pair_map import Pairs
from specstream.streams.stream_attention import Streams

FORMAT = 1
DEFAULT = "e2e"  # the bundled adapter that is loaded when none is named
BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "adapters"


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
    """Heads that draft for the model of an adapter, in a file of their own beside it: their shape and how they were
    made.

    ``kind`` is "medusa", with ``count`` heads, one per depth, and a "shared" or "own" ``projection`` to the vocabulary;
    or "exit", one head of ``rank`` on the state after the first ``layers`` layers.
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
        """What two trainings of the same heads have in common."""
        return {n: getattr(self, n) for n in ("kind", "count", "projection", "layers", "rank", "draft_vocabulary")}


@dataclass(frozen=True)
class Card:
    """What an adapter is: its shape, the base model it belongs to, and how it was made.

    ``base_shape`` are the base's model type, layers, hidden size and vocabulary; an adapter loads onto nothing else.
    ``gamma`` is 0 in ``plain`` mode only. ``exit_rank`` is the rank of the early-exit map o_theta that prunes drafts
    (0: none), ``draft_vocabulary`` the number of tokens that streams can draft (0: all), ``value_rotation`` the angle
    per stream in radians that replaces stream embeddings (0: embeddings), ``pair_rank`` the rank of the pair map (0:
    none). ``main_rank`` and ``main_scale`` are of the LoRA that fine-tuned the model before ``lossless`` streams were
    trained on it (0: the base as it is). ``heads`` describes by kind the heads that lie beside the adapter.
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
            raise AdapterError(f"The adapter is of format {self.format}; this version reads format {FORMAT}.")
        _check_fields(self, LIMITS)
        object.__setattr__(self, "heads", {k: _head_card(k, v) for k, v in self.heads.items()})
        _check_choice("mode", self.mode, MODES)
        if (self.gamma == 0) != (self.mode == "plain"):
            raise _damaged(f"it names {self.gamma} streams and the mode {self.mode}")
        self._check_shape()

    def _check_shape(self) -> None:
        """The shape of the base, and the draft vocabularies within it."""
        kinds = {name: str if name == "model_type" else int for name in SHAPE}
        if any(type(self.base_shape.get(name)) is not kind for name, kind in kinds.items()):
            raise _damaged(f"base_shape must give {', '.join(SHAPE)}")
        most = self.base_shape["vocab_size"]
        if max(self.draft_vocabulary, *(head.draft_vocabulary for head in self.heads.values()), 0) > most:
            raise _damaged(f"draft_vocabulary must be at most {most}, all tokens of the base model")

    @property
    def tuning(self) -> tuple[int, float]:
        """Rank and scale of the LoRA that fine-tunes the main stream; rank 0 where nothing does."""
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
    """Raise AdapterError for a field of a card that is of another kind than its annotation, or out of its limits."""
    words = {str: "a text", dict: "an object"}
    for f in fields(card):
        value, kind = getattr(card, f.name), _KINDS[str(f.type).partition("[")[0]]
        if kind in words and not isinstance(value, kind):
            raise _damaged(f"{f.name} must be {words[kind]}, not {_short(value)}")
        if f.name in limits:
            _check_number(f.name, value, *limits[f.name], kind)


def _check_number(name: str, value: Any, low: float, high: float, kind: type) -> None:
    number = isinstance(value, kind if kind is int else int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # not finite: in no limits
        what = "a whole number" if kind is int else "a number"
        raise _damaged(f"{name} must be {what} from {low} to {high}, not {_short(value)}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise _damaged(f"{name} must be {' or '.join(choices)}, not {_short(value)}")


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:40]}..."


class Drafting(nn.Module):
    """Weights that draft by way of the model's own LM head, perhaps among a part of its vocabulary.

    ``vocabulary`` ``[draft_vocabulary]`` are the ids that can be drafted, None for all.
    """

    vocabulary: Tensor | None

    def __init__(self, anatomy: Anatomy, size: int, ids: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("vocabulary", (torch.arange(size) if ids is None else ids) if size else None)
        self._head: nn.Module | None = None
        self.restrict_head(anatomy)

    def parameter_count(self) -> int:
        """Every weight stored with this part."""
        return sum(p.numel() for p in self.parameters())

    def restrict_head(self, anatomy: Anatomy) -> None:
        """Copy the head's rows for the draft vocabulary. Before the head is packed; again when the ids change."""
        if self.vocabulary is not None:
            object.__setattr__(self, "_head", _rows_of(anatomy.head, self.vocabulary))  # not ours to train or save

    def head_logits(self, anatomy: Anatomy, states: Tensor) -> Tensor:
        """Logits, float32 ``[..., draft vocabulary]``, of states after the final norm ``[..., hidden]``."""
        return anatomy.head_logits(states, self._head)

    def draft_logits(self, anatomy: Anatomy, states: Tensor) -> Tensor:
        """Logits, float32 ``[..., draft vocabulary]``, of states before the final norm ``[..., hidden]``."""
        return self.head_logits(anatomy, anatomy.normed(states))

    def spread(self, anatomy: Anatomy, logits: Tensor) -> Tensor:
        """Logits over the draft vocabulary as ``[..., vocab]``: minus infinity for tokens that can't be drafted."""
        if self.vocabulary is None:
            return logits
        whole = anatomy.model.get_input_embeddings().num_embeddings
        out = logits.new_full((*logits.shape[:-1], whole), float("-inf"))
        return out.index_copy_(-1, self.vocabulary, logits)

    def pack_head(self, pack: Callable[[nn.Linear], nn.Module]) -> None:
        """Replace the restricted head by a faster one."""
        if isinstance(self._head, nn.Linear):
            object.__setattr__(self, "_head", pack(self._head))


Part = TypeVar("Part", bound=Drafting)


class Adapter(Drafting):
    """Streams and LoRA for one base model.

    In ``shared`` mode LoRA acts on every row of every layer: the model is fine-tuned and the main stream with it.
    In ``lossless`` mode it acts on the stream rows of the top layers only: the base model's output never changes. The
    base may have been fine-tuned before: ``main`` is the LoRA that did so, merged into the weights and not trained.
    In ``plain`` mode there are no streams: LoRA alone, to compare with.
    ``vocabulary`` are the ids that streams can draft.
    """

    def __init__(self, anatomy: Anatomy, card: Card, vocabulary: Tensor | None = None) -> None:
        super().__init__(anatomy, card.draft_vocabulary, vocabulary)
        self.card = card
        if card.gamma:
            self.streams = Streams(
                anatomy.hidden_size, card.gamma, card.layers, card.start_rank, card.exit_rank, card.value_rotation
            )
        width = anatomy.model.get_input_embeddings().weight.shape[1]
        self.pairs = Pairs(width, card.gamma, card.pair_rank) if card.gamma and card.pair_rank else None
        first = len(anatomy.layers) - card.layers if card.mode == "lossless" else 0
        self.lora = LoRA(anatomy, card.lora_rank, card.lora_scale, first) if card.lora_rank else None
        self.main = LoRA(anatomy, card.main_rank, card.main_scale).requires_grad_(False) if card.main_rank else None
        self.merged: Sequence[nn.Module] = ()  # the layers of streams that run alone, where LoRA acts on them only

    @property
    def main_lora(self) -> LoRA | None:
        """The LoRA that fine-tunes the main stream, if any."""
        return self.main if self.card.mode == "lossless" else self.lora

    def drafting_count(self) -> int:
        """Weights that drafting adds: all but those of a LoRA that only fine-tunes the model."""
        if not self.card.gamma:
            return 0
        return self.parameter_count() - (sum(p.numel() for p in self.main.parameters()) if self.main else 0)

    def merge_main(self, anatomy: Anatomy) -> None:
        """Add the LoRA of the main stream to the model's weights for good, where it costs nothing per step, and let go
        of it."""
        if lora := self.main_lora:
            lora.merge(anatomy)
            self.main = None
            self.lora = self.lora if self.card.mode == "lossless" else None

    def ready(self, anatomy: Anatomy) -> None:
        """Keep the streams' own weights in the model's number format and what the pair map says of every token, so that
        no step computes them."""
        if self.card.gamma:
            self.streams.to(anatomy.dtype)
        if self.pairs:
            self.pairs.fix(anatomy.model.get_input_embeddings().weight, self.vocabulary)

    def merge_copies(self, anatomy: Anatomy, half: bool) -> None:
        """In lossless mode, give streams that run alone layers with the LoRA merged: it costs them nothing then.

        Before the model is packed.
        """
        if self.card.mode == "lossless" and self.lora:
            self.merged = tuple(merged_copies(anatomy, self.lora, half))

    def logits(self, anatomy: Anatomy, states: Tensor) -> Tensor:
        """Logits, float32 ``[..., vocab]``, of stream states before the final norm ``[..., hidden]``."""
        return self.spread(anatomy, self.draft_logits(anatomy, states))


def _rows_of(head: nn.Module, ids: Tensor) -> nn.Linear:
    """A linear map to these rows of a head's output. Raises AdapterError for a head that is not linear."""
    if not isinstance(head, nn.Linear):
        raise AdapterError("A draft vocabulary needs a linear LM head, which this model does not have: give it as 0.")
    ids = ids.to(head.weight.device)
    out = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, device="meta")
    out.weight = nn.Parameter(head.weight.detach()[ids].clone(), requires_grad=False)
    if head.bias is not None:
        out.bias = nn.Parameter(head.bias.detach()[ids].clone(), requires_grad=False)
    return out


def base_shape(anatomy: Anatomy) -> dict[str, Any]:
    """What a base model must have in common with the one an adapter was trained on."""
    config = anatomy.model.config.get_text_config(decoder=True)
    return {
        "model_type": config.model_type,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
    }


def save(adapter: Adapter, folder: Path, card: Card, dtype: torch.dtype = torch.float16) -> None:
    """Write weights (in 16 bit) and card. The card comes last, so that a folder with a card is complete."""
    save_weights(adapter, folder / WEIGHTS, dtype)
    write_card(folder, card)


def save_weights(part: Drafting, file: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the weights of an adapter or of heads, in 16 bit."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.detach().to(dtype if v.is_floating_point() else torch.int32).cpu().contiguous()
        for k, v in part.state_dict().items()
    }
    with _replacing(file) as new:
        save_file(state, new)


def files(card: Card) -> list[str]:
    """The names of an adapter's own files: its weights, those of its heads, and its card."""
    return [WEIGHTS, *(head.file for head in card.heads.values()), CARD]


def write_card(folder: Path, card: Card) -> None:
    """Write a card alone."""
    with _replacing(folder / CARD) as new:
        new.write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of ``file``: nobody finds one half written, whatever happens."""
    new = file.with_name(f"{file.name}.new")
    try:
        yield new
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def read_card(folder: Path) -> Card:
    """The card of an adapter folder. Raises AdapterError when it is missing or damaged."""
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
        raise _damaged(f"it gives no {missing[0]}")
    return Card(**{f.name: data[f.name] for f in fields(Card) if f.name in data})


def _instead(folder: Path) -> str:
    """What a folder without a card holds, and what to do with it."""
    if (folder / PEFT).is_file():
        return "it holds a PEFT adapter, which has no streams. Merge it into its base model and give that as the model"
    if (folder / "config.json").is_file():
        return "it holds a model. Give it as the model"
    return f"the file {CARD} is missing"


def load(folder: Path, anatomy: Anatomy) -> Adapter:
    """Load an adapter onto its base. Raises AdapterError for a damaged adapter or one of another model."""
    card = read_card(folder)
    here = base_shape(anatomy)
    if card.base_shape != here:
        want = ", ".join(f"{k} {v}" for k, v in card.base_shape.items() if here.get(k) != v)
        raise AdapterError(f"The adapter in {folder} was trained for {card.base} ({want}): load it onto that model.")
    if card.layers > len(anatomy.layers):
        raise AdapterError(
            f"The adapter's card names {card.layers} stream layers; the model has {len(anatomy.layers)}."
        )
    return read_weights(Adapter(anatomy, card), folder / WEIGHTS, anatomy)


def read_weights(part: Part, file: Path, anatomy: Anatomy) -> Part:
    """Fill an adapter, or heads, from a file. Raises AdapterError for a missing or damaged one."""
    try:
        state = load_file(file)
        part.load_state_dict({k: v.float() if v.is_floating_point() else v.long() for k, v in state.items()})
        _check_vocabulary(part, anatomy)
        part.restrict_head(anatomy)
    except FileNotFoundError:
        raise AdapterError(f"The adapter in {file.parent} is incomplete: the file {file.name} is missing.") from None
    except (SafetensorError, RuntimeError, IndexError, OSError):
        raise AdapterError(f"The adapter's weights {file} are damaged: get the adapter again.") from None
    if not all(bool(p.isfinite().all()) for p in part.parameters()):
        raise AdapterError(f"The adapter's weights {file} hold values that are not finite numbers.")
    return part.to(device=anatomy.device).eval()


def _check_vocabulary(part: Drafting, anatomy: Anatomy) -> None:
    """Raise AdapterError unless the ids that can be drafted are the model's, sorted and each there once."""
    ids, size = part.vocabulary, anatomy.model.get_input_embeddings().num_embeddings
    if ids is not None and not (ids[0] >= 0 and ids[-1] < size and bool((ids.diff() > 0).all())):
        raise AdapterError(
            f"The adapter's weights are damaged: its draft vocabulary must be sorted, unique and below {size}."
        )


def bundled(model: str) -> dict[str, Path]:
    """The adapters that come with the project for a catalogue model (by its name or Hub id), by task name."""
    names = [entry.name for entry in catalogue() if model in (entry.name, entry.hub_id)]
    root = BUNDLED / (names[0] if names else "none")
    return {p.name: p for p in sorted(root.iterdir()) if (p / CARD).is_file()} if root.is_dir() else {}


def find(name: str, model: str) -> Path | None:
    """The folder of an adapter: "none", "auto" (DEFAULT, else the first bundled one), a bundled task name, the name of
    one of your own, a folder, or ``hub:OWNER/NAME``.

    Raises AdapterError when there is no such adapter.
    """
    have = bundled(model)
    if name == "none":
        return None
    if name == "auto":
        return have.get(DEFAULT) or next(iter(have.values()), None)
    have = mine(model) | have
    if name in have:
        return have[name]
    if folder := folder_named(name):
        return folder
    if name.startswith("hub:"):
        from specstream.adapters import hub  # inside, for it reads cards from here

        return hub.fetch(name)
    known = ", ".join(have) or "none for this model yet"
    raise AdapterError(f"There is no adapter {name!r}: name a folder, hub:OWNER/NAME or one that is here ({known}).")
