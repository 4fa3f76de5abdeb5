"""From a model's name to a model that decodes, in small steps.

A model is fetched and loaded; its parts are found; an adapter and heads are loaded; their LoRA is merged and weights
are packed; the result is tested. The engine uses all steps, ``custom_generate`` those that apply to a given model,
other libraries' baselines and training the first few.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specstream.adapters import heads, weights
from specstream.adapters.heads import Heads
from specstream.adapters.weights import Adapter
from specstream.hub import catalogue
from specstream.hub.download import ModelError, ModelSource, StatusCallback
from specstream.info import PARTS
from specstream.model import attention
from specstream.model.cpu_linear import Format, PackedLinear, calibrated, draft_linear, of_drafts, pack, suits
from specstream.model.introspection import Anatomy, UnsupportedModel, dissect
from specstream.model.native_linear import FbgemmLinear, NativeLinear
from specstream.model.pretrained import load_model
from specstream.params import DraftModel, EarlyExit, Medusa, Streaming
from specstream.target import self_test
from specstream.target.self_test_cache import SelfTestCache

log = logging.getLogger(__name__)
Fetched = tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelSource]
NO_INT8 = "No linear layer of this model can be computed in int8: choose another dtype."


def fetch(
    name: str,
    device: str,
    dtype: torch.dtype,
    progress: StatusCallback = lambda words, fraction: None,
    words: str = "Loading the model",
) -> Fetched:
    """The model with this name, its tokenizer, and where it came from. Raises ModelError."""
    source = catalogue.resolve(name, progress)
    progress(words, None)
    return *load_model(source, device, dtype), source


def parts_of(network: PreTrainedModel) -> Anatomy:
    """The parts of a model. Raises UnsupportedModel, with one sentence, whatever way a foreign model fails."""
    try:
        return dissect(network)
    except UnsupportedModel:
        raise
    except Exception as error:
        log.info("the model's parts could not be found", exc_info=True)
        raise UnsupportedModel(
            f"The parts of this model could not be found ({type(error).__name__}): standard decoding only."
        ) from error


def drafting_parts(folder: Path | None, parts: Anatomy) -> tuple[Adapter | None, Heads]:
    """The adapter in a folder and the heads beside it, loaded for a model. Raises AdapterError."""
    if folder is None:
        return None, Heads()
    return weights.load(folder, parts), heads.load(folder, parts)


def tuned(folder: Path, parts: Anatomy) -> Adapter:
    """Merge the LoRA with which the adapter in a folder fine-tunes the model. Raises AdapterError."""
    adapter = weights.load(folder, parts)
    adapter.merge_main(parts)
    return adapter


def made_ready(parts: Anatomy, adapter: Adapter | None, beside: Heads) -> None:
    """Merge the LoRA of the main stream into the weights, and convert drafting parts to the model's number format."""
    beside.ready(parts, None)
    if adapter:
        adapter.merge_main(parts)
        adapter.ready(parts)


def in_int8(parts: Anatomy, texts: Sequence[Tensor]) -> Format:
    """The int8 format for a model after ``made_ready``. Raises ModelError if none of its layers can be in int8."""
    form = calibrated(parts, texts)
    paths = {path for _, path in form.inputs}
    if not paths - form.kept:
        raise ModelError(NO_INT8)
    return form


def packed_up(parts: Anatomy, adapter: Adapter | None, beside: Heads, form: Format) -> Anatomy:
    """Pack the weights of a model after ``made_ready``, and of its drafting parts, if that helps."""
    if adapter and Streaming().on(parts.device.type).streams == "deferred":  # streams run alone
        adapter.merge_copies(parts, of_drafts(form))
    if suits(parts, form.half):
        layout = functools.partial(draft_linear, half=form.half)
        beside.ready(parts, layout)
        if adapter:
            adapter.pack(layout)
    return pack(parts, form)


def is_packed(parts: Anatomy | None) -> bool:
    """Whether a model's weights are packed."""
    return parts is not None and isinstance(parts.head, PackedLinear | NativeLinear | FbgemmLinear)


def tested(parts: Anatomy, streams: Adapter | None) -> tuple[str, str | None]:
    """The attention with which a model should decode, and why it can't verify trees with it (None: it can).

    It is our exact attention if the family supports it. The model keeps the one that it has.
    """
    if parts.model._can_set_attn_implementation():  # its family uses the attention interface
        with attention.using(parts.model, attention.NAME):
            if self_test.failure(parts, streams) is None:
                return attention.NAME, None
    with attention.using(parts.model, parts.attention):
        return parts.attention, self_test.failure(parts, streams)


def checked(parts: Anatomy, streams: Adapter | None, passed: SelfTestCache) -> tuple[str | None, bool]:
    """Why the model can't verify trees (None: it can), and whether a token has the same bits in a tree as on its own.

    The model uses the chosen attention from now on. Tests that it passed before are not repeated.
    """
    known = passed.recall("layers") or {}
    if known.get("attention") in (attention.NAME, parts.attention):
        parts.model.set_attn_implementation(known["attention"])
        return None, bool(known.get("exact"))
    name, reason = tested(parts, streams)
    parts.model.set_attn_implementation(name)
    exact = reason is None and self_test.exact(parts)
    if reason is None:
        passed.note("layers", attention=name, exact=exact)
    return reason, exact


def lacking(streams: Adapter | None, beside: Heads, second: object | None) -> dict[str, str]:
    """The methods that need a part that is not loaded, each with a sentence."""
    have = {
        Streaming.name: streams,
        Medusa.name: beside.medusa,
        EarlyExit.name: beside.exit,
        DraftModel.name: second,
    }
    return {name: PARTS[name].sentence for name, part in have.items() if part is None}
