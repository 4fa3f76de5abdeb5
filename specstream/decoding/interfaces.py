"""The interfaces of the decode loop: a target, whose output must not change, and a drafter, which proposes tokens.

Shapes: ``vocab`` is the size of the target's vocabulary, ``drafted`` the number of tokens that a head can draft.
Row 0 of a pass is its root, the newest committed token; row i is node i - 1 of the draft.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor

from specstream.events import Draft
from specstream.tree import Candidates


class Stopped(Exception):
    """The user stopped a run during its prompt pass."""


def never() -> bool:
    """A ``should_stop`` that never stops."""
    return False


class Synchronized(Protocol):
    """Something whose device may run asynchronously."""

    def synchronize(self) -> None:
        """Wait until the device has finished its work, so that times are correct."""
        ...


class Target(Synchronized, Protocol):
    """A model that scores drafts. A pass appends rows to the cache; ``keep`` then decides which of them stay.

    ``context`` is the largest number of positions. ``stream_rows`` counts the rows computed only by the top layers, in
    the last pass or for it. ``pruned`` are the nodes dropped by the last pass, for which its logits have no rows.
    """

    context: int
    stream_rows: int
    pruned: Collection[int]

    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = ...) -> Tensor:
        """Start a run with its prompt. Returns the logits of the last row, float32 ``[1, vocab]``.

        Raises Stopped between two chunks of a long prompt once ``should_stop`` returns True.
        """
        ...

    def verify(self, root: int, draft: Draft) -> Tensor:
        """One pass over the root token and the nodes of a draft.

        Returns logits, float32 ``[1 + nodes - pruned, vocab]``, in the order root, nodes. Raises ValueError for a
        non-empty draft if the model can't verify trees.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Commit these rows of the last pass, a path from the root (row 0) down, and drop all others."""
        ...

    def release(self) -> None:
        """End the run and free its memory. Safe to call twice."""
        ...


class StreamSource(Synchronized, Protocol):
    """A target with streams, which draft. ``gamma`` is the number of streams."""

    gamma: int

    @property
    def stream_ids(self) -> Tensor | None:
        """The token ids ``[drafted]`` of the streams' logits; None: the whole vocabulary."""
        ...

    @property
    def stream_pairs(self) -> Callable[[Tensor, int, int], Candidates] | None:
        """The pair map: a function that scores a stream's tokens given their parent, from the logits of some depths
        ``[depths, drafted]``, the root token and the number of candidates; None if there is no pair map."""
        ...

    def stream_logits(self, row: int) -> Tensor:
        """Logits, float32 ``[gamma, drafted]``, of the streams of a row of the last pass."""
        ...


class MedusaSource(Synchronized, Protocol):
    """A target with Medusa heads, one for each of ``medusa_depth`` depths."""

    medusa_depth: int

    @property
    def medusa_ids(self) -> Tensor | None:
        """The token ids ``[drafted]`` of the heads' logits; None: the whole vocabulary."""
        ...

    def medusa_logits(self, row: int) -> Tensor:
        """Logits, float32 ``[medusa_depth, drafted]``, of the heads for a row of the last pass."""
        ...


class ExitSource(Synchronized, Protocol):
    """A target whose first layers can draft."""

    def early_exit(self) -> AbstractContextManager[Callable[[int], Tensor]]:
        """A context that yields a function, which appends one token to the text and to the tokens before it, and
        returns the exit's logits for the next, float32 ``[1, vocab]``. The target drops these tokens at the end."""
        ...


class DraftingTarget(Target, StreamSource, MedusaSource, ExitSource, Protocol):
    """A target that supports every drafting method. ``vocabulary`` is the number of token ids it reads and scores."""

    @property
    def vocabulary(self) -> int: ...


class RewindableTarget(Target, Protocol):
    """The draft model of one run: a target that can also discard committed positions."""

    @property
    def vocabulary(self) -> int: ...

    def rewind(self, length: int) -> None:
        """Discard the committed positions from ``length`` on."""
        ...


class Drafter(Protocol):
    """Proposes trees of tokens. ``busy`` counts the seconds spent in drafting passes of a model or of heads."""

    busy: float = 0.0

    @contextmanager
    def passing(self, synchronize: Callable[[], None]) -> Iterator[None]:
        """A context whose time is added to ``busy``; ``synchronize`` waits for the device."""
        started = time.perf_counter()
        yield
        synchronize()
        self.busy += time.perf_counter() - started

    def propose(self, room: int) -> Draft:
        """A tree of at most ``room`` levels of tokens after the newest committed one; may be empty."""
        ...

    def observe(self, row: int) -> None:
        """Called after a pass with the row that was accepted last (0 is the root)."""
        ...
