"""The stream lens at one step of a run, computed by the model that made the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specstream.data.chat import Chat
from specstream.info import EngineInfo
from specstream.params import Sampling

from ..html.render import model_name
from ..state.origin import Origin
from .engine_host import Engines
from .runs import ModelJob

if TYPE_CHECKING:  # the page starts without torch
    from specstream.engine import Engine


class OtherModel(ValueError):
    """The loaded model is not the one that made the run; the message says which to load."""


@dataclass(frozen=True)
class Place:
    """A position in a run: ``before`` are the ids written before the step, ending with the root of its tree."""

    origin: Origin
    before: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return self.origin.prompt

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_new_tokens=1)


@dataclass(frozen=True)
class Looked:
    """The result of the lens: see ``specstream.target.lens.look``."""

    values: dict[str, Any]


def same_model(info: EngineInfo, origin: Origin) -> None:
    """Raises OtherModel if a run was made by a model or adapter other than the loaded ones."""
    if (info.model, info.adapter) != (origin.model, origin.adapter):
        made = f"{model_name(origin.model)} with adapter {model_name(origin.adapter)}"
        raise OtherModel(f"This run was made by {made}: load these under Model, then look again.")


def prompt_ids(engine: Engine, origin: Origin) -> list[int]:
    """The ids of a run's prompt, as the model read it."""
    chat = (origin.settings or {}).get("chat")
    before = Chat.from_dict(chat) if chat else Chat()
    begun = (origin.settings or {}).get("branch", {}).get("after", "")
    return list(engine.encode(engine.prompt(origin.task, origin.prompt, before) + begun))


class Look(ModelJob):
    """The streams at one position of a run. Its items: Notice, Looked."""

    ask: Place

    def __init__(self, engines: Engines, place: Place) -> None:
        super().__init__(engines, None, place)

    def check(self) -> None:
        """One pass over a text that was already read, so no rule applies."""

    def use(self, engine: Engine) -> None:
        from specstream.target import lens  # imports torch: only now, in the worker

        same_model(engine.info, self.ask.origin)
        self._say("Looking inside the step")
        self.put(Looked(lens.look(engine, prompt_ids(engine, self.ask.origin) + list(self.ask.before))))
