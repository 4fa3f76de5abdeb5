"""Shared by scripts that drive the page: the browser, and opening folded sections as a person would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome")
FRAMES = """async () => {
  for (let frame = 0; frame < 4; frame++) await new Promise((next) => requestAnimationFrame(next));
}"""


def installed() -> str | None:
    """The path of an installed browser; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A headless browser, started with extra ``flags``."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed(), args=[*FLAGS, *flags])
        yield browser
        browser.close()


def settle(page: Page) -> None:
    """Wait for fields that were just unfolded: gradio sets them again one frame after drawing them, and would overwrite
    input that comes faster than a person's."""
    page.evaluate(FRAMES)


def unfold(page: Page, name: str) -> None:
    """Open the folded section whose heading contains ``name``."""
    headings = page.locator("button.label-wrap:visible", has_text=name)
    headings.first.click()
    settle(page)
