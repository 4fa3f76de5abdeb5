"""Endpoints for programs: the same engine, log and rules as the page."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import gradio as gr

from specstream import params
from specstream.events import Lane
from specstream.params import Method, Sampling, Standard
from ui.engines import Engines
from ui.feed import Feed
from ui.playground import MOST_WAITING, check_prompt
from ui.view import View
from ui.worker import Ask, Run


def add(engines: Engines, runlog: Any) -> None:
    """Add ``/generate`` and ``/model`` to the page that is being built."""

    def generate(
        prompt: str, task: str = "raw", method: str = "streaming", settings: dict[str, Any] | None = None,
        compare: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """Run a prompt to the end. ``settings`` are those of the form, by name, for example {"max_new_tokens": 64}."""
        try:
            check_prompt(prompt)
            chosen, sampling = split(method, settings or {})
        except ValueError as error:
            raise gr.Error(str(error)) from None
        baseline = compare and not isinstance(chosen, Standard)
        return result(Run(engines, runlog, Ask(prompt, task, chosen, sampling, baseline)))

    def model() -> dict[str, Any]:
        """What is loaded, or why nothing is."""
        state = engines.state
        return {"loading": state.loading, "error": state.error, "info": state.info.to_dict() if state.info else None}

    gr.api(generate, api_name="generate", concurrency_id="engine", concurrency_limit=MOST_WAITING)
    gr.api(model, api_name="model", queue=False)


def split(method: str, settings: dict[str, Any]) -> tuple[Method, Sampling]:
    """Settings by where they belong. Raises ValueError for an unknown name or a value out of its limits."""
    shared = {f.name for f in fields(Sampling)}
    sampling = {name: value for name, value in settings.items() if name in shared}
    if "stop" in sampling:
        sampling["stop"] = _texts(sampling["stop"])
    return params.method(method, **{n: v for n, v in settings.items() if n not in shared}), Sampling(**sampling)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"Stop strings must be a list of texts, not {value!r}.")
    return tuple(value)


def result(run: Run) -> dict[str, Any]:
    """The outcome of a run as plain values. Raises gr.Error with the sentence of a run that failed."""
    view = View(Feed("api"))
    for batch in run.batches():
        for item in batch:
            view.add(item)
    if view.tone == "bad":
        raise gr.Error(view.words)
    found = view.verdict
    return {
        "text": view.text,
        "run": view.log_id,
        "stats": {str(lane): view.stats[lane].to_dict() for lane in Lane if view.stats[lane].tokens},
        "verdict": found and {"agreement": str(found.agreement), "message": found.message, "speedup": found.speedup},
    }
