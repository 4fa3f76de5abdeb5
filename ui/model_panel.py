"""The model: what is loaded, and the form that loads another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from specstream.models import catalogue
from ui import render
from ui.engines import TOY, Busy, Engines, State
from ui.rules import Refused

ADAPTERS = ("auto", "none")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class ModelPanel:
    """The parts of the panel."""

    line: gr.HTML
    fold: gr.Accordion
    card: gr.HTML
    model: gr.Dropdown
    adapter: gr.Dropdown
    device: gr.Dropdown
    dtype: gr.Dropdown
    load: gr.Button

    def updates(self, state: State) -> dict[Any, Any]:
        """What the panel shows of a state."""
        card = render.model_card(state.info) if state.info else ""
        return {
            self.line: gr.update(value=(words := line(state)), visible=bool(words)),
            self.fold: gr.update(label=title(state)),
            self.card: card,
            self.load: gr.update(interactive=not state.loading),
        }

    def chosen(self, values: Mapping[Any, Any]) -> dict[str, str]:
        """The choice in the form."""
        parts = {"model": self.model, "adapter": self.adapter, "device": self.device, "dtype": self.dtype}
        return {name: str(values[part] or "") for name, part in parts.items()}

    def show(self, choice: Mapping[str, str]) -> dict[Any, Any]:
        """Put a choice into the form."""
        parts = {"model": self.model, "adapter": self.adapter, "device": self.device, "dtype": self.dtype}
        return {part: choice[name] for name, part in parts.items()}

    @property
    def choice(self) -> list[Any]:
        return [self.model, self.adapter, self.device, self.dtype]

    @property
    def outputs(self) -> list[Any]:
        return [self.line, self.fold, self.card, self.load]


def request_load(engines: Engines, choice: dict[str, str]) -> Iterator[State]:
    """Start a load and follow it. One that is refused, or comes while another is under way, gets a warning."""
    try:
        engines.load(**choice)
    except (Busy, Refused) as no:
        gr.Warning(str(no))
    yield from engines.watch()


def title(state: State) -> str:
    """What is loaded, for the fold's title."""
    return f"Model: {render.model_line(state.info) if state.info else 'none yet'}"


def line(state: State) -> str:
    """A load under way, or what the last one failed with; nothing when all is well."""
    if state.loading:
        share = "" if state.fraction is None else f" {state.fraction:.0%}"
        return render.status(f"Loading the model: {state.words}{share}", "busy")
    if state.error:
        kept = " The model loaded before stays in use." if state.info else ""
        return render.status(state.error + kept, "bad")
    return ""


def layout(engines: Engines) -> ModelPanel:
    """Lay out the panel with the choice that is being loaded."""
    chosen = engines.choice
    names = list(dict.fromkeys([chosen["model"], *(entry.name for entry in catalogue()), TOY]))
    status = gr.HTML(line(engines.state))
    with gr.Accordion(title(engines.state), open=False) as fold:
        card = gr.HTML()
        with gr.Row():
            model = gr.Dropdown(
                names, value=chosen["model"], allow_custom_value=True, label="Model", interactive=True,
                info="A name from the list, a Hugging Face Hub id or a folder.",
            )  # fmt: skip
            adapter = gr.Dropdown(
                list(ADAPTERS), value=chosen["adapter"], allow_custom_value=True, label="Adapter", interactive=True,
                info="The trained streams: auto, none, the name of a task or a folder.",
            )  # fmt: skip
            device = gr.Dropdown(list(DEVICES), value=chosen["device"], label="Device", info="Where it computes.")
            dtype = gr.Dropdown(list(DTYPES), value=chosen["dtype"], label="Number format", info="Of the weights.")
        load = gr.Button("Load", size="sm")
    return ModelPanel(status, fold, card, model, adapter, device, dtype, load)
