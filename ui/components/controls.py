"""Settings of a run as form fields, made from the labels and limits in ``specstream.params``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

import gradio as gr

from specstream import params
from specstream.params import Method, Sampling

from ..state import methods
from ..state.methods import Offer
from .handlers import QUIET

MAIN = ("max_new_tokens", "temperature", "budget")  # always visible; the rest is folded
SHARED = ("max_new_tokens", "temperature", "seed")  # the same where several methods run

Key = tuple[str, str]  # (method name or "sampling", field name)


@dataclass
class Controls:
    """The fields by the owner and name of their setting."""

    parts: dict[Key, gr.components.Component]

    def parse(self, values: Mapping[Any, Any], method: str) -> tuple[Method, Sampling]:
        """The settings in the form. Raises ValueError with one sentence if a value is outside its limits."""
        owned = {key: _value(part, values[part]) for key, part in self.parts.items()}
        sampling = {name: value for (owner, name), value in owned.items() if owner == "sampling"}
        mine = {name: value for (owner, name), value in owned.items() if owner == method}
        return params.method(method, **mine), Sampling(**sampling)

    def of_method(self) -> Iterator[tuple[str, gr.components.Component]]:
        """The fields that belong to one method, with its name."""
        return ((owner, part) for (owner, _), part in self.parts.items() if owner != "sampling")


def _value(part: gr.components.Component, value: Any) -> Any:
    """Texts (stop strings) are typed one per line; other values are unchanged."""
    return tuple((value or "").splitlines()) if isinstance(part, gr.Textbox) else value


def layout(method: str) -> Controls:
    """Lay out the fields: the main ones, then the rest in a fold. Of method-specific fields, only ``method``'s show."""

    def shown(owner: str) -> bool:
        return owner in ("sampling", method)

    parts: dict[Key, gr.components.Component] = {}
    known = [("sampling", f) for f in fields(Sampling)]
    known += [(name, f) for name, kind in params.METHODS.items() for f in fields(kind)]
    main = [(owner, f) for owner, f in known if f.name in MAIN]
    with gr.Row():
        parts |= {(owner, f.name): component(f, shown(owner)) for owner, f in main}
    rest = [(owner, f) for owner, f in known if f.name not in MAIN]
    with gr.Accordion("More settings", open=False):
        with gr.Row():
            parts |= {(owner, f.name): component(f, shown(owner)) for owner, f in rest if _limited(f)}
        parts |= {(owner, f.name): component(f) for owner, f in rest if not _limited(f)}
    return Controls(parts)


def _limited(f: Field[Any]) -> bool:
    """Whether a field has few values: a number within limits, or a choice."""
    return "min" in f.metadata or "choices" in f.metadata


def each_method(title: str, defaults: Mapping[str, Any] | None = None) -> Controls:
    """A fold with the settings shared by all methods, then one fold per method with its own settings.

    ``defaults`` replace those of the shared settings, by name.
    """
    shared = {("sampling", f.name): f for f in fields(Sampling)}
    with gr.Accordion(title, open=False):
        with gr.Row():
            parts = {key: component(f, default=(defaults or {}).get(f.name)) for key, f in shared.items()
                     if key[1] in SHARED}  # fmt: skip
        with gr.Accordion("More settings", open=False):
            parts |= {key: component(f) for key, f in shared.items() if key not in parts}
        for name, kind in params.METHODS.items():
            if own := fields(kind):
                with gr.Accordion(f"Settings of {kind.label}", open=False), gr.Row():
                    parts |= {(name, f.name): component(f) for f in own}
    return Controls(parts)


def method_box(name: str, said: bool = True) -> gr.Checkbox:
    """The checkbox that selects a method when several run. ``said``: with a description of the method."""
    info = methods.does(name) if said else None
    return gr.Checkbox(True, label=params.METHODS[name].label, info=info, interactive=True, min_width=150)


def method_update(name: str, offer: Offer, wished: Collection[str], said: bool = True) -> Any:
    """A method's checkbox: as the visitor chose, or disabled with the reason. While a model is on its way, nothing is
    known of it, and the checkbox stays as it is."""
    if offer.info is None:
        return gr.skip()
    if reason := offer.reason(name):
        return gr.update(value=False, interactive=False, info=reason)
    return gr.update(value=name in wished, interactive=True, info=methods.does(name) if said else "")


def wire_wishes(wished: gr.State, boxes: Mapping[str, gr.Checkbox]) -> None:
    """Remember what the visitor ticks. A disabled checkbox keeps its choice, because the method may come back."""

    def ticked(name: str) -> Callable[[list[str], bool], list[str]]:
        return lambda before, now: [*(n for n in before if n != name), *([name] if now else [])]

    for name, box in boxes.items():
        box.input(ticked(name), [wished, box], wished, queue=False, **QUIET)


class Number(gr.Number):
    """A number field whose value is checked by the code that reads it, which names the field in its message.

    gradio itself would reject a value outside its limits with a message that does not name the field.
    """

    is_template = True  # to the browser it is gradio's own

    @staticmethod
    def raise_if_out_of_bounds(*limits: Any) -> None:
        pass


def whole(value: Any, name: str, most: int) -> int:
    """The count in a number field, from 1 to ``most``. Raises ValueError with one sentence for anything else."""
    if not isinstance(value, int | float) or not 1 <= value <= most or value != int(value):
        given = "empty" if value is None else f"{value:,}" if isinstance(value, int | float) else repr(value)
        raise ValueError(f"{name} must be a whole number from 1 to {most:,}, not {given}.")
    return int(value)


def component(f: Field[Any], visible: bool = True, default: Any = None) -> gr.components.Component:
    """One field, of a kind that depends on its metadata. No sliders: they change typed values outside their limits."""
    default = f.default if default is None else default
    meta: Mapping[str, Any] = f.metadata
    shown = {"label": meta["label"], "info": meta["help"], "interactive": True, "min_width": 200, "visible": visible}
    if "choices" in meta:
        return gr.Dropdown(list(meta["choices"]), value=default, **shown)
    if isinstance(f.default, bool):
        return gr.Checkbox(default, **shown)
    if isinstance(f.default, tuple):
        shown["info"] = f"{meta['help'].rstrip('.')}; one to a line."
        return gr.Textbox("\n".join(default), lines=2, max_lines=4, **shown)
    limits = {"minimum": meta["min"], "maximum": meta["max"], "step": meta["step"]}
    return Number(default, precision=0 if isinstance(f.default, int) else None, **limits, **shown)
