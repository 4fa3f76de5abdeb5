"""The methods as the page offers them: always all, in a fixed order, with what is missing for those that can't run."""

from __future__ import annotations

from dataclasses import dataclass

from specstream.data.tasks import TASKS
from specstream.info import PARTS, EngineInfo
from specstream.params import METHODS, PromptLookup, Streaming

ORDER = tuple(sorted(METHODS, key=lambda name: name != Streaming.name))  # streaming first
NOT_HERE = "this demo can't load one, your own machine can"


class CannotRun(ValueError):
    """The chosen method can't run on the loaded model; the message says why and what to do."""


def does(name: str) -> str:
    """What a method does, from the docstring of its parameters."""
    words = (METHODS[name].__doc__ or "").split(": ", 1)[-1].strip()
    return words[:1].upper() + words[1:]


def mismatch(task: str, info: EngineInfo) -> str:
    """One sentence if the loaded adapter was trained for another task, else empty."""
    if task == info.task:
        return ""
    if task not in TASKS:
        return f"The loaded model is tuned for “{_label(info)}”, whatever the prompt." if info.tuned else ""
    if not info.task:
        return f"{PARTS[Streaming.name].missing}."
    worse = "writes differently and drafts worse" if info.tuned else "drafts worse"
    return f"The loaded adapter was trained for “{_label(info)}”: on other tasks the model {worse}."


def _label(info: EngineInfo) -> str:
    return TASKS[info.task].label if info.task in TASKS else info.task


@dataclass(frozen=True)
class Offer:
    """The methods on the loaded model; all while ``info`` is None. In a ``demo`` nothing can be trained or added."""

    info: EngineInfo | None = None
    demo: bool = False

    def reason(self, name: str) -> str:
        """One sentence if a method can't run; empty if it can."""
        if self.info is None or name not in self.info.unavailable:
            return ""
        if self.demo and self._lacks_parts(name):
            return f"{PARTS[name].missing}: {NOT_HERE}."
        return self.info.unavailable[name]

    def _lacks_parts(self, name: str) -> bool:
        """Whether something besides the model is missing; else prompt lookup, which needs nothing, can't run either."""
        return name in PARTS and self.info is not None and PromptLookup.name not in self.info.unavailable

    def label(self, name: str) -> str:
        """A method's label, with what is missing."""
        if not self.reason(name):
            return METHODS[name].label
        lack = f"needs {PARTS[name].name}" if self._lacks_parts(name) else "not with this model"
        return f"{METHODS[name].label} ({lack})"

    def words(self, name: str) -> str:
        """What a method does, or why it can't."""
        return self.reason(name) or does(name)

    def choices(self) -> list[tuple[str, str]]:
        """Labels and names of all methods."""
        return [(self.label(name), name) for name in ORDER]

    def fitting(self, chosen: str) -> str:
        """The chosen method if it can run, else the first that can."""
        return next(name for name in (chosen, *ORDER) if not self.reason(name))

    def check(self, name: str) -> None:
        """Raises CannotRun for a method that can't run."""
        if why := self.reason(name):
            raise CannotRun(why)
