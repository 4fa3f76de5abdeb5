"""What scripts that drive the page share: the browser, and folds that are opened as a person opens them."""

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
    """The browser's program, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """The browser without a window, with more ``flags``."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed(), args=[*FLAGS, *flags])
        yield browser
        browser.close()


def settle(page: Page) -> None:
    """Wait for what was just unfolded: gradio sets its fields once more a frame after they are drawn, and takes back
    what was put in before, which is faster than a person."""
    page.evaluate(FRAMES)


def unfold(page: Page, name: str) -> None:
    """Open what is folded away under a heading that begins with ``name``."""
    headings = page.locator("button.label-wrap:visible", has_text=name)
    headings.first.click()
    settle(page)
