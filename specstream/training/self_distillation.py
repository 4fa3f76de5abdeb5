"""A model's own answers: what its streams must predict (self-distillation)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from specstream.data.json_lines import end_line, whole_rows
from specstream.decoding.encode import chat_prompt, encode
from specstream.model.introspection import Anatomy
from specstream.training.batches import DataError, Example

# Tokens of the rows computed together, prompts and answers. On a GPU a step takes hardly longer for more rows.
TOKENS, GPU_TOKENS = 16_384, 131_072


def own_prompts(anatomy: Anatomy, tokenizer: Any, count: int, seed: int, done: Callable[[int], None]) -> list[str]:
    """User turns that the model writes itself when it is given nothing but the head of its chat template.

    Raises DataError for a model without a chat template.
    """
    mark = "\u241e"
    head, found, tail = chat_prompt(tokenizer, mark).partition(mark)
    if not found or not head:
        raise DataError("Prompts can only be made by a model with a chat template: give --data.")
    end = tokenizer(tail.strip().splitlines()[0], add_special_tokens=False).input_ids[:1]
    ids = encode(tokenizer, head)
    rows_at_once = 32 * _room(anatomy) // TOKENS
    out: dict[str, None] = {}
    round_ = 0
    while len(out) < count:
        rows = generate(anatomy, tokenizer, [ids] * rows_at_once, 64, 1.0, seed + round_, end)
        texts = (tokenizer.decode(r[:-1], skip_special_tokens=True).strip() for r in rows if r[-1:] == end)
        out.update(dict.fromkeys(t for t in texts if len(t) > 8))
        round_ += 1
        done(len(out))
    return list(out)[:count]


@torch.no_grad()
def generate(
    anatomy: Anatomy,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    most: int,
    temperature: float,
    seed: int,
    end: Sequence[int] = (),
) -> list[list[int]]:
    """Answers of one batch by transformers: greedy at temperature 0. They end with EOS unless cut off at ``most``."""
    longest = max(len(p) for p in prompts)
    pad = tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=anatomy.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=anatomy.device)
    torch.manual_seed(seed)
    eos = [pad, *end]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    out = anatomy.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=most, eos_token_id=eos, pad_token_id=pad,
        **{"do_sample": False, "temperature": None, "top_k": None, "top_p": None} | sampling,
    )  # fmt: skip
    return [_cut(row, eos) for row in out[:, longest:].tolist()]


def _cut(row: list[int], eos: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(row) if token in eos]
    return row[: ends[0] + 1] if ends else row


def answer_all(
    anatomy: Anatomy,
    tokenizer: Any,
    prompts: Sequence[str],
    file: Path,
    most: int,
    temperatures: Sequence[float],
    tuned: Callable[[], AbstractContextManager[Any]],
    done: Callable[[int, int], None],
) -> list[Example]:
    """Answer every prompt at every temperature and write the answers to ``file``, a row each; those that are there
    already are kept, and what can't be read is answered again. ``tuned`` is opened while the model runs: it puts the
    LoRA on."""
    size = anatomy.model.get_input_embeddings().num_embeddings
    have = {(e["prompt"], e["temperature"]): e for e in whole_rows(file) if _is_answer(e, size)}
    wanted = [(p, t) for t in temperatures for p in sorted(prompts, key=len) if (p, t) not in have]
    total, made = len(wanted), 0
    end_line(file)
    with file.open("a", encoding="utf-8") as out, tuned():
        for group in _groups(tokenizer, wanted, most, _room(anatomy)):
            ids = [encode(tokenizer, p) for p, _ in group]
            rows = generate(anatomy, tokenizer, ids, most, group[0][1], seed=made)
            for (prompt, temperature), answer in zip(group, rows, strict=True):
                row = {"prompt": prompt, "temperature": temperature, "answer": answer}
                have[prompt, temperature] = row
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            made += len(group)
            done(made, total)
    keys = [(p, t) for t in temperatures for p in prompts]
    return [Example(tuple(encode(tokenizer, p)), tuple(have[p, t]["answer"])) for p, t in keys if have[p, t]["answer"]]


def _room(anatomy: Anatomy) -> int:
    return TOKENS if anatomy.device.type == "cpu" else GPU_TOKENS


def _groups(tokenizer: Any, wanted: list[tuple[str, float]], most: int, room: int) -> Iterator[list[tuple[str, float]]]:
    group: list[tuple[str, float]] = []
    for prompt, temperature in wanted:
        rows = len(group) + 1
        full = group and (group[0][1] != temperature or rows * (len(encode(tokenizer, prompt)) + most) > room)
        if full:
            yield group
            group = []
        group.append((prompt, temperature))
    if group:
        yield group


def _is_answer(row: dict[str, Any], size: int) -> bool:
    """Whether a row is an answer in tokens of a vocabulary of ``size``."""
    prompt, temperature, answer = (row.get(name) for name in ("prompt", "temperature", "answer"))
    if not isinstance(prompt, str) or not isinstance(temperature, int | float) or not isinstance(answer, list):
        return False
    return all(isinstance(token, int) and 0 <= token < size for token in answer)
