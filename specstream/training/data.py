"""Training data: JSONL rows to padded batches."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specstream.tasks import Task

IGNORE = -100
BUCKET = 50  # batches per bucket: examples of like length are batched together within a bucket


class DataError(ValueError):
    """Bad training data; the message names the file and line."""


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

    ``nodes`` ``[B, S]`` are the rows whose next token belongs to the response; they carry streams.
    ``targets`` ``[B, S, 1 + gamma]``: the token that the main stream (0) and stream j must predict, IGNORE beyond EOS.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    nodes: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f).to(device) for f in ("ids", "positions", "mask", "nodes", "targets")))


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every row of a JSONL file. Raises DataError for a bad row or an unreadable file."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse(path, number, line)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text file: give a JSONL file.") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}).") from None


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not valid JSON ({error.msg}).") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: expected an object with columns.")
    return row


def read_examples(path: Path, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """Every (prompt, reference) pair of a file. Raises DataError naming the line of a bad or too long row."""
    out: list[Example] = []
    for number, row in read_rows(path):
        try:
            prompt, references = task.row_prompt(row), task.references(row)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from None
        for reference in references:
            example = _encode(prompt, reference, tokenizer)
            if len(example) > max_length:
                raise DataError(f"{path}, line {number}: {len(example)} tokens, longer than the limit of {max_length}.")
            out.append(example)
    if not out:
        raise DataError(f"{path} holds no examples.")
    return out


def _encode(prompt: str, reference: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    response = tokenizer(" " + " ".join(reference.split()), add_special_tokens=False).input_ids
    return Example(tuple(tokenizer(prompt).input_ids), (*response, tokenizer.eos_token_id))


def batches(examples: list[Example], size: int, seed: int, epoch: int) -> list[list[Example]]:
    """The batches of one epoch: shuffled by (seed, epoch), like lengths together to save padding."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(examples)
    rng.shuffle(order)
    out = []
    for start in range(0, len(order), size * BUCKET):
        bucket = sorted(order[start : start + size * BUCKET], key=len)
        out += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    rng.shuffle(out)
    return out


def collate(examples: list[Example], gamma: int, pad: int) -> Batch:
    """Pad examples into a Batch."""
    size, longest = len(examples), max(len(e) for e in examples)
    carried = max(len(e.response) for e in examples)
    ids = torch.full((size, longest), pad)
    nodes = torch.zeros(size, carried, dtype=torch.long)
    targets = torch.full((size, carried, 1 + gamma), IGNORE)
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
    mask = mask | torch.eye(longest, dtype=torch.bool)  # padding sees itself: a row that sees nothing gives NaN
    return Batch(ids, steps.expand(size, -1).contiguous(), mask, nodes, targets)
