"""What visitors may do, defined once: everything on their own machine, less in a public demo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specstream.adapters.find import bundled
from specstream.hub.catalogue import DEFAULT, TOY
from specstream.params import Sampling


class Refused(ValueError):
    """The rules do not allow this; the message says what they allow."""


@dataclass(frozen=True)
class Rules:
    """What is allowed: the permissions ``may_...``, which tabs and handlers ask for, and the limits.

    ``most_tokens`` and ``longest_prompt`` (characters, earlier turns of a chat included) are limits of one run, None
    for those of the model; ``most_repeats`` is the limit of a benchmark. ``models`` are the only names to load, with
    bundled adapters only; empty for all. ``local``: the page is served to this machine only. ``words``: what a visitor
    should know.
    """

    may_train: bool = True  # start, see and change training runs
    may_upload: bool = True
    may_unload: bool = True
    may_measure_others: bool = True  # methods of other libraries, for which a second copy of the model is loaded
    may_see_all: bool = True  # the runs of all visitors, not only one's own, so that links to runs work
    may_copy_log: bool = True  # download the whole database
    most_tokens: int | None = None
    longest_prompt: int | None = None
    most_repeats: int = 20
    models: tuple[str, ...] = ()
    local: bool = False
    words: str = ""

    @property
    def may_load_any(self) -> bool:
        """Any model, adapter and format, and a draft model."""
        return not self.models

    def check_run(self, characters: int, sampling: Sampling) -> None:
        """Raises Refused for a run that is too long for the demo."""
        if self.most_tokens is not None and sampling.max_new_tokens > self.most_tokens:
            raise Refused(f"This demo writes at most {self.most_tokens} new tokens: choose fewer.")
        if self.longest_prompt is not None and characters > self.longest_prompt:
            raise Refused(
                f"The prompt has {characters:,} characters; this demo takes {self.longest_prompt:,}: shorten it."
            )

    def check_measurement(self, repeats: int, references: Sequence[str]) -> None:
        """Raises Refused for too many repeats, and for methods of other libraries unless they may be measured."""
        if repeats > self.most_repeats:
            raise Refused(f"Here a benchmark makes each run at most {self.most_repeats} times: choose fewer repeats.")
        if references and not self.may_measure_others:
            raise Refused("This demo measures Speculative Streaming's own methods only: leave the others out.")

    def check_files(self, *files: object) -> None:
        """Raises Refused for any file, unless files may be uploaded."""
        if not self.may_upload and any(files):
            raise Refused("This demo takes no files: use the example prompts, or run the page on your own machine.")

    def check_training(self) -> None:
        """Raises Refused unless models may be trained."""
        if not self.may_train:
            raise Refused("This demo trains nothing: run the page on your own machine.")

    def check_copy(self) -> None:
        """Raises Refused unless the whole log may be downloaded."""
        if not self.may_copy_log:
            raise Refused("This demo does not give its log away: download your own runs.")

    def check_choice(
        self, model: str, adapter: str = "auto", device: str = "auto", dtype: str = "auto", draft: str = "none"
    ) -> None:
        """Raises Refused for a model, adapter or format that the demo does not load: the host's own adapters too."""
        if self.may_load_any:
            return
        known = model in self.models and adapter in {"auto", "none", *bundled(model)}
        if not known or (device, dtype, draft) != ("auto", "auto", "none"):
            raise Refused(f"This demo loads {' and '.join(self.models)} with their bundled adapters only.")

    def check_unload(self) -> None:
        """Raises Refused where other visitors need the model."""
        if not self.may_unload:
            raise Refused("This demo keeps its model loaded: others may be using it.")

    def seen_by(self, visitor: str | None) -> str | None:
        """The visitor whose runs are visible, None for everyone's: their own only ("": nobody's), or all."""
        return None if self.may_see_all else visitor or ""


MOST_TOKENS = 256  # of a run in a demo
OPEN = Rules()
DEMO = Rules(
    may_train=False,
    may_upload=False,
    may_unload=False,
    may_measure_others=False,
    may_see_all=False,
    may_copy_log=False,
    most_tokens=MOST_TOKENS,
    longest_prompt=3000,
    most_repeats=2,
    models=(DEFAULT, TOY),
    words=f"This is a shared demo: at most {MOST_TOKENS} new tokens a run, one run at a time, and you see your own "
    "runs only. On your own machine there are no such limits.",
)


def chosen(demo: bool | None = None, local: bool = False) -> Rules:
    """The requested rules; by default, those of a demo only on a Hugging Face Space."""
    demo = bool(os.environ.get("SPACE_ID")) if demo is None else demo
    return DEMO if demo else replace(OPEN, local=True) if local else OPEN
