"""Endpoints for programs: the same engine, log and rules as the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any

import gradio as gr

from specstream import params
from specstream.data.tasks import TASKS
from specstream.data.tasks import task as find_task
from specstream.events import Lane
from specstream.params import Method, Sampling, Standard
from specstream.runlog import RunLog

from .jobs.engine_host import Engines
from .jobs.runs import RunJob, RunRequest
from .state.feed import Feed
from .state.history import shorten
from .state.view import View
from .tabs.playground import MOST_WAITING, check_prompt


def add(engines: Engines, runlog: RunLog | None) -> None:
    """Add ``/generate``, ``/stream``, ``/model`` and ``/settings`` to the page that is being built.

    Their docstrings appear in the list of endpoints, and are read by language models that use them as tools.
    """

    def generate(
        prompt: str, task: str = "raw", method: str = "streaming", settings: dict[str, Any] | None = None,
        compare: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """Let the loaded model continue a prompt, to the end, and say how fast it was.

        Args:
            prompt: The text as typed; the task says how it is wrapped before the model sees it.
            task: A task by name, or raw for none.
            method: How to decode, by name: the text is the same with every method, only the speed differs.
            settings: The settings of the page's form by name, for example {"max_new_tokens": 64}; see /settings.
            compare: Also run standard decoding, to measure the speed-up and to compare the texts.

        Returns:
            The text, the run's id in the log, the numbers of each run, and the verdict on both.
        """
        run = asked(engines, runlog, prompt, task, method, settings, compare)
        *_, last = follow(run)
        return result(last)

    def stream(
        prompt: str, task: str = "raw", method: str = "streaming", settings: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Let the loaded model continue a prompt, and return the text while it is written.

        Args:
            prompt: The text as typed; the task says how it is wrapped before the model sees it.
            task: A task by name, or raw for none.
            method: How to decode, by name.
            settings: The settings of the page's form by name; see /settings.

        Returns:
            The same as /generate, without a comparison, updated a few times a second.
        """
        for view in follow(asked(engines, runlog, prompt, task, method, settings, compare=False)):
            yield result(view)

    def model() -> dict[str, Any]:
        """Which model is loaded, where it runs and what it can't do, or why nothing is loaded."""
        state = engines.state
        return {"loading": state.loading, "error": state.error, "info": state.info.to_dict() if state.info else None}

    def settings() -> dict[str, Any]:
        """The tasks, the methods and all their settings by name, with defaults, limits and help texts."""
        return known_settings()

    waits: dict[str, Any] = {"concurrency_id": "engine", "concurrency_limit": MOST_WAITING}
    gr.api(generate, api_name="generate", **waits)
    gr.api(stream, api_name="stream", **waits)
    gr.api(model, api_name="model", queue=False)
    gr.api(settings, api_name="settings", queue=False)


def asked(
    engines: Engines, runlog: RunLog | None, prompt: Any, task: Any, method: Any, settings: Any, compare: Any
) -> RunJob:
    """The run requested by a program, whose arguments may be anything. Raises gr.Error with one sentence."""
    try:
        for name, value in {"prompt": prompt, "task": task, "method": method}.items():
            _check(isinstance(value, str), f"The {name} must be a text", value)
        _check(settings is None or isinstance(settings, dict), "The settings must be an object of names and values",
               settings)  # fmt: skip
        _check(isinstance(compare, bool), "Compare must be true or false", compare)
        _check_task(task)
        check_prompt(prompt)
        chosen, sampling = split(method, settings or {})
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    return RunJob(
        engines, runlog, RunRequest(prompt, task, chosen, sampling, compare and not isinstance(chosen, Standard))
    )


def _check(fine: bool, words: str, value: Any) -> None:
    if not fine:
        raise ValueError(f"{words}, not {shorten(json.dumps(value, ensure_ascii=False))}.")


def _check_task(name: str) -> None:
    if name not in ("", "none", "raw"):
        find_task(name)


def known_settings() -> dict[str, Any]:
    """Every name that ``/generate`` accepts."""
    return {
        "tasks": {"raw": "None: the prompt as it is"} | {name: task.label for name, task in TASKS.items()},
        "sampling": _fields(Sampling),
        "methods": {name: {"label": kind.label, "settings": _fields(kind)} for name, kind in params.METHODS.items()},
    }


def _fields(kind: type) -> dict[str, Any]:
    return {f.name: {"default": f.default} | dict(f.metadata) for f in fields(kind)}


def split(method: str, settings: dict[str, Any]) -> tuple[Method, Sampling]:
    """JSON settings, grouped by owner. Raises ValueError for an unknown name or a value outside its limits."""
    kinds = (Sampling, *params.METHODS.values())
    known = {f.name: f for kind in kinds for f in fields(kind)}
    values = {name: _plain(known[name], value) if name in known else value for name, value in settings.items()}
    return params.configure(method, values)


def _plain(field: Field[Any], value: Any) -> Any:
    """A setting, converted to its parameter's type. Raises ValueError for a value of another type."""
    label = field.metadata["label"]
    if isinstance(field.default, bool):
        _check(isinstance(value, bool), f"{label} must be true or false", value)
    if isinstance(field.default, tuple):
        texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
        _check(texts, f"{label} must be a list of texts", value)
        return tuple(value)
    return value


def follow(run: RunJob) -> Iterator[View]:
    """The state of a run whenever it changes, to its end. Raises gr.Error with the sentence of a run that failed."""
    view = View(Feed("api"))
    for batch in run.batches():
        for item in batch:
            view.add(item)
        if view.tone == "bad":
            raise gr.Error(view.words, print_exception=False)
        yield view


def result(view: View) -> dict[str, Any]:
    """A run as plain values."""
    found = view.verdict
    return {
        "text": view.text,
        "run": view.log_id,
        "stats": {str(lane): view.stats[lane].to_dict() for lane in Lane if view.stats[lane].tokens},
        "verdict": found and {"agreement": str(found.agreement), "message": found.message, "speedup": found.speedup},
    }
