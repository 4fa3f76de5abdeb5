"""What the decode loop works with: a target, whose output must not change, and a drafter, which proposes.

Shapes: ``vocab`` is the size of the target's vocabulary, ``drafted`` that of the tokens that a head can draft.
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
    """The user stopped a run inside its prompt pass."""


def never() -> bool:
    """A ``should_stop`` that never asks to stop."""
    return False


class Synchronized(Protocol):
    """Something whose device may lag behind Python."""

    def synchronize(self) -> None:
        """Wait until the device has done its work, so that a clock reads true."""
        ...


class Target(Synchronized, Protocol):
    """A model that scores drafts. A pass appends rows to the cache; ``keep`` then says which of them stay.

    ``context`` is the largest number of positions. ``stream_rows`` counts the rows that only the top layers computed,
    in the last pass or for it. ``pruned`` are the nodes that the last pass dropped: its logits hold no rows for them.
    """

    context: int
    stream_rows: int
    pruned: Collection[int]

    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = ...) -> Tensor:
        """Begin a run with its prompt. Returns the logits of the last row, float32 ``[1, vocab]``.

        Raises Stopped between two chunks of a long prompt once ``should_stop`` returns true.
        """
        ...

    def verify(self, root: int, draft: Draft) -> Tensor:
        """One pass over the root token and the nodes of a draft.

        Returns logits, float32 ``[1 + nodes - pruned, vocab]``, in the order root, nodes. Raises ValueError for a draft
        that is not empty where the model can't verify trees.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Commit these rows of the last pass, a path from the root (row 0) down, and drop all others."""
        ...

    def release(self) -> None:
        """End the run and free its memory. Safe to call twice."""
        ...


class StreamSource(Synchronized, Protocol):
    """A target whose streams draft. ``gamma`` is the number of streams."""

    gamma: int

    @property
    def stream_ids(self) -> Tensor | None:
        """The token ids ``[drafted]`` that the streams' logits are of; None: the whole vocabulary."""
        ...

    @property
    def stream_pairs(self) -> Callable[[Tensor, int, int], Candidates] | None:
        """What weighs a stream's tokens by the one above, given the logits of some depths ``[depths, drafted]``, the
        root token and how many candidates to find; None where there is no pair map."""
        ...

    def stream_logits(self, row: int) -> Tensor:
        """Logits, float32 ``[gamma, drafted]``, of the streams of a row of the last pass."""
        ...


class MedusaSource(Synchronized, Protocol):
    """A target with Medusa heads, one for each of ``medusa_depth`` depths."""

    medusa_depth: int

    @property
    def medusa_ids(self) -> Tensor | None:
        """The token ids ``[drafted]`` that the heads' logits are of; None: the whole vocabulary."""
        ...

    def medusa_logits(self, row: int) -> Tensor:
        """Logits, float32 ``[medusa_depth, drafted]``, of the heads for a row of the last pass."""
        ...


class ExitSource(Synchronized, Protocol):
    """A target whose first layers draft."""

    def early_exit(self) -> AbstractContextManager[Callable[[int], Tensor]]:
        """While open, a function that appends one token to the text and the tokens before it, and returns the exit's
        logits for the next, float32 ``[1, vocab]``. The target forgets these tokens when it closes."""
        ...


class DraftingTarget(Target, StreamSource, MedusaSource, ExitSource, Protocol):
    """A target that every method can draft with. ``vocabulary`` is the number of token ids that it reads and scores."""

    @property
    def vocabulary(self) -> int: ...


class RewindableTarget(Target, Protocol):
    """The draft model of one run: a target that can also take committed positions back."""

    @property
    def vocabulary(self) -> int: ...

    def rewind(self, length: int) -> None:
        """Forget the committed positions from ``length`` on."""
        ...


class Drafter(Protocol):
    """Proposes trees of tokens. ``busy`` counts the seconds spent in passes of a model, or of heads, to draft."""

    busy: float = 0.0

    @contextmanager
    def passing(self, synchronize: Callable[[], None]) -> Iterator[None]:
        """Charge what happens inside to ``busy``; ``synchronize`` waits for the device."""
        started = time.perf_counter()
        yield
        synchronize()
        self.busy += time.perf_counter() - started

    def propose(self, room: int) -> Draft:
        """A tree of at most ``room`` levels for the tokens after the newest committed one; may be empty."""
        ...

    def observe(self, row: int) -> None:
        """Learn which row of the pass that just ended was accepted last (0 is its root)."""
        ...
