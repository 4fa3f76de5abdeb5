"""The list of logged runs as HTML. Every text from outside is escaped here; times become local in the browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from specstream.stats import counted

from ..html.render import model_name, when
from ..state import history

TICKS = """
let ticked = [];
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-run]");
  if (!button) return;
  for (const one of element.querySelectorAll("[aria-current]")) one.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  trigger("select", { value: button.dataset.run });
});
element.addEventListener("change", (event) => {
  const box = event.target.closest("input[data-run]");
  if (!box) return;
  const run = box.dataset.run;
  ticked = box.checked ? [...ticked, run].slice(-2) : ticked.filter((one) => one !== run);
  for (const one of element.querySelectorAll("input[data-run]")) one.checked = ticked.includes(one.dataset.run);
  trigger("select", { pair: ticked });
});
watch("value", () => (ticked = []));
"""


def runs(found: Iterable[Mapping[str, Any]], opened: str = "") -> str:
    """The runs on one page of the list."""
    return f'<ol class="ss-runs" aria-label="Runs">{"".join(_run(run, opened) for run in found)}</ol>'


def _run(run: Mapping[str, Any], opened: str) -> str:
    name, place = history.title(run), escape(run["id"])
    star = '<span title="starred">★</span> ' if run["star"] else ""
    at = escape(run["started_utc"][:19].replace("T", " ")) + " UTC"
    current = ' aria-current="true"' if run["id"] == opened else ""
    return (
        f'<li><input type="checkbox" data-run="{place}" aria-label="Tick {escape(name)}, {at}, to compare">'
        f'<button type="button" data-run="{place}"{current}><strong>{star}{escape(name)}</strong>'
        f'<span class="ss-run-line">{escape(history.came(run))}</span>'
        f'<span class="ss-run-line">{when(run["started_utc"])} · {escape(_made(run))}</span></button></li>'
    )


def _made(run: Mapping[str, Any]) -> str:
    tokens = counted(run["tokens"], "token") if run["tokens"] is not None else "no tokens"
    return f"{history.method_label(run['method'])} · {model_name(run['model'])} · {tokens}"
