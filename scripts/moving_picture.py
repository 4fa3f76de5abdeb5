"""The animation in README.md: the two texts of the page, playing its recorded run slowed down.

    python -m scripts.moving_picture [--out docs/images/race.webp]

The page shows its recorded run, so no model is loaded. Every frame lasts as long as it did in the browser.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import FloatRect, Page, ViewportSize, expect

from scripts.browser import chromium
from scripts.pictures import IMAGES, LONG, served

FILE = IMAGES / "race.webp"
SIZE: ViewportSize = {"width": 1000, "height": 900}
PLAYING, AT_REST = ".ss-player.ss-playing", ".ss-player:not(.ss-playing)"
FIRST, LAST = ".ss-result", ".ss-walk"  # the top and bottom elements of the picture
MARGIN = 4  # pixels around them
WIDTH = 800  # pixels of the picture
QUALITY = 55
PAUSE = 2.5  # seconds that the last frame stays


def region(page: Page) -> FloatRect:
    """The part of the page in the picture."""
    first, last = (page.locator(part).first.bounding_box() for part in (FIRST, LAST))
    assert first and last
    top, bottom = first["y"] - MARGIN, last["y"] + last["height"] + MARGIN
    return {"x": last["x"] - MARGIN, "y": top, "width": last["width"] + 2 * MARGIN, "height": bottom - top}


def frames(page: Page) -> list[tuple[float, Image.Image]]:
    """Screenshots from the first token to the last, with their times in seconds."""
    expect(page.locator(AT_REST).first).to_be_visible(timeout=LONG)  # it has played once by itself
    page.get_by_role("button", name="Play", exact=True).first.click()
    expect(page.locator(PLAYING).first).to_be_visible(timeout=LONG)
    page.mouse.move(0, 0)
    clip, found, start, playing = region(page), [], time.monotonic(), True
    while playing:
        playing = page.locator(PLAYING).count() > 0
        now, shot = time.monotonic() - start, page.screenshot(clip=clip, type="png")
        found.append((now, Image.open(io.BytesIO(shot)).convert("RGB")))
    return found


def write(taken: list[tuple[float, Image.Image]], file: Path) -> None:
    """Write the frames that differ from their predecessor as a looping WebP."""
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
def main(out: Path) -> None:
    with chromium() as browser, served("toy", toy=True) as url:
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{url}?__theme=light")
        write(frames(page), out)
    click.echo(f"{out} {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
