"""A run or a race as one HTML file that works anywhere: style, data and scripts are inline, no network is needed."""

from __future__ import annotations

import string
from collections.abc import Sequence
from html import escape
from pathlib import Path

from specstream.installation import data_file

from .. import product, theme
from ..components import player, race
from ..html.render import KEEP_LOCAL, facts
from ..jobs.comparisons import Entry
from ..state.feed import encode
from ..state.view import View
from .story import Story

HERE = Path(__file__).parent
STYLES = data_file("assets")


def style() -> str:
    """The styles of the page's own parts, light and dark."""
    sheets = (sheet.read_text(encoding="utf-8") for sheet in sorted(STYLES.glob("*.css")))
    return theme.variables() + "\n".join(sheets)


def run_page(view: View, story: Story, base: str | None = None, head: str = "", up: str = "") -> str:
    """The file of a run. ``base`` is the URL of the page that made it, None if others can't reach it.

    ``head`` and ``up`` are HTML for the page's head and for its first line.
    """
    show = player.text("player.html"), player.script(), encode(view.feed.whole())
    return _filled(story, *show, base=base, head=head, up=up)


def race_page(entries: Sequence[Entry], story: Story, base: str | None = None) -> str:
    """The file of a race."""
    table = f"<h2>Every method</h2>{race.table(entries, base)}{race.lines_svg(entries)}"
    return _filled(story, race.text("race.html"), race.text("race.js"), race.message(entries), table, base)


def _filled(
    story: Story,
    show: str,
    script: str,
    data: str,
    more: str = "",
    base: str | None = None,
    head: str = "",
    up: str = "",
) -> str:
    values = {
        "title": escape(f"{story.headline} – {product.NAME}"),
        "name": product.NAME,
        "headline": escape(story.headline),
        "prompt": escape(story.prompt),
        "facts": facts(story.facts),
        "style": style(),
        "links": links(story.run, base),
        "show": show,
        "script": script,
        "local": KEEP_LOCAL,
        "data": data,
        "more": more,
        "head": head,
        "up": up,
    }
    return string.Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(values)


def links(run: str = "", base: str | None = None) -> str:
    """Links for the reader: the run on the page, the program, the paper."""
    known = (
        ("This run, live", f"{base}?run={run}" if base and run else ""),
        (f"{product.NAME} on {_host(product.repository())}", product.repository()),
        ("The paper", product.PAPER),
    )
    return " ".join(f'<a href="{escape(url)}" rel="noopener">{words}</a>' for words, url in known if url)


def _host(address: str) -> str:
    return {"github.com": "GitHub", "huggingface.co": "Hugging Face"}.get(
        address.split("/")[2] if address else "", "the web"
    )
