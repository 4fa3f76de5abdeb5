"""What visitors may do: everything on their own machine, less in a public demo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specstream.adapters.find import bundled
from specstream.hub.catalogue import DEFAULT, TOY
from specstream.params import Sampling


class Refused(ValueError):
    """The demo does not allow this; the message says what it allows."""


@dataclass(frozen=True)
class Rules:
    """What is allowed. In a ``demo`` visitors see only their own runs, and can't upload, train or download the log.

    ``most_tokens`` and ``longest_prompt`` (characters, earlier turns of a chat included) are limits of one run, None
    for those of the model; ``most_repeats`` is the limit of a benchmark. ``models`` are the only names to load, with
    bundled adapters only; empty for all. ``local``: the page is served to this machine only.
    """

    demo: bool = False
    most_tokens: int | None = None
    longest_prompt: int | None = None
    most_repeats: int = 20
    models: tuple[str, ...] = ()
    local: bool = False

    @property
    def words(self) -> str:
        """What a visitor of a demo should know."""
        return (
            f"This is a shared demo: at most {self.most_tokens} new tokens a run, one run at a time, and you see your "
            "own runs only. On your own machine there are no such limits."
        )

    def check_run(self, characters: int, sampling: Sampling) -> None:
        """Raises Refused for a run that is too long for the demo."""
        if self.most_tokens is not None and sampling.max_new_tokens > self.most_tokens:
            raise Refused(f"This demo writes at most {self.most_tokens} new tokens: choose fewer.")
        if self.longest_prompt is not None and characters > self.longest_prompt:
            raise Refused(
                f"The prompt has {characters:,} characters; this demo takes {self.longest_prompt:,}: shorten it."
            )

    def check_measurement(self, repeats: int, references: Sequence[str]) -> None:
        """Raises Refused for a benchmark with too many repeats, or in a demo with methods of other libraries."""
        if repeats > self.most_repeats:
            raise Refused(f"Here a benchmark makes each run at most {self.most_repeats} times: choose fewer repeats.")
        if references and self.demo:
            raise Refused("This demo measures Speculative Streaming's own methods only: leave the others out.")

    def check_files(self, *files: object) -> None:
        """Raises Refused in a demo for any uploaded file."""
        if self.demo and any(files):
            raise Refused("This demo takes no files: use the example prompts, or run the page on your own machine.")

    def check_choice(self, model: str, adapter: str, device: str, dtype: str, draft: str = "none") -> None:
        """Raises Refused for a model, adapter or format that the demo does not load: the host's own adapters too."""
        if not self.models:
            return
        adapters = {"auto", "none", *bundled(model)}
        if model not in self.models or adapter not in adapters or (device, dtype, draft) != ("auto", "auto", "none"):
            raise Refused(f"This demo loads {' and '.join(self.models)} with their bundled adapters only.")

    def check_unload(self) -> None:
        """Raises Refused in a demo, where other visitors need the model."""
        if self.demo:
            raise Refused("This demo keeps its model loaded: others may be using it.")

    def seen_by(self, visitor: str) -> str | None:
        """The visitor whose runs are visible: in a demo themselves, else None for everyone's."""
        return visitor if self.demo else None


OPEN = Rules()
DEMO = Rules(demo=True, most_tokens=256, longest_prompt=3000, most_repeats=2, models=(DEFAULT, TOY))


def chosen(demo: bool | None = None, local: bool = False) -> Rules:
    """The requested rules; by default, those of a demo only on a Hugging Face Space."""
    rules = DEMO if (bool(os.environ.get("SPACE_ID")) if demo is None else demo) else OPEN
    return replace(rules, local=True) if local and not rules.demo else rules
