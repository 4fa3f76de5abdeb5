"""What is loaded, in plain values: shown on the page, written to the log."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specstream.params import DraftModel, EarlyExit, Medusa, Streaming


def processor() -> str:
    """The machine's processor, and its number of cores if known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def top_layers(count: int) -> str:
    """A description of the layers that carry streams."""
    return "the last layer" if count == 1 else f"the top {count} layers"


@dataclass(frozen=True)
class Part:
    """What a method needs besides the model, what is missing without it, and what to do then."""

    name: str
    missing: str
    remedy: str

    @property
    def sentence(self) -> str:
        return f"{self.missing}: {self.remedy}."


PARTS = {  # the words of page, command line and library alike
    Streaming.name: Part(
        "an adapter",
        "This model has no trained streams",
        "choose an adapter, or train one (tab Fine-tune, or command train)",
    ),
    Medusa.name: Part(
        "heads",
        "No Medusa heads are loaded",
        "choose an adapter that has some, or train them beside yours (tab Fine-tune, or command train --mode medusa)",
    ),
    EarlyExit.name: Part(
        "an exit",
        "No early exit that drafts is loaded",
        "choose an adapter that has one, or train it beside yours (tab Fine-tune, or command train --mode exit)",
    ),
    DraftModel.name: Part(
        "another model",
        "No draft model is loaded",
        "choose a smaller model with the same tokenizer (Model in the Playground, or option --draft-model)",
    ),
}


@dataclass(frozen=True)
class EngineInfo:
    """A loaded model and adapter.

    ``unavailable`` maps each method that can't run on this model to a sentence that says why. ``notes`` are sentences
    that a user should see (an untrained model, a failed self-test). ``chat``: the model has a chat template.
    ``gamma`` and ``stream_layers`` (the number of top layers that streams run through) are 0 without streams;
    ``layers`` is 0 if the model's parts were not found.
    ``parameters`` counts the base model's weights; ``extra_parameters`` those that streams add (including their LoRA,
    but not a LoRA that only fine-tunes the model); ``draft_parameters`` the draft model's, which take ``draft_bytes``;
    ``head_parameters``, by method, those of Medusa heads and of the early exit that drafts.
    ``tuned``: the adapter changes what the model writes. ``nodes`` is how many drafted nodes a pass verifies at next
    to no extra cost, 0 where each has its cost; ``nodes_reason`` says why. ``exact``: in the self-test, a token had the
    same bits in a tree as on its own. ``compiled``: the layers run compiled; ``compiling`` is a sentence about the
    state of compilation. ``processor`` names the machine's processor and its cores.
    """

    model: str
    source: str
    adapter: str
    task: str
    mode: str
    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    parameters: int
    extra_parameters: int
    gamma: int
    context: int
    chat: bool = False
    load_seconds: float = 0.0
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    layers: int = 0
    stream_layers: int = 0
    draft_model: str = "none"
    draft_parameters: int = 0
    draft_bytes: int = 0
    head_parameters: dict[str, int] = field(default_factory=dict)
    tuned: bool = False
    nodes: int = 0
    nodes_reason: str = ""
    exact: bool = False
    compiled: bool = False
    compiling: str = ""
    processor: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
