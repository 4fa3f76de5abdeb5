"""What browser tests of single tabs share: a browser, a page that is served, and what axe-core finds on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from specstream.toy import load_toy
from tests.ports import free_port
from ui import app
from ui.engines import Engines
from ui.rules import OPEN, Rules

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SLOW = 40_000  # milliseconds: a machine that trains beside the tests is slow

MARKS = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def served(runlog: Any, rules: Rules = OPEN) -> Iterator[str]:
    """The whole page on the toy model; its address."""
    choice = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
    engines = Engines(choice, lambda progress, **chosen: load_toy(pace=0.005), rules)
    engines.load()
    page = app.build(engines, runlog)
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    yield page.local_url
    page.close()


@contextmanager
def visit(
    browser: Browser, url: str, tab: str, width: int = 1280, theme: str = "light", query: str = ""
) -> Iterator[Page]:
    """A tab in a fresh window, or what a ``query`` opens. Afterwards: a silent console, no other host asked."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(2 * SLOW)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if is_local(request.url, url) else problems.append(request.url))
    page.goto(f"{url}?__theme={theme}{query}")
    if query:
        expect(page.get_by_role("tab", name=tab, selected=True)).to_be_visible(timeout=SLOW)
    else:
        expect(page.get_by_text("Model: toy")).to_be_visible(timeout=SLOW)
        open_tab(page, tab)
    yield page
    page.close()
    assert not problems


def open_tab(page: Page, name: str) -> None:
    """Choose a tab; on a narrow page it may be behind "More tabs"."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name)
    tab.click()


def is_local(asked: str, url: str) -> bool:
    return asked.startswith((url, "data:", "blob:"))


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical, as one line each."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
