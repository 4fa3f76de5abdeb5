"""The model panel: what is loaded, and the form that loads another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from specstream.adapters.find import bundled
from specstream.adapters.local import mine
from specstream.data.tasks import TASKS
from specstream.hub.catalogue import CATALOGUE, accept_terms, catalogue, terms_of
from specstream.hub.download import ModelError
from specstream.model import memory

from ..access_rules import OPEN, Refused, Rules
from ..html import render
from ..jobs.engine_host import TOY, Busy, Engines, State
from .handlers import QUIET

T = TypeVar("T")
ADAPTERS = ("auto", "none")
NO_DRAFT = "none"
AND_SETTINGS = " · settings"
DEVICES = ("auto", "cpu", "cuda", "mps", ("offload: a model larger than its GPU", "offload"))
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass
class ModelPanel:
    """The parts of the panel."""

    line: gr.HTML
    fold: gr.Accordion
    card: gr.HTML
    known: gr.State  # what is loaded, as a text: unlike the parts of a closed fold, it reports every change
    model: gr.Dropdown
    adapter: gr.Dropdown
    device: gr.Dropdown
    dtype: gr.Dropdown
    draft: gr.Dropdown
    load: gr.Button
    unload: gr.Button
    need: gr.HTML
    accept: gr.Button
    own: bool = True  # one's own adapters are listed too

    def told(self, state: State) -> dict[Any, Any]:
        """The panel's text for a state."""
        card = render.model_card(state.info, memory_facts(state)) if state.info else ""
        return {
            self.line: gr.update(value=(words := line(state)), visible=bool(words)),
            self.fold: gr.update(label=title(state)),
            self.card: card,
            self.known: repr(state.info),
        }

    def updates(self, state: State) -> dict[Any, Any]:
        """The panel's text for a state, and the actions available then."""
        return (
            self.told(state)
            | {
                self.load: gr.update(interactive=not state.loading),
                self.unload: gr.update(interactive=state.info is not None and not state.loading),
            }
            | (
                {self.adapter: gr.update(choices=labelled(adapter_choices(state.info.model, self.own)))}
                if state.info
                else {}
            )
        )

    @property
    def parts(self) -> dict[str, gr.Dropdown]:
        """The form's fields by what they choose."""
        return {
            "model": self.model,
            "adapter": self.adapter,
            "device": self.device,
            "dtype": self.dtype,
            "draft": self.draft,
        }

    def chosen(self, values: Mapping[Any, Any]) -> dict[str, str]:
        """The choice in the form."""
        return {name: str(values[part] or "") for name, part in self.parts.items()}

    def show(self, choice: Mapping[str, str]) -> dict[Any, Any]:
        """Put a choice into the form."""
        return {part: choice[name] for name, part in self.parts.items() if name in choice}

    @property
    def choice(self) -> list[Any]:
        return list(self.parts.values())

    @property
    def outputs(self) -> list[Any]:
        return [self.line, self.fold, self.card, self.known, self.load, self.unload, *self.choice]

    def wire(self, engines: Engines) -> None:
        """Show what a model will need as soon as it is chosen."""
        fields = [self.model, self.device, self.dtype]

        def needed(model: str | None, device: str, dtype: str) -> tuple[str, Any]:
            known = model == engines.choice["model"]  # which the rules do not concern if the page was started with it
            return _allowed(needs, OPEN if known else engines.rules, model, device, dtype)

        def agreed(model: str | None, device: str, dtype: str) -> tuple[str, Any]:
            return _allowed(accepted, engines.rules, model, device, dtype)

        for event in (self.fold.expand, *(field.change for field in fields)):
            event(needed, fields, [self.need, self.accept], queue=False, **QUIET)
        self.accept.click(agreed, fields, [self.need, self.accept], queue=False, **QUIET)


def _allowed(
    work: Callable[[str | None, str, str], tuple[str, Any]], rules: Rules, model: str | None, device: str, dtype: str
) -> tuple[str, Any]:
    """The result of the work, or why the rules do not allow the model."""
    try:
        rules.check_choice((model or "").strip())
    except Refused as no:
        return render.status(str(no), "bad"), gr.update(visible=False)
    return work(model, device, dtype)


def request_unload(engines: Engines) -> Iterator[State]:
    """Free the model's memory and follow the progress."""
    try:
        engines.unload()
    except (Busy, Refused) as no:
        gr.Warning(str(no))
    yield from engines.watch()


def request_load(engines: Engines, choice: dict[str, str]) -> Iterator[State]:
    """Start a load and follow it. If it is refused, or another is in progress, show a warning."""
    try:
        engines.load(**choice)
    except (Busy, Refused) as no:
        gr.Warning(str(no))
    yield from engines.watch()


def needs(model: str | None, device: str, dtype: str) -> tuple[str, Any]:
    """The chosen model's memory, and the button that accepts its licence, if that is still necessary."""
    name = (model or "").strip()
    terms = terms_of(name)
    words = render.terms(name, CATALOGUE[name].licence, terms) if terms else ""
    return words + need_words(model, device, dtype), gr.update(visible=bool(terms))


def accepted(model: str | None, device: str, dtype: str) -> tuple[str, Any]:
    """Accept the licence of the chosen model, which may then be downloaded."""
    accept_terms((model or "").strip())
    return needs(model, device, dtype)


def need_words(model: str | None, device: str, dtype: str) -> str:
    """The memory that the chosen model will take, before it is loaded; or why it can't run, if known."""
    try:
        if not model or model == TOY:
            return ""
        wanted, free = memory.need(model.strip(), device, dtype), memory.free(device)
    except ModelError as error:
        return render.status(str(error), "bad")
    return render.memory_need(wanted, free)


def memory_facts(state: State) -> list[tuple[str, str]]:
    """The memory used after a load. What is free now is said where another model is chosen, and only there."""
    return [("Memory", f"the whole program uses {memory.gigabytes(state.used)} since loading")] if state.used else []


def adapter_choices(model: str, own: bool = True) -> list[str]:
    """The adapters for a model by name; ``own``: one's own too, not only those bundled."""
    return [*dict.fromkeys([*ADAPTERS, *bundled(model), *(mine(model) if own else ())])]


def labelled(names: Iterable[str]) -> list[tuple[str, str]]:
    """Adapters with their tasks. A bare ``code`` is also the name of one of gradio's own texts, which it looks up."""
    return [(f"{name}: {TASKS[name].label}" if name in TASKS else name, name) for name in names]


def progress(state: State) -> str:
    """The progress of a load."""
    return state.words + ("" if state.fraction is None else f", {state.fraction:.0%}")


def title(state: State) -> str:
    """The load in progress, or what is loaded, for the fold's title; never empty, so that nothing moves."""
    if state.loading:
        return f"Model: loading ({progress(state)})"
    return f"Model: {render.model_line(state.info) if state.info else 'none yet'}{AND_SETTINGS}"


def line(state: State) -> str:
    """The error of the last load; empty if it succeeded."""
    if state.error:
        kept = " The model loaded before stays in use." if state.info else ""
        return render.status(state.error + kept, "bad")
    return ""


def layout(engines: Engines, more: Callable[[], T]) -> tuple[ModelPanel, T]:
    """Lay out the panel with the choice that is being loaded, and what ``more`` lays out in the same fold."""
    chosen, anything = engines.choice, engines.rules.may_load_any
    known = [entry.name for entry in catalogue()] if anything else list(engines.rules.models)
    names = list(dict.fromkeys([chosen["model"], *known, TOY]))
    second = chosen.get("draft", NO_DRAFT)
    status = gr.HTML(words := line(engines.state), visible=bool(words))
    with gr.Accordion(title(engines.state), open=False, elem_classes="ss-drawer") as fold:
        card = gr.HTML()
        with gr.Row():
            model = gr.Dropdown(
                names, value=chosen["model"], allow_custom_value=anything, label="Model", interactive=True,
                info="A name from the list, a Hugging Face Hub id or a folder.",
            )  # fmt: skip
            adapter = gr.Dropdown(
                labelled(dict.fromkeys([*ADAPTERS, chosen["adapter"]])), value=chosen["adapter"],
                allow_custom_value=anything, label="Adapter", interactive=True,
                info="The trained streams: auto, none, the name of a task or a folder.",
            )  # fmt: skip
            device = gr.Dropdown(
                list(DEVICES),
                value=chosen["device"],
                label="Device",
                visible=anything,
                info="Where it computes. offload is slow: layers that don't fit there wait in main memory and on disk.",
            )
            dtype = gr.Dropdown(
                list(DTYPES),
                value=chosen["dtype"],
                label="Number format",
                info="Of the weights. int8 is faster on a processor and near bfloat16 in quality, but another model.",
                visible=anything,
            )
            draft = gr.Dropdown(
                list(dict.fromkeys([NO_DRAFT, second, *known])), value=second, allow_custom_value=True,
                label="Draft model", interactive=True, visible=anything,
                info="A second, smaller model with the same tokenizer, to compare with: a name, a Hub id or a folder.",
            )  # fmt: skip
        need = gr.HTML()
        with gr.Row():
            accept = gr.Button("I have read the licence, and accept it", size="sm", visible=False)
            load = gr.Button("Load", size="sm")
            unload = gr.Button("Unload", size="sm", interactive=False, visible=engines.rules.may_unload)
        rest = more()
    known = gr.State("")
    panel = ModelPanel(
        status, fold, card, known, model, adapter, device, dtype, draft, load, unload, need, accept, anything
    )
    return panel, rest
