"""A model's own answers, which its streams must learn to predict (self-distillation)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from specstream import processes
from specstream.data.datasets import DataError
from specstream.data.json_lines import add_rows, end_line, whole_rows
from specstream.data.openings import openings
from specstream.decoding.encode import chat_prompt, encode
from specstream.model.introspection import Anatomy
from specstream.training.batches import Example
from specstream.training.generation import write

Key = tuple[str, float]  # a prompt and a temperature
MOST_OF_PROMPT = 160  # most tokens of a prompt written by the model

# Tokens per batch, prompts and answers. On a GPU more rows hardly make a step slower.
TOKENS, GPU_TOKENS = 16_384, 131_072


def own_prompts(
    anatomy: Anatomy, tokenizer: Any, count: int, file: Path, done: Callable[[int], None], room: int = 0
) -> list[str]:
    """User turns written by the model itself, given the start of its chat template and an opening. Each batch is
    appended to ``file``, one per row; those already there count. ``room`` is as for ``answer_all``.

    Every batch is one item of work for the processes. Raises DataError for a model without a chat template.
    """
    rows = [row for row in whole_rows(file) if isinstance(row.get("prompt"), str)]
    texts: dict[str, str] = {}
    for row in rows:
        texts.setdefault(_alike(row["prompt"]), row["prompt"])
    if len(texts) < count:
        batch = _prompt_batches(anatomy, tokenizer, max(1, 32 * (room or _room(anatomy)) // TOKENS))
        number = 1 + max((row["batch"] for row in rows if isinstance(row.get("batch"), int)), default=-1)
        end_line(file)
    while len(texts) < count:
        numbers = range(number, number + processes.count())
        for made, new in zip(numbers, processes.shared(numbers, batch), strict=True):
            new = [text for text in new if texts.setdefault(_alike(text), text) is text]
            if processes.is_first():
                add_rows(file, ({"prompt": text, "batch": made} for text in new))
        number = numbers.stop
        done(len(texts))
    return list(texts.values())[:count]


def _alike(prompt: str) -> str:
    """What prompts that hardly differ have in common."""
    return " ".join(prompt.casefold().split())


def _prompt_batches(anatomy: Anatomy, tokenizer: Any, size: int) -> Callable[[int], list[str]]:
    """A function that writes the prompts of the batch with a number; of ``size`` texts those that the model ended."""
    mark = "\u241e"
    head, found, tail = chat_prompt(tokenizer, mark).partition(mark)
    if not found or not head:
        raise DataError("Only a model with a chat template can write prompts: give --data.")
    end = tokenizer(tail.strip().splitlines()[0], add_special_tokens=False).input_ids[:1]
    begun = openings()

    def batch(number: int) -> list[str]:
        chosen = [begun[(number * size + row) % len(begun)] for row in range(size)]
        ids = [encode(tokenizer, head + opening) for opening in chosen]
        rows = write(anatomy, ids, MOST_OF_PROMPT, [1.0] * size, number, [tokenizer.eos_token_id, *end])
        texts = [(o + tokenizer.decode(r[:-1], skip_special_tokens=True)).strip()
                 for o, r in zip(chosen, rows, strict=True) if r[-1:] == end]  # fmt: skip
        return [text for text in texts if len(text) > 8]

    return batch


def answer_all(
    anatomy: Anatomy,
    tokenizer: Any,
    prompts: Sequence[str],
    file: Path,
    most: int,
    temperatures: Sequence[float],
    tuned: Callable[[], AbstractContextManager[Any]],
    done: Callable[[int, int], None],
    room: int = 0,
) -> list[Example]:
    """Answer every prompt at every temperature and append the answers to ``file``, one per row. Answers already there
    are kept; unreadable rows are answered again. ``tuned`` is entered while the model runs: it attaches the LoRA.
    ``room`` is the number of tokens per batch, prompts and answers; 0: what suits the device.

    Every batch is one item of work for the processes, so their number changes no answer."""
    size = anatomy.model.get_input_embeddings().num_embeddings
    have = {(e["prompt"], e["temperature"]): e for e in whole_rows(file) if _is_answer(e, size)}
    wanted = [(p, t) for t in temperatures for p in sorted(prompts, key=len)]
    groups = list(enumerate(_groups(tokenizer, wanted, most, room or _room(anatomy))))
    missing = [(seed, group) for seed, group in groups if not all(key in have for key in group)]

    def answered(numbered: tuple[int, list[Key]]) -> list[dict[str, Any]]:
        seed, group = numbered
        ids, ends = [encode(tokenizer, p) for p, _ in group], [tokenizer.eos_token_id]
        with tuned():
            texts = write(anatomy, ids, most, [t for _, t in group], seed, ends)
        rows = zip(
            group, texts, strict=True
        )  # a text depends on its batch, so the whole batch is repeated if one is missing
        return [{"prompt": p, "temperature": t, "answer": a} for (p, t), a in rows if (p, t) not in have]

    end_line(file)
    made, total = 0, sum(key not in have for _, group in missing for key in group)
    for rows in processes.shared(missing, answered):
        have |= {(row["prompt"], row["temperature"]): row for row in rows}
        if processes.is_first():
            add_rows(file, rows)
        made += len(rows)
        done(made, total)
    return _examples(tokenizer, [have[p, t] for t in temperatures for p in prompts])


def read_answers(file: Path, tokenizer: Any, size: int, longest: int) -> list[Example]:
    """The answers that ``answer_all`` wrote to a file, if they have at most ``longest`` tokens with their prompts.

    Raises DataError if the file has none whose tokens are in a vocabulary of ``size``.
    """
    rows = [row for row in whole_rows(file) if _is_answer(row, size)]
    examples = [example for example in _examples(tokenizer, rows) if len(example) <= longest]
    if not examples:
        raise DataError(f"{file} holds no answers of this model: write them with python -m specstream answers.")
    return examples


def _examples(tokenizer: Any, rows: Iterable[dict[str, Any]]) -> list[Example]:
    """Distinct examples, without empty answers, which teach nothing."""
    found = (Example(tuple(encode(tokenizer, row["prompt"])), tuple(row["answer"])) for row in rows if row["answer"])
    return list(dict.fromkeys(found))


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
    """Whether a row is an answer whose tokens are in a vocabulary of ``size``."""
    prompt, temperature, answer = (row.get(name) for name in ("prompt", "temperature", "answer"))
    if not isinstance(prompt, str) or not isinstance(temperature, int | float) or not isinstance(answer, list):
        return False
    return all(isinstance(token, int) and 0 <= token < size for token in answer)
