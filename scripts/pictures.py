"""Screenshots of the running page in a real browser: those of README and docs, or of every tab.

python -m scripts.pictures                       the pictures in docs/images, with the default model
python -m scripts.pictures --all --out FOLDER    every tab on a desktop and a phone, light and dark, for review
With --toy: the toy model, which is quick. Tabs that the page does not have are skipped; a tab that can't be filled in
time is shown as it opens, and reported.
"""

from __future__ import annotations

import base64
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from playwright.sync_api import Error, Page, expect

from scripts.browser import chromium
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from ui import app
from ui.jobs import engine_host

IMAGES = Path(__file__).parents[1] / "docs" / "images"
DESKTOP, PHONE = 1280, 390
HEIGHTS = {DESKTOP: 900, PHONE: 844}
TALL = {"How it works": 1500}  # tabs that need more height than a desktop window
QUALITY = 80  # of WebP: text stays sharp, a picture takes 30 to 120 kB
TOP, TABS, TOOLBAR = ".ss-header", "[role=tablist]", ".ss-toolbar:visible"  # elements at the top of a picture
LONG = 600_000  # milliseconds until a run, a comparison or a small benchmark must have ended
SETTLED = 1500  # milliseconds for charts and layout after a change


@dataclass(frozen=True)
class Shot:
    """One picture: a tab at a width, in the light or the dark."""

    tab: str
    width: int = DESKTOP
    dark: bool = False

    @property
    def name(self) -> str:
        words = [*re.findall(r"\w+", self.tab.lower()), *(["phone"] if self.width == PHONE else [])]
        return "-".join([*words, *(["dark"] if self.dark else [])]) + ".webp"


def shots(tabs: list[str], everything: bool) -> list[Shot]:
    """The shots of these tabs: each on a light desktop, and a few in other variants; or all variants."""
    if everything:
        return [Shot(tab, width, dark) for tab in tabs for width in HEIGHTS for dark in (False, True)]
    more = [Shot("Playground", dark=True), Shot("Playground", PHONE), Shot("How it works", PHONE, dark=True)]
    return [Shot(tab) for tab in tabs] + [shot for shot in more if shot.tab in tabs]


# ---- filling the tabs ------------------------------------------------------------------------------------------------


def run(page: Page) -> str:
    """A finished run, at a step with a deep path. Returns the top element of the picture, as the others do."""
    page.get_by_role("button", name="Run", exact=True).click()
    player = page.locator(".ss-player").first
    expect(player.locator(".ss-badge")).to_be_hidden(timeout=LONG)
    expect(player).to_have_attribute("data-state", "done", timeout=LONG)
    expect(player).not_to_have_class(re.compile("ss-playing"), timeout=LONG)
    deep = player.locator(".ss-method .ss-tok.d3").or_(player.locator(".ss-method .ss-tok.d1"))
    deep.filter(has_text=re.compile(r"\S")).last.click()  # an end of text has nothing to click on
    return TOP


def compare(page: Page) -> str:
    """All methods of the loaded model, measured and raced."""
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".ss-race .ss-lanes > *").first.wait_for(timeout=LONG)
    expect(page.locator(".ss-race")).to_have_attribute("data-state", "over", timeout=LONG)
    return TOOLBAR


def benchmark(page: Page) -> str:
    """A small benchmark."""
    page.get_by_label("Prompts", exact=True).fill("3")
    page.get_by_role("button", name="Run benchmark").click()
    expect(page.locator(".ss-charts .js-plotly-plot").first).to_be_visible(timeout=LONG)
    expect(page.get_by_role("button", name="Run benchmark")).to_be_enabled(timeout=LONG)
    return TOOLBAR


def sessions(page: Page) -> str:
    """The list of runs, one with a star."""
    page.locator(".ss-runs button").nth(0).click()
    page.get_by_label("Star", exact=True).check()
    expect(page.locator(".ss-runs button").filter(has_text="★")).to_be_visible(timeout=LONG)
    return TABS


FILLED: dict[str, Callable[[Page], str]] = {
    "Playground": run,
    "Compare": compare,
    "Benchmark": benchmark,
    "Sessions": sessions,
}


def fill(page: Page, tab: str) -> str:
    """Fill the tab. Returns the selector of the top element of the picture."""
    try:
        return FILLED[tab](page) if tab in FILLED else TABS
    except (Error, AssertionError) as error:
        click.echo(f"{tab}: shown as it opens ({str(error).splitlines()[0]})", err=True)
        return TABS


# ---- taking them -----------------------------------------------------------------------------------------------------


@contextmanager
def served(model: str, toy: bool) -> Iterator[str]:
    """Serve the page with an empty log. Yields its URL."""
    choice = {"model": engine_host.TOY if toy else model, "adapter": "auto", "device": "auto", "dtype": "auto"}
    loader = (lambda progress, **chosen: load_toy(pace=0.02)) if toy else None
    known = engine_host.Engines(choice, loader)
    known.load()
    with tempfile.TemporaryDirectory() as folder:
        page = app.build(known, RunLog(Path(folder) / "runs.db"))
        page.launch(prevent_thread_lock=True, quiet=True, server_port=None, **app.launch_options())
        while known.state.loading:
            time.sleep(0.2)
        if known.state.error:
            raise click.ClickException(known.state.error)
        yield page.local_url
        page.close()


def open_tab(page: Page, name: str) -> None:
    """Choose a tab on a wide page."""
    page.get_by_role("tab", name=name, exact=True).click()
    page.wait_for_timeout(SETTLED)


def take(page: Page, shot: Shot, begin: str, folder: Path) -> Path:
    """Save the page as the shot describes it, as a WebP file. The browser scales it down."""
    height = TALL.get(shot.tab, HEIGHTS[DESKTOP]) if shot.width == DESKTOP else HEIGHTS[PHONE]
    page.set_viewport_size({"width": shot.width, "height": height})
    page.evaluate("dark => document.body.classList.toggle('dark', dark)", shot.dark)
    page.mouse.move(0, 0)  # away from anything that reacts to the pointer
    page.wait_for_timeout(SETTLED)
    page.locator(begin).first.evaluate("e => e.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(SETTLED)
    session = page.context.new_cdp_session(page)
    data = session.send("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})["data"]
    file = folder / shot.name
    file.write_bytes(base64.b64decode(data))
    page.set_viewport_size({"width": DESKTOP, "height": HEIGHTS[DESKTOP]})
    return file


def pictures(page: Page, folder: Path, everything: bool, only: tuple[str, ...] = ()) -> Iterator[Path]:
    """Fill one tab after another and take its pictures."""
    tabs = [tab for tab in page.get_by_role("tab").all_inner_texts() if not only or tab in only]
    wanted = shots(tabs, everything)
    for tab in tabs:
        open_tab(page, tab)
        begin = fill(page, tab)
        page.wait_for_timeout(SETTLED)
        for shot in wanted:
            if shot.tab == tab:
                yield take(page, shot, begin, folder)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=IMAGES, show_default=True)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--toy", is_flag=True, help="Use the toy model, which needs no weights.")
@click.option("--all", "everything", is_flag=True, help="Every tab in both sizes, light and dark.")
@click.option("--tab", "only", multiple=True, help="Only this tab; may be given several times.")
def main(out: Path, model: str, toy: bool, everything: bool, only: tuple[str, ...]) -> None:
    """Take pictures of the page."""
    out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser, served(model, toy) as url:
        page = browser.new_page(viewport={"width": DESKTOP, "height": HEIGHTS[DESKTOP]})
        page.set_default_timeout(LONG)
        page.goto(f"{url}?__theme=light")
        expect(page.get_by_role("tab").first).to_be_visible(timeout=LONG)
        page.wait_for_timeout(SETTLED)
        for file in pictures(page, out, everything, only):
            click.echo(f"{file} {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
