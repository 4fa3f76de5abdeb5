"""Work that the processes of ``accelerate launch`` share. One process needs nothing of this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def count() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


def join(device: str) -> None:
    """Meet the other processes and take a device of one's own. To be called before a model is loaded on ``device``,
    which may be "auto"."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(**({"cpu": True} if device == "cpu" else {}))


def shared(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """The results of all items, in their order, in every process; each process works on its share of the items.

    An item must give the same result whatever else its process works on. Results are pickled between the processes.
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
