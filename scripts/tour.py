"""A first visitor's tour of the page in a real browser, with the seconds at each stage: starting the program, the first
paint, a finished run, and a comparison that is saved as one file and opened again.

    python -m scripts.tour                                                        the toy model: no weights
    python -m scripts.tour --command "make run" --url http://127.0.0.1:7860/      started by your own command
    python -m scripts.tour --url URL                                              a page that is already served

The exit status is 1 if a stage is not reached in time.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from playwright.sync_api import Browser, Error, Page, expect

from scripts.browser import chromium
from scripts.ports import free_port

ROOT = Path(__file__).parents[1]
Stage = tuple[str, float]  # what was reached, and time.monotonic() then


@contextmanager
def started(command: list[str]) -> Iterator[None]:
    """Run a program during the tour; nothing if the command is empty."""
    program = (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) if command else None
    )
    try:
        yield
    finally:
        if program:
            os.killpg(program.pid, signal.SIGTERM)  # make and its children
            program.wait()


def answered(url: str, seconds: float) -> float:
    """Wait until the page answers. Raises ClickException if it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=end - time.monotonic()):
                return time.monotonic()
        except OSError:
            time.sleep(0.1)
    raise click.ClickException(f"{url} does not answer: is the page served there? Or give it more --seconds.")


def tour(browser: Browser, url: str, width: int, seconds: float) -> Iterator[Stage]:
    """Walk through the page as someone who sees it for the first time. Yields each stage when it is reached."""
    yield "the page answers", answered(url, seconds)
    patience = 1000 * seconds
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(patience)
    page.goto(url)
    page.locator("#recorded-run .ss-tok").first.wait_for()
    yield "the recorded run is on the screen", time.monotonic()
    page.get_by_role("button", name="Model: ").filter(has_not_text="none yet").filter(has_not_text="loading").wait_for()
    yield "the model is loaded", time.monotonic()
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".ss-player").first.locator(".ss-badge")).to_be_hidden(timeout=patience)
    yield "the run has begun", time.monotonic()
    expect(page.locator(".ss-toolbar:visible .ss-status")).to_contain_text("Done", timeout=patience)
    yield "the run is finished and compared with standard decoding", time.monotonic()
    yield from comparison(page, patience)


def comparison(page: Page, patience: float) -> Iterator[Stage]:
    """Compare all methods of the loaded model, and share the result."""
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".ss-race .ss-lanes > *").first.wait_for()
    yield "every method is measured and the race begins", time.monotonic()
    expect(page.locator(".ss-race")).to_have_attribute("data-state", "over", timeout=patience)
    yield "the race is over", time.monotonic()
    with page.expect_download() as download, TemporaryDirectory() as folder:
        page.get_by_role("button", name="Page (HTML)").locator("visible=true").click()
        file = Path(folder) / "shared.html"
        download.value.save_as(file)
        yield "the file to share is saved", time.monotonic()
        opened(page, file)
    yield "and opened from the disk, without the page", time.monotonic()


def opened(page: Page, file: Path) -> None:
    """Check that the shared file shows its table on its own. Raises Error if it requests anything from another host."""
    page.context.set_offline(True)
    page.goto(file.as_uri())
    page.get_by_role("table").first.wait_for()


@click.command()
@click.option("--url", help="URL of the page (default: the tour starts the program on a free port).")
@click.option("--command", help="A command to start first, which must serve the page at --url.")
@click.option("--seconds", default=600.0, show_default=True, help="Time limit for each stage.")
@click.option("--width", default=1280, show_default=True, help="Width of the window in pixels.")
def main(url: str | None, command: str | None, seconds: float, width: int) -> None:
    """Take the tour and print the seconds at each stage."""
    if command and not url:
        raise click.UsageError("--command needs --url: say where the page will be served.")
    port = free_port()
    with TemporaryDirectory() as folder, chromium() as browser:
        ours = [sys.executable, "app.py", "--toy", "--port", str(port), "--db", str(Path(folder) / "runs.db")]
        program = shlex.split(command) if command else [] if url else ours
        began = time.monotonic()
        with started(program):
            told(tour(browser, url or f"http://127.0.0.1:{port}/", width, seconds), began)


def told(stages: Iterator[Stage], began: float) -> None:
    """Print the stages as they are reached. Raises ClickException if one is not reached in time."""
    try:
        for words, reached in stages:
            click.echo(f"{reached - began:7.1f} s  {words}")
    except (Error, AssertionError) as error:
        raise click.ClickException(f"The next stage was not reached: {str(error).splitlines()[0]}") from None


if __name__ == "__main__":
    main()
