"""A finished run measured again: a single measurement means little on a machine that does other things too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specstream.events import Lane, Verdict
from specstream.stats import RunStats

from ..state.headline import Ratio
from .runs import RunJob

if TYPE_CHECKING:  # the page starts without torch
    from specstream.engine import Engine

TIMES = 4


class MeasureAgain(RunJob):
    """Runs the method and standard decoding alternately, ``TIMES`` times. Its items are notices and one Ratio per time.

    Nothing is logged, because the text is that of the previous run.
    """

    def use(self, engine: Engine) -> None:
        for _ in range(TIMES):
            stats = {lane: RunStats() for lane in Lane}
            for item in self._session(engine)[1]:
                if isinstance(item, Verdict):
                    self._measured(item, stats)
                else:
                    stats[item[0]].add(item[1])
            if self.stop.is_set():
                return

    def _measured(self, verdict: Verdict, stats: dict[Lane, RunStats]) -> None:
        if found := Ratio.of(verdict, stats):
            self.put(found)
