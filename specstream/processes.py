"""Sharing work between the processes of ``accelerate launch``; trivial with a single process."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def count() -> int:
    """The number of cooperating processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


def join(device: str) -> None:
    """Connect to the other processes and take a device for this one. Call it before a model is loaded on ``device``,
    which may be "auto"."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(**({"cpu": True} if device == "cpu" else {}))
        leave_at_exit()


def leave_at_exit() -> None:
    """Disconnect when this process exits: one whose connection is still open then may abort in its last moment, and
    the launcher would stop the others."""
    from torch import distributed

    def leave() -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    atexit.register(leave)


def shared(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """The results of all items, in order, in every process; each process computes its share.

    The result of an item must not depend on the other items of its process. Results are pickled between processes.
    """
    if count() == 1:
        yield from map(work, items)
        return
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    for start in range(0, len(items), state.num_processes):
        mine = items[start + state.process_index : start + state.process_index + 1]
        yield from gather_object([work(item) for item in mine])
