"""Many visitors at once: real browser windows on the toy model, each with its own runs, some of which are stopped.

    python -m scripts.visitors [--visitors 20] [--seconds 120]

Each run has its own seed, so its text is known beforehand. Checked at the end: every window showed only its own texts,
the log has every run with its visitor, and the program's memory has not grown. The exit status is 1 otherwise.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
from playwright.sync_api import Browser, Page, expect

from scripts.browser import chromium, unfold
from specstream.engine import Engine
from specstream.model import memory
from specstream.params import Sampling, Standard
from specstream.runlog import RunLog
from specstream.session import text_of
from specstream.testing.toy import load_toy
from ui import app
from ui.jobs.engine_host import Engines

CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
FLAGS = ("--disable-background-timer-throttling", "--disable-renderer-backgrounding",
         "--disable-backgrounding-occluded-windows")  # fmt: skip
PROMPT, TOKENS, TEMPERATURE = "name[Visitor {}]", 60, 1.3
STOPPED = 5  # one in so many runs is stopped by its visitor
WAIT = 240_000  # milliseconds
STATUS = "document.querySelector('.ss-toolbar .ss-status')"
RUNS = "document.querySelector('#run').textContent.trim() === 'Stop'"
STOP = f"{RUNS} && (document.querySelector('#run').click(), true)"
GROWTH = 0.1  # most growth of memory from half-time to the end, as a share


@dataclass
class Visitor:
    """A window, and the results of its runs."""

    number: int
    page: Page
    engine: Engine
    runs: int = 0
    stopping: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        return PROMPT.format(self.number)

    @property
    def seed(self) -> int:
        return 1000 * self.number + self.runs

    def expected(self, seed: int) -> str:
        prompt = self.engine.prompt("raw", self.prompt)
        sampling = Sampling(max_new_tokens=TOKENS, temperature=TEMPERATURE, seed=seed, ignore_eos=True)
        return text_of(list(self.engine.generate(prompt, Standard(), sampling)))

    def settle(self) -> None:
        """Fill in the form, once."""
        page = self.page
        expect(page.get_by_text("Model: toy")).to_be_visible(timeout=WAIT)
        page.get_by_label("Prompt", exact=True).first.fill(self.prompt)
        page.get_by_label("Task", exact=True).first.click()
        page.get_by_role("option", name="None: the prompt as it is").click()
        unfold(page, "Model:")
        unfold(page, "More settings")
        page.get_by_label("Max new tokens").first.fill(str(TOKENS))
        page.get_by_label("Temperature").first.fill(str(TEMPERATURE))
        page.get_by_label("Ignore end of text").first.check()

    def begin(self) -> None:
        """Start the next run, with the next seed."""
        self.runs += 1
        self.stopping = self.runs % STOPPED == 0
        self.page.get_by_label("Seed").first.fill(str(self.seed))
        self.page.evaluate(f"{STATUS}.textContent = 'asked'")  # until the page shows the run
        self.page.get_by_role("button", name="Run", exact=True).click()

    def look(self) -> None:
        """Stop the run if it is due; when it has ended, check it and start the next."""
        if self.busy():
            if self.stopping and random.random() < 0.3:
                self.stopping = not self.page.evaluate(STOP)
            return
        self.compare()
        self.begin()

    def busy(self) -> bool:
        return bool(self.page.evaluate(f"{STATUS}.textContent === 'asked' || {RUNS}"))

    def compare(self) -> None:
        """Check that the text on the page is that of the requested run, complete unless it was stopped."""
        status = self.page.evaluate(f"{STATUS}.textContent")
        shown = self.page.evaluate("document.querySelector('.ss-player .ss-method').textContent")
        wanted = self.expected(self.seed)
        cut = "topped" in status
        if not (wanted.startswith(shown) if cut else shown == wanted):
            self.faults.append(f"visitor {self.number}, seed {self.seed} ({status}): {shown!r} is not {wanted!r}")


def visits(browser: Browser, url: str, engine: Engine, count: int) -> list[Visitor]:
    """Open so many windows, each with its own storage."""
    out = []
    for number in range(1, count + 1):
        page = browser.new_context(viewport={"width": 1000, "height": 700}).new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        out.append(Visitor(number, page, engine))
        out[-1].settle()
    return out


def finish(visitors: list[Visitor]) -> None:
    """Wait for the runs in progress and check them too."""
    for visitor in visitors:
        while visitor.busy():
            time.sleep(0.1)
        visitor.compare()


def check_log(runlog: RunLog, visitors: list[Visitor]) -> list[str]:
    """Errors in the log: runs that are missing, mixed up, or differ from what their seed gives."""
    faults, owners = [], {}
    counted: Counter[str] = Counter()
    for row in runlog.runs(limit=runlog.count()):
        counted[row["prompt"]] += 1
        if owners.setdefault(row["prompt"], row["visitor"]) != row["visitor"]:
            faults.append(f"run {row['id']} of {row['prompt']} is another visitor's")
        seed = runlog.run(row["id"])["settings"]["sampling"]["seed"]
        visitor = next(v for v in visitors if v.prompt == row["prompt"])
        wanted = visitor.expected(seed)
        if not (row["output"] == wanted if row["status"] == "finished" else wanted.startswith(row["output"] or "")):
            faults.append(f"run {row['id']} of {row['prompt']}: {row['output']!r} is not {wanted!r}")
    return faults + [f"{v.prompt}: {v.runs} runs, {counted[v.prompt]} in the log" for v in visitors if lost(v, counted)]


def lost(visitor: Visitor, counted: Counter[str]) -> bool:
    """Runs that were stopped before they started are not logged."""
    most = visitor.runs
    return not most - most // STOPPED <= counted[visitor.prompt] <= most


@click.command()
@click.option("--visitors", "count", default=20, show_default=True)
@click.option("--seconds", default=120.0, show_default=True, help="How long to continue.")
def main(count: int, seconds: float) -> None:
    """Open the windows, let them run, and check their texts and the log."""
    engines = Engines(CHOICE, lambda progress, **choice: load_toy(0.005))
    engines.load()
    runlog = RunLog(Path(tempfile.mkdtemp(prefix="visitors-")) / "runs.db")
    server = app.build(engines, runlog)
    server.launch(prevent_thread_lock=True, quiet=True, **app.launch_options())
    with chromium(*FLAGS) as browser:
        visitors = visits(browser, server.local_url, load_toy(0), count)
        sizes = go_on(visitors, seconds)
        finish(visitors)
    server.close()
    faults = [fault for visitor in visitors for fault in visitor.faults] + check_log(runlog, visitors)
    growth = sizes[-1] / sizes[len(sizes) // 2] - 1
    click.echo(f"{count} visitors, {sum(v.runs for v in visitors)} runs, {runlog.count()} in the log")
    click.echo(f"memory: {memory.gigabytes(sizes[0])} at first, {growth:+.1%} from half the time to the end")
    click.echo("\n".join(faults) or "nothing mixed up, nothing lost")
    sys.exit(bool(faults) or growth > GROWTH)


def go_on(visitors: list[Visitor], seconds: float) -> list[int]:
    """Let all windows run repeatedly. Returns the program's memory, sampled about once a second."""
    for visitor in visitors:
        visitor.begin()
    sizes, until = [memory.used()], time.monotonic() + seconds
    while time.monotonic() < until:
        for visitor in visitors:
            visitor.look()
        sizes.append(memory.used())
    return sizes


if __name__ == "__main__":
    main()
