"""Drafters: what is proposed. One small file per method; the loop and the target are shared by all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from specstream.decoding.sampling import Picker
from specstream.events import Draft


class Drafter(Protocol):
    """Proposes trees of tokens. ``busy``: seconds that passes of a model, or of heads, made to draft have taken."""

    busy: float = 0.0

    @contextmanager
    def passing(self, synchronize: Callable[[], None]) -> Iterator[None]:
        """A pass that is made to draft; ``synchronize`` waits until its device has done it."""
        started = time.perf_counter()
        yield
        synchronize()
        self.busy += time.perf_counter() - started

    def propose(self, room: int) -> Draft:
        """A tree at most ``room`` deep for the tokens after the newest committed one; may be empty."""
        ...

    def observe(self, row: int) -> None:
        """The last accepted row of the pass that just ended (0 is its root)."""
        ...


@dataclass(frozen=True)
class Given:
    """What a drafter can be made from: the target of the run, its committed ids as they grow, the method's parameters,
    the target's choice, and a fresh view of the draft model where one is loaded."""

    target: Any
    ids: list[int]
    params: Any
    picker: Picker
    second: Any = None
