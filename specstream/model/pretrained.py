"""A model and its tokenizer, loaded from a folder by transformers, with every check that comes before the first token.

torch and transformers are imported inside the functions, so importing this module is cheap.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from specstream.hub import download
from specstream.hub.download import ModelError, ModelSource
from specstream.model.memory import out_of_memory

NEEDS_CODE = "trust_remote_code"  # in the words of an error: the folder holds code that would have to run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(source: ModelSource, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load (model, tokenizer) in evaluation mode: safetensors only, no code from the model's folder, no network.

    The attention implementation is the library's choice for the model: sdpa where supported, else eager.
    Raises ModelError.
    """
    from transformers import AutoModelForCausalLM

    download.quiet()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        _check_causal(source, options)
        tokenizer = _load_tokenizer(source, options)
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        if report["missing_keys"]:
            raise ModelError(
                f"The weights in {source.path} lack {sorted(report['missing_keys'])[0]}: download them again."
            )
        _check_tokens(source, tokenizer, model.get_input_embeddings().weight.shape[0])
        _check_finite(source, model)
        return model.to(device).eval(), tokenizer
    except ModelError:
        raise
    except Exception as error:  # a foreign folder can make the loader fail in any way; the user gets a sentence
        raise ModelError(_why_not_loaded(source, error)) from error


def _load_tokenizer(source: ModelSource, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.path, **options)
    except Exception as error:  # foreign files can make the loader fail in any way
        if NEEDS_CODE in str(error):
            raise
        raise ModelError(
            f"The tokenizer in {source.path} can't be loaded: its files are missing or damaged."
        ) from error


def _check_finite(source: ModelSource, model: PreTrainedModel) -> None:
    """Raise ModelError for weights that contain NaN or infinity."""
    import torch

    if name := next((name for name, weight in model.named_parameters() if not _finite(weight)), None):
        words = "download them again" if model.dtype == torch.float32 else "choose float32, or download them again"
        raise ModelError(f"The weights in {source.path} contain NaN or infinity (in {name}): {words}.")


def _finite(weight: torch.Tensor) -> bool:
    """Whether all values are finite, from their minimum and maximum: one fast pass, which propagates NaN."""
    if weight.is_meta or not weight.is_floating_point() or weight.element_size() == 1:
        return True  # no values to read, or a type without comparisons
    return not weight.numel() or all(bool(value.isfinite()) for value in weight.aminmax())


def _check_causal(source: ModelSource, options: dict[str, Any]) -> None:
    """Refuse an encoder: some load as a causal LM without an error and generate nonsense."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = AutoConfig.from_pretrained(source.path, **options)
    known = {n for names in CAUSAL.values() for n in (names if isinstance(names, tuple | list) else (names,))}
    declared = getattr(config, "architectures", None) or []
    if config.model_type not in CAUSAL or (declared and not known & set(declared)):
        what = declared[0] if declared else config.model_type
        raise ModelError(f"The model in {source.path} is a {what}, not a causal language model: choose another one.")


def _check_tokens(source: ModelSource, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Reject a tokenizer with tokens that have no row in the embedding, since texts with them raise IndexError.

    Special tokens that no prompt needs (Gemma's for images) are instead removed from it, and then read as text.
    """
    over = {token for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not over:
        return
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    if tokenizer.is_fast and over <= special and not any(_in_prompts(tokenizer, token) for token in over):
        _take_out(tokenizer, over)
        return
    raise ModelError(
        f"The tokenizer in {source.path} has {rows + len(over):,} tokens, but the model has rows for {rows:,} "
        f"(none for {sorted(over)[0]!r}): use the tokenizer that belongs to the model, or resize its embeddings."
    )


def _in_prompts(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether the chat template contains a special token or its role, or the tokenizer adds it to texts."""
    roles = [role for role, of in tokenizer.special_tokens_map.items() if of == token]
    written = any(word in str(tokenizer.chat_template or "") for word in (token, *roles))
    return written or tokenizer.convert_tokens_to_ids(token) in tokenizer("").input_ids


def _take_out(tokenizer: PreTrainedTokenizerBase, tokens: set[str]) -> None:
    """Remove special tokens from a tokenizer, for which transformers has no method."""
    for role in [role for role, of in tokenizer.special_tokens_map.items() if of in tokens]:
        setattr(tokenizer, role, None)
    backend = tokenizer.backend_tokenizer
    rules = json.loads(backend.to_str())
    rules["added_tokens"] = [t for t in rules["added_tokens"] if t["content"] not in tokens]
    tokenizer._tokenizer = type(backend).from_str(json.dumps(rules))
    logging.getLogger(__name__).warning("The model has no embedding for %s: read as text.", ", ".join(sorted(tokens)))


def _why_not_loaded(source: ModelSource, error: Exception) -> str:
    words = str(error)
    if out_of_memory(error):
        return "The model does not fit into the device's memory: choose a smaller model or device cpu."
    if NEEDS_CODE in words:
        return f"The model in {source.path} needs its own code, which is never run: choose another model."
    if type(error).__name__ == "SafetensorError":
        return f"The weights in {source.path} are damaged: delete that folder and download the model again."
    if "size mismatch" in words or "ignore_mismatched_sizes" in words:
        return f"The weights in {source.path} do not fit its config.json: take both from the same model."
    return f"The model in {source.path} can't be loaded ({download.first_line(error)}): choose another model."
