"""Shared by browser tests: a browser, a served page, and the findings of axe-core.

Playwright retries until an expectation holds, so timeouts are long: they cost time only where a
test fails. Expected states must persist: a transient one may be over before the first look; ``overhear`` records it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from scripts.browser import chromium as chromium
from scripts.browser import installed, settle
from scripts.browser import unfold as unfold
from scripts.ports import free_port
from specstream.testing.toy import load_toy
from ui import app
from ui.access_rules import OPEN, Rules
from ui.jobs.engine_host import Engines

SLOW = 120_000  # milliseconds: a machine that trains beside the tests is slow
QUIET = (
    "asked.unanswered() ? (asked.calm = 0) : ++asked.calm > 6"  # so many looks in a row must see nothing in progress
)
EVERY = 20  # milliseconds between looks
expect.set_options(timeout=SLOW)

# Events that were sent and have no answer yet. The stream of answers does not show this: gradio's page opens another
# one for an event that was answered before its number came, and that stays open until there is another event.
COUNT_ASKED = """
if (!window.asked) {
  const asked = window.asked = {calm: 0, joining: 0, numbers: new Set(), answered: new Set()};
  asked.unanswered = () => asked.joining + asked.numbers.difference(asked.answered).size;
  const real = window.fetch;
  const listen = async body => {
    let rest = "";
    for await (const text of body.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + text).split("\\n\\n");
      rest = lines.pop();
      for (const line of lines) {
        const message = JSON.parse(line.slice("data: ".length));
        if (message.msg === "process_completed") asked.answered.add(message.event_id);
      }
    }
  };
  window.fetch = async (request, ...options) => {
    const url = request.url || String(request);
    const joins = url.includes("/queue/join");
    asked.joining += joins;
    try {
      const response = await real(request, ...options);
      if (joins && response.ok) asked.numbers.add((await response.clone().json()).event_id);
      if (url.includes("/queue/data")) listen(response.clone().body).catch(() => {});  // given up with the page
      return response;
    } finally {
      asked.joining -= joins;
    }
  };
}
"""
# As on a slow network: event ids arrive after their answers.
LATE_NUMBERS = """
const quick = window.fetch;
let turn = 0;
window.fetch = async (request, ...options) => {
  const response = await quick(request, ...options);
  if ((request.url || String(request)).includes("/queue/join")) {
    await new Promise(done => setTimeout(done, 150 * (turn++ % 4)));
  }
  return response;
};
"""

MARKS = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(installed() is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@contextmanager
def served(runlog: Any, rules: Rules = OPEN) -> Iterator[str]:
    """Serve the whole page on the toy model. Yields its URL."""
    choice = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
    engines = Engines(choice, lambda progress, **chosen: load_toy(pace=0.005), rules)
    engines.load()
    page = app.build(engines, runlog)
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    yield page.local_url
    page.close()


def window(browser: Browser, width: int = 1280) -> Page:
    """A new window with a long timeout."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(SLOW)
    return page


def load(page: Page, address: str) -> None:
    """Open a URL, and wait until the page's own requests are answered, so that none overwrites a test's input."""
    page.add_init_script(COUNT_ASKED)
    with page.expect_request("**/queue/join**"):
        page.goto(address)
    page.wait_for_function(QUIET, polling=EVERY)


def noted(page: Page, url: str) -> list[str]:
    """The errors of a page and its requests to other hosts, appended as they occur."""
    problems: list[str] = []
    said = problems.append
    page.on("console", lambda message: said(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said(str(error)))
    page.on("request", lambda asked: None if is_local(asked.url, url) else said(asked.url))
    page.on("response", lambda answer: said(f"{answer.status} {answer.url}") if answer.status >= 500 else None)
    return problems


@contextmanager
def visit(
    browser: Browser, url: str, tab: str, width: int = 1280, theme: str = "light", query: str = ""
) -> Iterator[Page]:
    """A tab in a new window, or the page that a ``query`` opens. Afterwards: nothing on the console, no other host."""
    page = window(browser, width)
    problems = noted(page, url)
    load(page, f"{url}?__theme={theme}{query}")
    if query:
        expect(page.get_by_role("tab", name=tab, selected=True)).to_be_visible()
    else:
        expect(page.get_by_text("Model: toy")).to_be_visible()
        open_tab(page, tab)
    yield page
    page.close()
    assert not problems, problems


def overhear(page: Page, selector: str) -> Callable[[], list[str]]:
    """A function that returns all texts of elements since now, in order, including transient ones."""
    page.evaluate(
        """selector => {
          const said = window.said = [];
          const look = () => document.querySelectorAll(selector).forEach(e => {
            if (said.at(-1) !== e.innerText) said.push(e.innerText);
          });
          new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
        }""",
        selector,
    )
    return lambda: page.evaluate("window.said")


def open_tab(page: Page, name: str) -> None:
    """Choose a tab; on a narrow page it may be behind "More tabs"."""
    page.get_by_role("tablist").first.wait_for()  # a reloaded page has none at first
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name)
    tab.click()
    settle(page)


def is_local(asked: str, url: str) -> bool:
    return asked.startswith((url, "data:", "blob:"))


def serious(page: Page) -> list[str]:
    """The serious and critical findings of axe-core, one line each."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def serious_in_both_themes(page: Page) -> list[str]:
    """What axe-core finds in the theme that the page has, and in the other one."""
    found = serious(page)
    page.add_style_tag(content="* { transition: none !important; }")  # no colour on its way to another
    page.evaluate("document.body.classList.toggle('dark')")
    settle(page)
    found += serious(page)
    page.evaluate("document.body.classList.toggle('dark')")
    return found
