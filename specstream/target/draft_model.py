"""A draft model: a second model, which must have the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specstream.hub.download import StatusCallback
from specstream.model.cpu_linear import NATIVE, Format, pack
from specstream.model.introspection import Anatomy, UnsupportedModel
from specstream.target import loading, self_test
from specstream.target.model_target import ModelTarget

NONE = ("", "none")  # names that mean no draft model


class DraftModelError(ValueError):
    """A model can't draft for another; the message is one sentence for the user."""


@dataclass(frozen=True)
class Pair:
    """A loaded draft model. ``size`` is the size of its weights in bytes."""

    name: str
    parts: Anatomy
    parameters: int
    size: int

    def target(self) -> ModelTarget:
        """A new target on this model, for one run."""
        return ModelTarget(self.parts)


def load(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    dtype: torch.dtype,
    progress: StatusCallback,
    form: Format = NATIVE,
    texts: Sequence[Tensor] = (),
) -> Pair:
    """Load the draft model ``name`` for a model with this tokenizer: a catalogue name, a Hub id or a folder.

    ``form`` is the format in which its weights are packed; with ``texts``, token ids ``[1, tokens]``, it is int8,
    calibrated on these. Raises ModelError or DraftModelError.
    """
    network, own, _ = loading.fetch(name, device, dtype, progress, "Loading the draft model")
    check_tokenizers(name, own, tokenizer)
    weights = list(network.parameters())
    size = sum(p.numel() * p.element_size() for p in weights)
    parts = usable(name, network)
    form = loading.in_int8(parts, texts) if texts else form
    return Pair(name, pack(parts, form), sum(p.numel() for p in weights), size)


def usable(name: str, network: PreTrainedModel) -> Anatomy:
    """The parts of a network that can draft. Raises DraftModelError for one that can't discard rejected tokens."""
    try:
        parts = loading.parts_of(network)
        reason = self_test.failure(parts, None)
    except UnsupportedModel as error:
        reason = str(error)
    if reason:
        cause = reason.removesuffix(".").removesuffix(": standard decoding only")
        raise DraftModelError(f"{name} can't be the draft model: choose another one. {cause}.")
    return parts


def check_tokenizers(name: str, drafter: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    """Raise DraftModelError, naming the first difference, unless the ids mean the same tokens in both models."""
    ours, theirs = target.get_vocab(), drafter.get_vocab()
    differ = sorted(ours.items() ^ theirs.items(), key=lambda item: (item[1], item[0]))
    if differ:
        token, _ = differ[0]
        words = f"the token {token!r} is {_number(theirs, token)} there and {_number(ours, token)} here"
    elif odd := sorted(_special(drafter) ^ _special(target)):
        words = f"the token {target.convert_ids_to_tokens(odd[0])!r} is a special token for one of them only"
    else:
        return
    raise DraftModelError(
        f"{name} has a different tokenizer from the model's ({words}): choose a draft model of the same family."
    )


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def _number(vocabulary: dict[str, int], token: str) -> str:
    return f"number {vocabulary[token]}" if token in vocabulary else "missing"
