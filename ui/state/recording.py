"""The recorded run that the page shows before any model is loaded. Made by scripts/record_run.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream.events import Agreement, Lane, Verdict, from_dict
from specstream.info import EngineInfo
from specstream.installation import data_file
from specstream.params import METHODS

from .origin import of_info
from .view import View, replay

FILE = data_file("assets/recorded_run.json")


@dataclass(frozen=True)
class Recording:
    """A recorded run, with its place and time."""

    values: dict[str, Any]

    @property
    def info(self) -> EngineInfo:
        """The model that ran."""
        return EngineInfo(**self.values["info"])

    @property
    def about(self) -> str:
        """One sentence which says that nothing is computed here."""
        info = self.info
        where = f"{self.values['processor']}, {self.values['recorded']}"
        return f"Recording: {info.model} with the {info.adapter} adapter, made on {where}. Nothing is computed now."

    def view(self) -> View:
        """The view of the run."""
        lanes = {lane: [from_dict(event) for event in self.values["lanes"][str(lane)]] for lane in Lane}
        found = self.values["verdict"] | {"agreement": Agreement(self.values["verdict"]["agreement"])}
        view = replay("recording", METHODS[self.values["method"]].label, lanes, Verdict(**found), self.about)
        known = self.values
        view.looks = {int(step): look for step, look in known.get("looks", {}).items()}
        asked = {name: known[name] for name in ("prompt", "task", "method", "processor")}
        view.origin = of_info(self.info, **asked, when=known["recorded"], settings=known.get("settings", {}))
        view.words, view.tone = "A recorded run: press Run to make your own.", "plain"
        return view


def read(file: Path) -> Recording:
    """Read a recorded run."""
    return Recording(json.loads(file.read_text(encoding="utf-8")))


def load() -> Recording:
    """Read the bundled file."""
    return read(FILE)
