"""A model's own answers: what its streams must predict (self-distillation)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from specstream import processes
from specstream.data.json_lines import add_rows, end_line, whole_rows
from specstream.decoding.text import chat_prompt, encode
from specstream.model.introspection import Anatomy
from specstream.training.batches import DataError, Example
from specstream.training.generation import write

Key = tuple[str, float]  # a prompt and a temperature

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
        rows = write(
            anatomy, [ids] * rows_at_once, 64, [1.0] * rows_at_once, seed + round_, [tokenizer.eos_token_id, *end]
        )
        texts = (tokenizer.decode(r[:-1], skip_special_tokens=True).strip() for r in rows if r[-1:] == end)
        out.update(dict.fromkeys(t for t in texts if len(t) > 8))
        round_ += 1
        done(len(out))
    return list(out)[:count]


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
    wanted = [(p, t) for t in temperatures for p in sorted(prompts, key=len)]
    groups = list(enumerate(_groups(tokenizer, wanted, most, _room(anatomy))))
    missing = [(seed, group) for seed, group in groups if not all(key in have for key in group)]

    def answered(numbered: tuple[int, list[Key]]) -> list[dict[str, Any]]:
        seed, group = numbered
        ids, ends = [encode(tokenizer, p) for p, _ in group], [tokenizer.eos_token_id]
        with tuned():
            texts = write(anatomy, ids, most, [t for _, t in group], seed, ends)
        return [{"prompt": p, "temperature": t, "answer": a} for (p, t), a in zip(group, texts, strict=True)]

    end_line(file)
    for made, rows in enumerate(processes.shared(missing, answered), 1):
        have |= {(row["prompt"], row["temperature"]): row for row in rows}
        if processes.is_first():
            add_rows(file, rows)
        done(made, len(missing))
    keys = [(p, t) for t in temperatures for p in prompts]
    return [Example(tuple(encode(tokenizer, p)), tuple(have[p, t]["answer"])) for p, t in keys if have[p, t]["answer"]]


def _room(anatomy: Anatomy) -> int:
    return TOKENS if anatomy.device.type == "cpu" else GPU_TOKENS


def _groups(tokenizer: Any, wanted: list[Key], most: int, room: int) -> Iterator[list[Key]]:
    group: list[Key] = []
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
