"""What is loaded, in plain values: shown on the page, written to the log."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specstream.params import NODES


def processor() -> str:
    """The machine's processor, and its cores where they can be counted."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def top_layers(count: int) -> str:
    """Words for the layers that carry streams."""
    return "the last layer" if count == 1 else f"the top {count} layers"


@dataclass(frozen=True)
class EngineInfo:
    """A loaded model and adapter.

    ``unavailable`` gives, per method that can't run on this model, one sentence that says why. ``notes`` are sentences
    that a user should see (an untrained model, a failed self-test). ``chat`` says that the model
    has a chat template. ``gamma`` is 0 without streams, and so is ``stream_layers``, the number of top layers that
    streams run through; ``layers`` is 0 where the parts are not found.
    ``parameters`` counts the base model's weights, ``extra_parameters`` what streams add (their LoRA too, but none that
    only fine-tunes the model), ``draft_parameters`` the draft model's, whose weights take ``draft_bytes``, and
    ``head_parameters`` by method those of Medusa heads and of the early exit that drafts.
    ``tuned`` says that the adapter changes what the model writes. ``nodes`` is how many drafted nodes a pass verifies
    for little more than none, ``nodes_reason`` why. ``exact`` says that a token had the same bits in a tree as on its
    own in the self-test.
    ``compiled``: the layers run compiled; ``compiling`` says how that stands, in a sentence. ``processor`` is the
    machine's, with its cores.
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
    nodes: int = NODES
    nodes_reason: str = ""
    exact: bool = False
    compiled: bool = False
    compiling: str = ""
    processor: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
