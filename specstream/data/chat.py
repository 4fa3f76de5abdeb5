"""A conversation: the turns before a message, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Self

Turn = tuple[str, str]  # (message, reply)


@dataclass(frozen=True)
class Chat:
    """What precedes a message: a system prompt (empty for the template's own) and the turns, oldest first.

    ``id`` is shared by all turns of a conversation, so the log shows them together.
    """

    id: str = ""
    system: str = ""
    turns: tuple[Turn, ...] = ()

    def messages(self, message: str) -> list[dict[str, str]]:
        """The whole conversation up to and including a new message, in the form that chat templates expect."""
        out = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for asked, replied in self.turns:
            out += [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]
        return [*out, {"role": "user", "content": message}]

    def add(self, message: str, reply: str) -> Self:
        """The conversation with one more turn."""
        return replace(self, turns=(*self.turns, (message, reply)))

    @property
    def characters(self) -> int:
        """The total length of all texts."""
        return len(self.system) + sum(len(asked) + len(replied) for asked, replied in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive a round trip through JSON."""
        return {"id": self.id, "system": self.system, "turns": [list(turn) for turn in self.turns]}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """A conversation from plain values. Raises ValueError if they are not one."""
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
