"""How long after Stop the page shows the final summary: the toy model in a real browser, with various step times.

python -m scripts.stop_time [--pace 0.02 --pace 1.5] [--times 5]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from playwright.sync_api import Page

from scripts.browser import chromium, unfold
from specstream.testing.toy import load_toy
from ui import app
from ui.jobs.engine_host import Engines

CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}


@contextmanager
def served(pace: float) -> Iterator[str]:
    engines = Engines(CHOICE, lambda progress, **choice: load_toy(pace))
    engines.load()
    page = app.build(engines, None)
    page.launch(prevent_thread_lock=True, quiet=True, server_port=None, **app.launch_options())
    yield page.local_url
    page.close()


def stopped_after(page: Page) -> float:
    """Seconds from the click on Stop to the final summary."""
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_function("document.querySelector('.ss-player').dataset.state === 'running'")  # not the recorded run
    page.locator(".ss-player").first.locator(".ss-method .ss-tok").nth(3).wait_for(timeout=120_000)
    began = time.perf_counter()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Done: stopped by you").first.wait_for(timeout=120_000)
    return time.perf_counter() - began


@click.command()
@click.option(
    "--pace", "paces", type=float, multiple=True, default=(0.02, 1.5), show_default=True, help="Seconds per step."
)
@click.option("--times", default=5, show_default=True)
def main(paces: tuple[float, ...], times: int) -> None:
    """Print the slowest and the median time for each pace."""
    with chromium() as browser:
        for pace in paces:
            with served(pace) as url:
                page = browser.new_page()
                page.goto(url)
                page.get_by_text("Model: toy").wait_for(timeout=120_000)
                unfold(page, "Model:")
                unfold(page, "More settings")
                page.get_by_label("Ignore end of text").first.check()
                page.get_by_label("Max new tokens").first.fill("4000")
                found = sorted(stopped_after(page) for _ in range(times))
                click.echo(f"a step of {pace} s: median {found[times // 2]:.2f} s, slowest {found[-1]:.2f} s")
                page.close()


if __name__ == "__main__":
    main()
