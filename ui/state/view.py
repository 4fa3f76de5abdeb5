"""The page's state of one run: a fold over the worker's items, or over a logged run. Pure, no gradio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from specstream.events import Event, Finished, Lane, Reason, Started, Step, Verdict
from specstream.params import NODES
from specstream.stats import RunStats, counted

from .feed import Feed
from .messages import Item, Notice, Recorded
from .origin import Origin

ENDS = {
    Reason.EOS: "the model ended the text",
    Reason.STOP_STRING: "a stop string appeared",
    Reason.LENGTH: "the token limit was reached",
    Reason.CONTEXT: "the end of the model's context was reached",
    Reason.STOPPED: "stopped by you",
    Reason.ERROR: "an error ended the run",
}


@dataclass
class View:
    """The state of a run: its feed, the steps and stats of each lane, the verdict and the text of the status line.

    ``steps`` are those of the method, ``plain`` those of standard decoding; ``settings`` are what the method ran with,
    ``nodes`` how many guesses cost little on this machine, ``mismatched`` that the adapter is for another task.
    """

    feed: Feed
    stats: dict[Lane, RunStats] = field(default_factory=lambda: {lane: RunStats() for lane in Lane})
    steps: list[Step] = field(default_factory=list)
    plain: list[Step] = field(default_factory=list)
    verdict: Verdict | None = None
    words: str = "Starting"
    tone: str = "busy"
    log_id: str = ""
    tail: str = ""
    warning: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    nodes: int = NODES
    mismatched: bool = False
    origin: Origin | None = None
    looks: dict[int, dict[str, Any]] = field(default_factory=dict)  # recorded of the streams, by step

    def add(self, item: Item) -> None:
        """Fold one item in."""
        if isinstance(item, Notice):
            self.words, self.tone = item.text, "bad" if item.failed else "busy"
            self.warning = item.text if item.lasting else self.warning
        elif isinstance(item, Recorded):
            self.log_id = item.run
        elif isinstance(item, Verdict):
            self.verdict = item
        elif isinstance(item, Origin):
            self.origin = item
        else:
            self._event(*item)

    def _event(self, lane: Lane, event: Event) -> None:
        self.feed.add(lane, event)
        self.stats[lane].add(event)
        if isinstance(event, Started) and lane is Lane.METHOD:
            self.settings = event.settings
        elif isinstance(event, Step):
            self.words = "Writing" if lane is Lane.METHOD else "Measuring standard decoding on the same prompt"
            (self.steps if lane is Lane.METHOD else self.plain).append(event)
        elif isinstance(event, Finished):
            self.tail = event.tail if lane is Lane.METHOD else self.tail
            if event.message:
                self.words, self.tone = event.message, "bad"

    def close(self, stopped: bool = False) -> None:
        """There are no more items: the status line says how the run ended, and anything else the user must know.

        ``stopped``: the user stopped it, and did not wait for the current step.
        """
        self._conclude(stopped)
        if self.warning and self.warning not in self.words:
            self.words = f"{self.words}. {self.warning}"

    def _conclude(self, stopped: bool) -> None:
        ours, plain = self.stats[Lane.METHOD], self.stats[Lane.BASELINE]
        if self.tone != "busy":
            return
        if ours.reason is None:
            self.tone = "plain"
            if stopped and self.steps:
                self.words = f"Done: {ENDS[Reason.STOPPED]}, {counted(ours.tokens, 'token')}"
            elif stopped and ours.method:  # the run has started; while it waits in the queue, the text already says so
                self.words = "Stopped by you before the first token"
        elif plain.reason is Reason.STOPPED or (stopped and self.plain and plain.reason is None):
            self.words, self.tone = "Stopped by you while standard decoding was measured", "plain"
        else:
            self.words = f"Done: {ENDS[ours.reason]}, {counted(ours.tokens, 'token')}"
            self.tone = "plain" if ours.reason is Reason.STOPPED else "good"

    @property
    def text(self) -> str:
        """The method's text."""
        return "".join(token.text for step in self.steps for token in step.tokens) + self.tail

    @property
    def whole(self) -> bool:
        """Whether the method finished: neither stopped nor interrupted."""
        return self.stats[Lane.METHOD].reason not in (None, Reason.STOPPED, Reason.ERROR)

    @property
    def baseline(self) -> RunStats | None:
        """Stats of standard decoding, once it has started."""
        stats = self.stats[Lane.BASELINE]
        return stats if stats.tokens else None

    @property
    def speedup(self) -> float | None:
        """Measured, or None."""
        return self.verdict.speedup if self.verdict else None


def replay(
    run: str, title: str, lanes: Mapping[Lane, Iterable[Event]], verdict: Verdict | None, note: str = ""
) -> View:
    """The view of a logged run. ``note`` is a sentence about the kind of run."""
    view = View(Feed(run, title, note), verdict=verdict)
    for lane, events in lanes.items():
        for event in events:
            view.add((lane, event))
    view.close()
    return view


def root_text(steps: list[Step], index: int) -> str:
    """The newest committed token before the step with this index: the root of its tree."""
    texts = [token.text for step in steps[:index] for token in step.tokens]
    return texts[-1] if texts else ""
