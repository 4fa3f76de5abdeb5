"""The weights of a stream adapter: applying them to a model, and saving and loading them (safetensors)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specstream.adapters.card import WEIGHTS, AdapterError, Card, read_card, replacing, write_card
from specstream.model.cpu_linear import Format, merged_copies
from specstream.model.introspection import Anatomy
from specstream.model.lora import LoRA
from specstream.streams.pair_map import Pairs
from specstream.streams.stream_attention import Streams


class Drafting(nn.Module):
    """Weights that draft through the model's own LM head, possibly restricted to part of its vocabulary.

    ``vocabulary`` ``[draft_vocabulary]`` holds the ids that can be drafted; None means all.
    """

    vocabulary: Tensor | None

    def __init__(self, anatomy: Anatomy, size: int, ids: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("vocabulary", (torch.arange(size) if ids is None else ids) if size else None)
        self._head: nn.Module | None = None
        self.restrict_head(anatomy)

    def parameter_count(self) -> int:
        """The number of weights stored with this part."""
        return sum(p.numel() for p in self.parameters())

    def restrict_head(self, anatomy: Anatomy) -> None:
        """Copy the head's rows for the draft vocabulary. Call it before the head is packed, and again if the ids
        change."""
        if self.vocabulary is not None:
            object.__setattr__(
                self, "_head", _rows_of(anatomy.head, self.vocabulary)
            )  # bypasses nn.Module: it is neither trained nor saved

    def head_logits(self, anatomy: Anatomy, states: Tensor) -> Tensor:
        """Logits, float32 ``[..., draft vocabulary]``, of states after the final norm ``[..., hidden]``."""
        return anatomy.head_logits(states, self._head)

    def draft_logits(self, anatomy: Anatomy, states: Tensor) -> Tensor:
        """Logits, float32 ``[..., draft vocabulary]``, of states before the final norm ``[..., hidden]``."""
        return self.head_logits(anatomy, anatomy.normed(states))

    def spread(self, anatomy: Anatomy, logits: Tensor) -> Tensor:
        """Expand logits over the draft vocabulary to ``[..., vocab]``, with minus infinity for all other tokens."""
        if self.vocabulary is None:
            return logits
        whole = anatomy.model.get_input_embeddings().num_embeddings
        out = logits.new_full((*logits.shape[:-1], whole), float("-inf"))
        return out.index_copy_(-1, self.vocabulary, logits)

    def pack_head(self, pack: Callable[[nn.Linear], nn.Module]) -> None:
        """Replace the restricted head by its packed version."""
        if isinstance(self._head, nn.Linear):
            object.__setattr__(self, "_head", pack(self._head))


Part = TypeVar("Part", bound=Drafting)


class Adapter(Drafting):
    """Streams and LoRA for one base model.

    In ``shared`` mode LoRA acts on every row of every layer: the model, and so its main stream, is fine-tuned.
    In ``lossless`` mode LoRA acts only on the stream rows of the top layers: the base model's output never changes.
    If the base was fine-tuned before, ``main`` is the LoRA that did so, merged into the weights and not trained.
    In ``plain`` mode there are no streams, only LoRA, for comparison.
    ``vocabulary`` holds the ids that streams can draft.
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
        self.merged: Sequence[nn.Module] = ()  # copies of the stream layers with LoRA merged (lossless mode)

    @property
    def main_lora(self) -> LoRA | None:
        """The LoRA that fine-tunes the main stream, if any."""
        return self.main if self.card.mode == "lossless" else self.lora

    def copies(self) -> list[nn.Module]:
        """The modules made from the model's own, whose weights are not among this adapter's parameters."""
        return [*self.merged, *([self._head] if self._head else [])]

    def drafting_count(self) -> int:
        """The number of weights added for drafting, without a LoRA that only fine-tunes the model."""
        if not self.card.gamma:
            return 0
        return self.parameter_count() - (sum(p.numel() for p in self.main.parameters()) if self.main else 0)

    def merge_main(self, anatomy: Anatomy) -> None:
        """Merge the LoRA of the main stream into the model's weights, so that it costs nothing per step, and drop
        it."""
        if lora := self.main_lora:
            lora.merge(anatomy)
            self.main = None
            self.lora = self.lora if self.card.mode == "lossless" else None

    def ready(self, anatomy: Anatomy) -> None:
        """Convert the streams' weights to the model's number format and tabulate the pair map, once instead of in
        every step."""
        if self.card.gamma:
            self.streams.to(anatomy.dtype)
        if self.pairs:
            self.pairs.fix(anatomy.model.get_input_embeddings().weight, self.vocabulary)

    def merge_copies(self, anatomy: Anatomy, form: Format) -> None:
        """In lossless mode, make copies of the stream layers with the LoRA merged, so that it costs deferred streams
        nothing. Call it before the model is packed.
        """
        if self.card.mode == "lossless" and self.lora:
            self.merged = tuple(merged_copies(anatomy, self.lora, form))

    def pack(self, layout: Callable[[nn.Linear], nn.Module]) -> None:
        """Pack the restricted head and the streams' start."""
        self.pack_head(layout)
        if self.card.gamma:
            self.streams.pack(layout)

    def logits(self, anatomy: Anatomy, states: Tensor) -> Tensor:
        """Logits, float32 ``[..., vocab]``, of stream states before the final norm ``[..., hidden]``."""
        return self.spread(anatomy, self.draft_logits(anatomy, states))


def _rows_of(head: nn.Module, ids: Tensor) -> nn.Linear:
    """A linear layer with the given rows of a head's weight. Raises AdapterError if the head is not linear."""
    if not isinstance(head, nn.Linear):
        raise AdapterError("A draft vocabulary needs a linear LM head, which this model does not have: set it to 0.")
    ids = ids.to(head.weight.device)
    out = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, device="meta")
    out.weight = nn.Parameter(head.weight.detach()[ids].clone(), requires_grad=False)
    if head.bias is not None:
        out.bias = nn.Parameter(head.bias.detach()[ids].clone(), requires_grad=False)
    return out


def base_shape(anatomy: Anatomy) -> dict[str, Any]:
    """The properties in which a base model must equal the one that an adapter was trained on."""
    config = anatomy.model.config.get_text_config(decoder=True)
    return {
        "model_type": config.model_type,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
    }


def save(adapter: Adapter, folder: Path, card: Card, dtype: torch.dtype = torch.float16) -> None:
    """Write weights (in 16 bits) and card. The card comes last, so a folder with a card is complete."""
    save_weights(adapter, folder / WEIGHTS, dtype)
    write_card(folder, card)


def save_weights(part: Drafting, file: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the weights of an adapter or of heads, by default in 16 bits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.detach().to(dtype if v.is_floating_point() else torch.int32).cpu().contiguous()
        for k, v in part.state_dict().items()
    }
    with replacing(file) as new:
        save_file(state, new)


def load(folder: Path, anatomy: Anatomy) -> Adapter:
    """Load an adapter onto its base. Raises AdapterError if it is damaged or belongs to another model."""
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
    """Fill an adapter, or heads, from a file. Raises AdapterError if the file is missing or damaged."""
    try:
        state = load_file(file)
        part.load_state_dict({k: v.float() if v.is_floating_point() else v.long() for k, v in state.items()})
        _check_vocabulary(part, anatomy)
        part.restrict_head(anatomy)
    except FileNotFoundError:
        raise AdapterError(f"The adapter in {file.parent} is incomplete: the file {file.name} is missing.") from None
    except (SafetensorError, RuntimeError, IndexError, OSError):
        raise AdapterError(f"The adapter's weights {file} are damaged: download the adapter again.") from None
    if not all(bool(p.isfinite().all()) for p in part.parameters()):
        raise AdapterError(f"The adapter's weights {file} contain NaN or infinity: download the adapter again.")
    return part.to(device=anatomy.device).eval()


def _check_vocabulary(part: Drafting, anatomy: Anatomy) -> None:
    """Raise AdapterError unless the ids that can be drafted are in the model's vocabulary, sorted and unique."""
    ids, size = part.vocabulary, anatomy.model.get_input_embeddings().num_embeddings
    if ids is not None and not (ids[0] >= 0 and ids[-1] < size and bool((ids.diff() > 0).all())):
        raise AdapterError(
            f"The adapter's weights are damaged: its draft vocabulary must be sorted, unique and below {size}."
        )
