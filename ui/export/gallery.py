"""A gallery of recorded runs as plain files, for any static host: no model, no server, no network.

python -m ui.export.gallery --out site/ [--base https://host/path/]
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import click

from .. import product
from ..state import recording
from ..state.recording import Recording
from ..state.view import View
from . import page, picture
from .story import Story, of_view

RUNS = recording.FILE.parent / "gallery"
HERE = Path(__file__).parent
PICTURE, ANIMATION, INDEX = "picture.png", "animation.webp", "index.html"
UP = '<a href="../index.html">All runs</a>'


@dataclass(frozen=True)
class Shown:
    """A run of the gallery. ``name`` is its folder, ``title`` what it shows."""

    name: str
    title: str
    view: View
    story: Story


def recorded(folder: Path = RUNS) -> list[Shown]:
    """The recorded runs in a folder, by file name. Raises ValueError if there are none."""
    found = [shown(file.stem, recording.read(file)) for file in sorted(folder.glob("*.json"))]
    if not found:
        raise ValueError(f"{folder} holds no recorded runs (*.json).")
    return found


def shown(name: str, run: Recording) -> Shown:
    """A recorded run. Raises ValueError for one that wrote nothing."""
    view = run.view()
    if (story := of_view(view)) is None:
        raise ValueError(f"The recorded run {name} wrote nothing.")
    return Shown(name, run.values["label"], view, story)


def build(runs: Sequence[Shown], out: Path, base: str = "") -> None:
    """Write the gallery: an index, and for each run a folder with its page, picture and animation.

    ``base`` is its future URL, for the link previews in messages; empty if unknown.
    """
    out.mkdir(parents=True, exist_ok=True)
    for run in runs:
        folder = out / run.name
        folder.mkdir(exist_ok=True)
        (folder / INDEX).write_text(page.run_page(run.view, run.story, None, preview(run, base), UP), encoding="utf-8")
        (folder / PICTURE).write_bytes(picture.png(run.story))
        (folder / ANIMATION).write_bytes(picture.webp(run.story))
    (out / INDEX).write_text(index(runs), encoding="utf-8")


def preview(run: Shown, base: str) -> str:
    """The preview that sites show for the link: title, sentence, picture."""
    at = f"{base.rstrip('/')}/{run.name}/" if base else ""
    values = {
        "og:type": "website",
        "og:title": run.story.headline,
        "og:description": run.title,
        "og:image": at + PICTURE,
    }
    tags = (f'<meta property="{name}" content="{escape(value)}">' for name, value in values.items())
    return "".join(tags) + '<meta name="twitter:card" content="summary_large_image">'


def index(runs: Iterable[Shown]) -> str:
    """The page with all runs."""
    values = {
        "name": product.NAME,
        "style": page.style(),
        "cards": "".join(map(_card, runs)),
        "links": page.links(),
    }
    return string.Template((HERE / "gallery.html").read_text(encoding="utf-8")).substitute(values)


def _card(run: Shown) -> str:
    said = escape(run.story.headline)
    return (
        f'<li><a href="{run.name}/index.html"><img src="{run.name}/{PICTURE}" width="{picture.WIDTH}" '
        f'height="{picture.HEIGHT}" loading="lazy" alt=""><strong>{escape(run.title)}</strong>'
        f"<span>{said}</span></a></li>"
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
@click.option("--base", default="", help="The address that the gallery will have, for previews of its links.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=RUNS, help="Recorded runs (*.json).")
def main(out: Path, base: str, runs: Path) -> None:
    """Write the gallery of recorded runs."""
    try:
        found = recorded(runs)
        build(found, out, base)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{len(found)} runs in {out / INDEX}")


if __name__ == "__main__":
    main()
