"""A conversation: the turns before a message, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Self

Turn = tuple[str, str]  # (message, reply)


@dataclass(frozen=True)
class Chat:
    """What came before a message: a system prompt (empty for the template's own) and the turns, oldest first.

    ``id`` is the same for all turns of a conversation, so that the log shows them together.
    """

    id: str = ""
    system: str = ""
    turns: tuple[Turn, ...] = ()

    def messages(self, message: str) -> list[dict[str, str]]:
        """The whole conversation up to a new message, as chat templates take it."""
        out = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for asked, replied in self.turns:
            out += [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]
        return [*out, {"role": "user", "content": message}]

    def add(self, message: str, reply: str) -> Self:
        """The conversation with one turn more."""
        return replace(self, turns=(*self.turns, (message, reply)))

    @property
    def characters(self) -> int:
        """The length of all its texts."""
        return len(self.system) + sum(len(asked) + len(replied) for asked, replied in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return {"id": self.id, "system": self.system, "turns": [list(turn) for turn in self.turns]}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """A conversation from plain values. Raises ValueError where they are none."""
        try:
            known, system = values["id"], values["system"]
            turns = tuple((asked, replied) for asked, replied in values["turns"])
        except (KeyError, TypeError, ValueError):
            raise ValueError("The conversation is damaged: start a new one.") from None
        if not all(isinstance(text, str) for text in (known, system, *(text for turn in turns for text in turn))):
            raise ValueError("The conversation is damaged: start a new one.")
        return cls(known, system, turns)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None) -> Self:
        """A conversation from JSON text; a new one if it is missing or unreadable."""
        try:
            return cls.from_dict(json.loads(text or ""))
        except (ValueError, RecursionError):
            return cls()
