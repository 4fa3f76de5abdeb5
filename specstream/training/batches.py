"""Training data: JSONL rows to padded batches."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specstream.data import datasets
from specstream.data.datasets import DataError
from specstream.data.tasks import Task

Item = TypeVar("Item")
IGNORE = -100
BUCKET = 50  # batches per bucket: within a bucket, examples of similar length are batched together


@dataclass(frozen=True)
class Example:
    """One prompt with one reference, as token ids. The response ends with EOS."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Batch:
    """Padded examples. ``ids``, ``positions`` ``[B, L]``; ``mask`` boolean ``[B, L, L]``.

    ``nodes`` ``[B, R]`` are the rows whose next token belongs to the response; ``carried`` ``[B, S]`` are the indices
    of those that carry streams. ``targets`` ``[B, R, 1 + gamma]`` are the tokens that the main stream (0) and stream j
    must predict, IGNORE beyond EOS.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    nodes: Tensor
    targets: Tensor
    carried: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def stream_rows(self) -> Tensor:
        """The rows that carry streams ``[B, S]``."""
        return self.nodes.gather(1, self.carried)

    def stream_targets(self) -> Tensor:
        """The tokens that their streams must predict ``[B, S, gamma]``."""
        index = self.carried[:, :, None].expand(-1, -1, self.targets.shape[2] - 1)
        return self.targets[:, :, 1:].gather(1, index)

    def tokens_above(self) -> Tensor:
        """The token before each stream target ``[B, S, gamma]``."""
        index = self.carried[:, :, None].expand(-1, -1, self.targets.shape[2] - 1)
        return self.targets[:, :, :-1].gather(1, index)


def read_examples(
    data: str,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str = "train",
    note: Callable[[str], None] = lambda words: None,
) -> list[Example]:
    """Every (prompt, reference) pair of a file, or of a split of a dataset on the Hub (``hub:NAME``).

    Rows longer than ``max_length`` tokens are left out; ``note`` gets a sentence with their number and the first one.
    Raises DataError naming the line of a bad row, and for data without a usable row.
    """
    out: list[Example] = []
    too_long: list[int] = []
    for row in datasets.task_rows(data, split, task):
        pairs = [_encode(row.prompt, reference, tokenizer) for reference in row.references]
        too_long += [row.number] * any(len(e) > max_length for e in pairs)
        out += [e for e in pairs if len(e) <= max_length]
    _tell_too_long(data, too_long, max_length, len(out), note)
    return out


def read_prompts(
    data: str,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str = "train",
    note: Callable[[str], None] = lambda words: None,
) -> list[str]:
    """The distinct prompts of a file or dataset, in order; otherwise like ``read_examples``."""
    rows = list(datasets.task_rows(data, split, task, answers=False))
    lengths = {prompt: len(tokenizer(prompt).input_ids) for prompt in dict.fromkeys(row.prompt for row in rows)}
    out = [prompt for prompt, length in lengths.items() if length <= max_length]
    _tell_too_long(data, [row.number for row in rows if lengths[row.prompt] > max_length], max_length, len(out), note)
    return out


def _tell_too_long(data: str, lines: list[int], max_length: int, left: int, note: Callable[[str], None]) -> None:
    """Report how many rows were left out; raise DataError if none is left."""
    if lines:
        rows = "1 row is" if len(lines) == 1 else f"{len(lines)} rows are"
        note(f"{data}: {rows} longer than {max_length} tokens and left out, the first in line {lines[0]}.")
    if not left:
        raise DataError(f"{data} holds no examples" + (f" of at most {max_length} tokens." if lines else "."))


def _encode(prompt: str, reference: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    response = tokenizer(" " + " ".join(reference.split()), add_special_tokens=False).input_ids
    return Example(tuple(tokenizer(prompt).input_ids), (*response, tokenizer.eos_token_id))


def batches(examples: list[Example], size: int, seed: int, epoch: int) -> list[list[Example]]:
    """The batches of one epoch: shuffled by (seed, epoch), with similar lengths together to save padding."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(examples)
    rng.shuffle(order)
    out = []
    for start in range(0, len(order), size * BUCKET):
        bucket = sorted(order[start : start + size * BUCKET], key=len)
        out += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    rng.shuffle(out)
    return out


def collate(
    examples: list[Example], gamma: int, pad: int, share: float = 1.0, rng: random.Random | None = None
) -> Batch:
    """Pad examples into a Batch. ``share`` of the response rows, drawn by ``rng``, have streams."""
    size, longest = len(examples), max(len(e) for e in examples)
    answered = max(len(e.response) for e in examples)
    ids = torch.full((size, longest), pad)
    nodes = torch.zeros(size, answered, dtype=torch.long)
    targets = torch.full((size, answered, 1 + gamma), IGNORE)
    lengths = torch.tensor([len(e) for e in examples])
    for b, example in enumerate(examples):
        tokens = torch.tensor(example.prompt + example.response)
        ids[b, : len(tokens)] = tokens
        first = len(example.prompt) - 1  # row i predicts token i + 1; stream j of row i predicts token i + 1 + j
        count = len(example.response)
        nodes[b, :count] = torch.arange(first, first + count)
        for j in range(1 + gamma):
            ahead = tokens[first + 1 + j :]
            targets[b, : len(ahead), j] = ahead
    steps = torch.arange(longest)
    mask = torch.ones(longest, longest, dtype=torch.bool).tril() & (steps < lengths[:, None])[:, None, :]
    mask = mask | torch.eye(longest, dtype=torch.bool)  # padding attends to itself: a fully masked row gives NaN
    positions = steps.expand(size, -1).contiguous()
    return Batch(ids, positions, mask, nodes, targets, _carried(examples, share, rng or random.Random(0)))


def _carried(examples: list[Example], share: float, rng: random.Random) -> Tensor:
    """The response rows of each example that carry streams ``[B, S]``; as many for a long response as for the mean
    one, to keep padding small."""
    counts = [len(e.response) for e in examples]
    most = max(counts) if share == 1 else math.ceil(share * sum(counts) / len(counts))
    chosen = [sorted(rng.sample(range(count), min(count, most))) for count in counts]
    # A short response's rows are padded with its last one, whose stream targets are beyond the end and train nothing.
    return torch.tensor([rows + [count - 1] * (most - len(rows)) for rows, count in zip(chosen, counts, strict=True)])


def spread(items: list[Item], count: int) -> list[Item]:
    """At most ``count`` items, evenly spaced over the whole list."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def hold_out(
    items: list[Item], count: int, key: Callable[[Item], Any] = lambda item: item
) -> tuple[list[Item], list[Item]]:
    """The remaining items, and ``count`` evenly spaced ones held out. Items with the same key stay together.

    Raises DataError if nothing would remain.
    """
    keys = list(dict.fromkeys(map(key, items)))
    if count >= len(keys):
        raise DataError(f"{count} rows can't be held out of {len(keys)} distinct ones: hold out fewer.")
    chosen = set(spread(keys, count))
    rest = [item for item in items if key(item) not in chosen]
    return rest, spread([item for item in items if key(item) in chosen], count)


def draft_vocabulary(examples: Iterable[Example], size: int, vocabulary: int) -> Tensor:
    """The sorted ids that streams may draft: the most frequent of the examples, then the lowest ids, which byte-pair
    encodings give to the most frequent tokens. It contains all of the examples' tokens if ``size`` allows."""
    counts = Counter(token for e in examples for token in e.response)
    for e in examples:
        counts.update(dict.fromkeys(e.prompt, 0))
    ids = [token for token, _ in counts.most_common(size)]
    known = set(ids)
    ids += [i for i in range(vocabulary) if i not in known][: size - len(ids)]
    return torch.tensor(sorted(ids))
