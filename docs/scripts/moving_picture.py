"""The moving picture of README.md: the two texts of the page beside each other, as they play at the measured pace.

    python -m docs.scripts.moving_picture [--out docs/images/race.webp] [--seconds 12]

The page shows its recorded run, so no model is loaded. Every frame lasts as long as it did in the browser.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Page, expect

from docs.scripts.browser import chromium
from docs.scripts.pictures import IMAGES, LONG, served

FILE = IMAGES / "race.webp"
SIZE = {"width": 1000, "height": 900}
STARTED, SHOWN = ".ss-player", ".ss-player"  # what plays, and what is taken of it
WIDTH = 800  # pixels of the picture
QUALITY = 55
PAUSE = 2.5  # seconds that the last frame stays


def frames(page: Page, seconds: float) -> list[tuple[float, Image.Image]]:
    """What the page shows until it has played to the end, and when, in seconds."""
    box = page.locator(SHOWN).first.bounding_box()
    assert box
    found, start = [], time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        shot = page.screenshot(clip=box, type="png")  # type: ignore[arg-type]
        found.append((now, Image.open(io.BytesIO(shot)).convert("RGB")))
    return found


def write(taken: list[tuple[float, Image.Image]], file: Path) -> None:
    """The frames that differ from the one before, as an animated WebP that begins again."""
    kept = [taken[0], *(now for before, now in zip(taken, taken[1:], strict=False) if now[1] != before[1])]
    ends = [at for at, _ in kept[1:]] + [kept[-1][0] + PAUSE]
    durations = [round(1000 * (end - at)) for end, (at, _) in zip(ends, kept, strict=True)]
    height = round(kept[0][1].height * WIDTH / kept[0][1].width)
    images = [image.resize((WIDTH, height), Image.Resampling.LANCZOS) for _, image in kept]
    images[0].save(
        file, save_all=True, append_images=images[1:], duration=durations, loop=0, quality=QUALITY, method=6
    )  # fmt: skip


@click.command(help=__doc__.splitlines()[0])
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=FILE, show_default=True)
@click.option("--seconds", default=12.0, show_default=True, help="How long the page is watched.")
def main(out: Path, seconds: float) -> None:
    with chromium() as browser, served("toy", toy=True) as url:
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.goto(f"{url}?__theme=light")
        expect(page.locator(STARTED).first).to_be_visible(timeout=LONG)
        write(frames(page, seconds), out)
    click.echo(f"{out} {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
