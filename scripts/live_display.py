"""What the page costs while it shows a run: the same prompts through the engine alone and with the page watching.

    python -m scripts.live_display [--times 7] [--tokens 160]

The page is open and visible, in a real browser on the same machine. Runs that it shows take turns with runs that it
knows nothing of, during which it does nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from playwright.sync_api import Page

from scripts.browser import chromium, unfold
from specstream.events import Event, Step
from specstream.params import Method, Sampling, Standard
from specstream.runlog import RunLog
from ui import app
from ui.jobs.engine_host import Engines, load
from ui.tabs.playground import examples

WAIT = 240_000  # milliseconds
QUIET = 1500  # milliseconds after which a page that was opened, or has ended a run, does nothing more
LABELS = {"steps": "as the run measures it", "apart": "from one step to the next"}
CHOICE = {"model": "smollm2-135m", "adapter": "e2e", "device": "auto", "dtype": "auto"}


@dataclass
class Times:
    """Milliseconds of the steps of many runs: in the run's own words, and from one step to the next."""

    steps: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)


class Watch:
    """Stands in front of an engine and notes when each step of a method came, unless it writes only a few tokens."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.times = Times()
        self.ended = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, prompt: str, method: Method, sampling: Sampling, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        before = 0.0
        for event in self._engine.generate(prompt, method, sampling, should_stop):
            now = time.perf_counter()
            if isinstance(event, Step) and event.index > 0 and not isinstance(method, Standard):
                self.times.steps.append(1000 * event.total_seconds)
                self.times.apart.append(1000 * (now - before))
            yield event
            before = now
        self.ended.set()


def alone(watch: Watch, prompt: str, sampling: Sampling) -> None:
    """A run without the page, in a thread of its own as there: the main thread never uses torch."""
    words = watch.prompt("e2e", prompt)
    thread = threading.Thread(target=lambda: list(watch.generate(words, watch.default_method(), sampling)))
    thread.start()
    thread.join()


def through_page(page: Page, watch: Watch, prompt: str) -> None:
    """A run as a visitor starts it. Its end is awaited here: asking the browser for it would keep it busy."""
    page.get_by_label("Prompt", exact=True).first.fill(prompt)
    page.wait_for_timeout(QUIET)
    watch.ended.clear()
    page.get_by_role("button", name="Run", exact=True).click()
    watch.ended.wait(WAIT / 1000)
    page.wait_for_timeout(QUIET)


def opened(page: Page, url: str, tokens: int) -> None:
    page.goto(url)
    page.get_by_text("Model: ").first.wait_for(timeout=WAIT)
    unfold(page, "Model:")
    unfold(page, "More settings")
    page.get_by_label("Ignore end of text").first.check()
    page.get_by_label("Max new tokens").first.fill(str(tokens))
    page.get_by_label("Also run standard decoding").first.uncheck()
    page.get_by_role("button", name="Model:").first.click()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(QUIET)


@click.command()
@click.option("--times", default=7, show_default=True, help="Runs of every prompt, with the page and without.")
@click.option("--tokens", default=160, show_default=True)
def main(times: int, tokens: int) -> None:
    """Print the medians of every prompt, and of all."""
    engines = Engines(CHOICE, lambda progress, **choice: Watch(load(progress=progress, **choice)))
    engines.load()
    while engines.state.loading:
        time.sleep(0.2)
    watch = engines._engine
    watch.layers and watch.refresh(wait=True)
    runlog = RunLog(Path(tempfile.mkdtemp(prefix="live-")) / "runs.db")
    server = app.build(engines, runlog)
    server.launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    prompts = [one["prompt"] for one in examples() if one["task"] == "e2e"][:4]
    sampling = Sampling(max_new_tokens=tokens, ignore_eos=True)
    found: dict[str, dict[bool, Times]] = {prompt: {False: Times(), True: Times()} for prompt in prompts}
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        opened(page, server.local_url, tokens)
        for _ in range(times):
            for prompt, both in found.items():
                watch.times = both[False]
                alone(watch, prompt, sampling)
                watch.times = both[True]
                through_page(page, watch, prompt)
    server.close()
    report(found)


def report(found: dict[str, dict[bool, Times]]) -> None:
    """A line for each prompt, and one for all."""
    for name in ("steps", "apart"):
        click.echo(f"ms a step, {LABELS[name]}: alone, with the page")
        ratios = []
        for prompt, both in found.items():
            alone, shown = (statistics.median(getattr(both[page], name)) for page in (False, True))
            ratios.append(shown / alone)
            click.echo(f"  {alone:6.2f} {shown:6.2f} {ratios[-1] - 1:+7.1%}  {prompt[:50]}")
        click.echo(f"  median of the prompts {statistics.median(ratios) - 1:+.1%}")


if __name__ == "__main__":
    main()
