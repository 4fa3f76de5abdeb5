"""The request of a run, and the model and machine it ran on: plain values that accompany its events. No gradio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """``prompt`` is the text as typed, which the task's template wraps; ``settings`` as the log keeps them: the
    method's, those of sampling, and ``chat`` for the conversation before. ``processor`` is empty where nobody noted it.
    """

    prompt: str
    task: str
    method: str
    model: str
    adapter: str
    device: str
    dtype: str
    processor: str = ""
    when: str = ""  # UTC, ISO
    settings: Mapping[str, Any] = field(default_factory=dict)


def of_row(run: Mapping[str, Any]) -> Origin:
    """The origin of a logged run."""
    names = ("prompt", "task", "method", "model", "adapter", "device", "dtype")
    processor = (run["info"] or {}).get("processor", "")
    return Origin(**{n: run[n] for n in names}, processor=processor, when=run["started_utc"], settings=run["settings"])


def of_info(
    info: Any, prompt: str, task: str, method: str, processor: str, when: str, settings: Mapping[str, Any]
) -> Origin:
    """The origin of a run on a loaded model."""
    return Origin(prompt, task, method, info.model, info.adapter, info.device, info.dtype, processor, when, settings)
