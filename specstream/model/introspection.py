"""Finds the parts of a stock Hugging Face causal LM that the engine needs. No code per model family."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from specstream.model.native_linear import NativeLinear
from specstream.model.quantized import NativeInt8

SLIDING = "sliding_attention"
FULL = "full_attention"
KNOWN_LAYER_TYPES = {FULL, SLIDING}
RECURRENT = {"linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba", "recurrent"}


class UnsupportedModel(ValueError):
    """The model can't do tree verification or carry streams; the message says why, in one sentence."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of one loaded model.

    ``layer_types[i]`` is "full_attention" or "sliding_attention"; ``mask_by_type`` says whether the model's
    forward takes one mask per layer type (a dict) or a single one. ``tail`` are the modules between the last layer
    and the LM head, in call order (the final norm, for OPT also its output projection). Logits are the head's outputs
    times ``scale`` (Cohere, Granite), then capped (Gemma 2).
    """

    model: PreTrainedModel
    decoder: nn.Module
    layers: nn.ModuleList
    rotaries: tuple[nn.Module, ...]
    tail: tuple[nn.Module, ...]
    head: nn.Module
    hidden_size: int
    layer_types: tuple[str, ...]
    window: int | None
    mask_by_type: bool
    softcap: float | None
    scale: float = 1.0
    attention: str = "eager"

    @property
    def context(self) -> int:
        """The largest number of tokens that the model supports."""
        return context_of(self.model.config)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def logits(self, states: Tensor) -> Tensor:
        """LM-head logits, float32 ``[..., vocab]``, of last-layer states ``[..., hidden]`` before the final norm."""
        return self.head_logits(self.normed(states))

    def normed(self, states: Tensor) -> Tensor:
        """Last-layer states ``[..., hidden]`` after the modules between the last layer and the LM head."""
        for module in self.tail:
            states = module(states)
        return states

    def head_logits(self, states: Tensor, head: nn.Module | None = None, rows: int | None = None) -> Tensor:
        """Logits, float32 ``[..., vocab]``, of states after the final norm, by the LM head or a substitute for it.

        With ``rows``, only the logits of the first ``rows`` rows, although the head may compute all.
        """
        head = head or self.head
        out = head.floats(states[:rows]) if isinstance(head, NativeLinear | NativeInt8) else head(states)[:rows].float()
        out = out if self.scale == 1 else out * self.scale
        return out if self.softcap is None else torch.tanh(out / self.softcap) * self.softcap

    def linears(self, layer: int) -> dict[str, nn.Module]:
        """Every linear layer inside a decoder layer, by its path, such as ``self_attn.q_proj``."""
        return {n: m for n, m in self.layers[layer].named_modules() if isinstance(m, nn.Linear | Conv1D)}


def context_of(config: PretrainedConfig) -> int:
    """The largest number of positions of a model; a million if its config does not say.

    Rotary tables that depend on the length of the text (dynamic, longrope) are used only up to the length at which they
    start to change: beyond it, a tree pass would rotate a token differently from standard decoding.
    """
    config = config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    stated = next((n for name in names if (n := getattr(config, name, None)) and n > 0), 1 << 20)
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in [rope, *(r for r in rope.values() if isinstance(r, dict))]:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            original = kind.get("original_max_position_embeddings")
            stated = min(stated, original or getattr(config, "original_max_position_embeddings", None) or stated)
    return int(stated)


def _refuse(model: PreTrainedModel, config: PretrainedConfig, types: Collection[str]) -> None:
    """Raise UnsupportedModel for kinds of models that can't verify trees."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModel("Encoder-decoder models are not supported: choose a causal language model.")
    if getattr(model, "_is_stateful", False) or RECURRENT & set(types):
        raise UnsupportedModel(
            "This model has recurrent layers, which can't undo a rejected draft: standard decoding only."
        )
    if unknown := sorted(set(types) - KNOWN_LAYER_TYPES):
        raise UnsupportedModel(
            f"This model has layers of the type {unknown[0]}, which can't verify a draft tree: standard decoding only."
        )
    takes = inspect.signature(model.forward).parameters
    if "past_key_values" not in takes:
        raise UnsupportedModel(
            "This model keeps no keys and values between passes, which a draft needs: standard decoding only."
        )
    if "position_ids" not in takes or _uses_alibi(config):
        raise UnsupportedModel(
            "This model takes no position ids (as those with ALiBi), which a draft tree needs: standard decoding only."
        )


def _uses_alibi(config: PretrainedConfig) -> bool:
    """Whether attention is biased by distance in the sequence (ALiBi), which configs express in different ways."""
    return bool(getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False))


def dissect(model: PreTrainedModel) -> Anatomy:
    """Find the parts of ``model``. Raises UnsupportedModel, with the reason, if something is missing."""
    config = model.config.get_text_config(decoder=True)
    types = tuple(getattr(config, "layer_types", None) or ())
    _refuse(model, config, types)
    layers = _layers(model, config.num_hidden_layers)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    default = SLIDING if window else FULL
    decoder = model.get_decoder()
    tail, scale = _tail(model, layers)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Anatomy(
        model=model,
        decoder=decoder,
        layers=layers,
        rotaries=tuple(m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")),
        tail=tail,
        head=model.get_output_embeddings(),
        hidden_size=config.hidden_size,
        layer_types=types or (default,) * len(layers),
        window=window,
        mask_by_type=bool(types),
        softcap=softcap,
        scale=1.0 if softcap else scale,
        attention=model.config._attn_implementation or "eager",
    )


def _layers(decoder: nn.Module, count: int) -> nn.ModuleList:
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    inner = {id(m) for outer in lists for m in outer.modules() if m is not outer}
    found = [m for m in lists if id(m) not in inner]
    if len(found) != 1:
        raise UnsupportedModel("The decoder layers of this model could not be identified: standard decoding only.")
    return found[0]


def _tail(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[tuple[nn.Module, ...], float]:
    """Trace one token to find the modules that run between the last layer and the head, and the factor by which the
    head's outputs are multiplied."""
    inside = {id(m) for m in layers.modules()}
    head = model.get_output_embeddings()
    seen: list[nn.Module] = []
    raw: list[Tensor] = []
    after_last = False

    def last_layer_done(*_: Any) -> None:
        nonlocal after_last
        after_last = True

    def started(module: nn.Module, _: Any) -> None:
        if after_last and not any(module is m for s in seen for m in s.modules()):
            seen.append(module)

    outside = [m for m in model.modules() if id(m) not in inside and not any(id(c) in inside for c in m.modules())]
    hooks = [m.register_forward_pre_hook(started) for m in outside]
    hooks.append(layers[-1].register_forward_hook(last_layer_done))
    if head is not None:
        hooks.append(head.register_forward_hook(lambda _module, _args, out: raw.append(out)))
    try:
        with torch.no_grad():
            some = model.get_input_embeddings().num_embeddings // 2  # not one of padding, whose embedding may be zero
            token = torch.full((1, 1), some, dtype=torch.long, device=model.device)
            logits = model(input_ids=token, use_cache=False, **_given_masks(token)).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or seen[-1] is not head:
        raise UnsupportedModel(
            "The part of this model between its layers and its head could not be found: standard decoding only."
        )
    return tuple(seen[:-1]), _factor(raw[-1], logits)


def _factor(raw: Tensor, logits: Tensor) -> float:
    """The constant by which a head's outputs were multiplied; 1 if there is none, or the tensors have no values."""
    if raw.is_meta or raw.shape != logits.shape:
        return 1.0
    raw, logits = raw.cpu().double().flatten(), logits.cpu().double().flatten()  # MPS has no float64
    factor = float(raw @ logits / (raw @ raw)) if raw.any() else 1.0
    constant = torch.allclose(raw * factor, logits, rtol=0.02, atol=0.02 * float(logits.abs().max()))
    return factor if constant and abs(factor - 1) > 0.01 else 1.0


def _given_masks(token: Tensor) -> dict[str, Tensor]:
    """A mask and positions to pass in, since on the meta device the model can't build them from tensor values."""
    return {"attention_mask": token[:, :, None, None].float(), "position_ids": token} if token.is_meta else {}


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``module`` by name, with extra keyword arguments merged in."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    extra = bound.pop("kwargs", {})
    return {**bound, **extra}
