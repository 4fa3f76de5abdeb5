"""The work of ``python -m specstream answers``: a file of a model's own answers, for several training runs."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from specstream import processes
from specstream.adapters import weights
from specstream.adapters.find import find_adapter
from specstream.data.datasets import check_first_row
from specstream.data.instructions import instructions
from specstream.data.json_lines import same_file, whole_rows
from specstream.data.tasks import Task, task
from specstream.decoding.encode import chat_prompt
from specstream.model import devices
from specstream.model.introspection import Anatomy
from specstream.target import loading
from specstream.training.batches import DataError, Example, read_prompts, spread
from specstream.training.self_distillation import answer_all, own_prompts

Phase = Callable[[str, float], None]
OWN_PROMPTS = "own-prompts.jsonl"  # prompts that the model wrote, beside its answers
CODE = "code"  # the task whose instructions are assembled from parts


def note(words: str) -> None:
    """Print a note beside the progress bar; of several processes only the first does."""
    if processes.is_first():
        tqdm.write(f"note: {words}", file=sys.stderr)


@dataclass(frozen=True)
class AnswersRequest:
    """Which answers to write. ``own_prompts`` prompts written by the model are added to ``limit`` prompts of ``data``
    (0: all), evenly spread over it. ``start`` is an adapter whose LoRA tunes the model. ``batch_tokens`` is the size of
    a batch; 0: what suits the device."""

    model: str
    task: str
    out: Path
    data: str | None = None
    own_prompts: int = 0
    limit: int = 0
    temperatures: tuple[float, ...] = (0.0,)
    max_length: int = 512
    max_answer: int = 192
    start: Path | None = None
    batch_tokens: int = 0
    device: str = "auto"
    dtype: str = "auto"


def write_answers(request: AnswersRequest) -> str:
    """Write the answers that are not in the file yet. Returns a sentence about the result. Raises DataError."""
    chosen = task(request.task)
    if not request.data and not request.own_prompts:
        raise DataError("Nothing to answer: give --data FILE.jsonl, or --own-prompts N.")
    if request.out.is_dir() or not request.out.parent.is_dir():
        raise DataError(f"{request.out} can't be a file of answers: give a file in an existing folder.")
    check_unread(request.out, request.data)
    check_own(request.out)
    if request.own_prompts and chosen.name != CODE:
        check_unread(request.out.with_name(OWN_PROMPTS), request.data, str(request.out))
    if request.data:
        check_first_row(request.data, chosen)
    where, _ = devices.choose_device(request.device)
    processes.join(where)
    dtype, _ = devices.loaded_in(devices.choose_dtype(request.dtype, where)[0], where)
    network, tokenizer, _ = loading.fetch(request.model, where, dtype)
    anatomy = loading.parts_of(network)
    longest = anatomy.context - request.max_answer
    if longest < 1:
        raise DataError(no_room(request.max_answer, anatomy.context))
    texts: list[str] = []
    if request.data:
        texts = read_prompts(request.data, chosen, tokenizer, min(request.max_length, longest), note=note)
        texts = spread(texts, request.limit or len(texts))
    start = find_adapter(str(request.start), request.model) if request.start else None
    writer = AnswerWriter(
        chosen, anatomy, tokenizer, request.max_answer, request.temperatures, start, room=request.batch_tokens
    )
    began = time.monotonic()
    examples = writer(texts, request.out, request.own_prompts)
    seconds, tokens = time.monotonic() - began, sum(len(e.response) for e in examples)
    return f"{len(examples):,} distinct answers, {tokens:,} tokens, in {request.out}; {seconds / 60:.0f} minutes."


def check_unread(written: Path, *read: str | None) -> None:
    """Raise DataError if answers or prompts would be ``written`` to one of the files that are ``read``."""
    for name in read:
        if name and same_file(Path(name), written):
            raise DataError(f"{name} would be overwritten with the model's own texts: rename it, or change --out.")


def check_own(file: Path) -> None:
    """Raise DataError if answers would be added to a file that holds something else."""
    rows = list(whole_rows(file))
    if any(isinstance(row.get("answer"), list) for row in rows) or not file.is_file():
        return
    with file.open("rb") as lines:
        begun = lines.readline(11).strip()  # of a first row that was cut off
    if rows or not b'{"prompt":'.startswith(begun):
        raise DataError(f"{file} holds something other than answers: choose another file for --out.")


def no_room(answer: int, context: int) -> str:
    """The error message for answers as long as the model's context."""
    return (
        f"An answer of {answer} tokens leaves no room for a prompt in this model's context of {context}: "
        "give a smaller --max-answer."
    )


@dataclass
class AnswerWriter:
    """Has the model answer prompts, with the LoRA of the adapter in the folder ``start``."""

    task: Task
    anatomy: Anatomy
    tokenizer: Any
    longest: int
    temperatures: Sequence[float]
    start: Path | None = None
    phase: Phase = lambda words, fraction: None
    room: int = 0

    def __call__(self, texts: list[str], file: Path, own: int = 0) -> list[Example]:
        """Answers to ``texts`` and to ``own`` further prompts written by the model, stored in ``file``."""
        if own:
            texts = list(dict.fromkeys([*texts, *self._own_prompts(own, file)]))
        prompts = [chat_prompt(self.tokenizer, t) if self.task.asked else t for t in texts]
        with tqdm(desc="answers", file=sys.stderr, disable=not processes.is_first()) as bar:

            def done(made: int, total: int) -> None:
                bar.total = total
                bar.update(made - bar.n)
                self.phase("The model answers the prompts", made / max(1, total))

            how = (self.longest, self.temperatures, self._tuned, done, self.room)
            return answer_all(self.anatomy, self.tokenizer, prompts, file, *how)

    def _own_prompts(self, count: int, beside: Path) -> list[str]:
        """Instructions for the task ``code``; else prompts by the model itself, written once and stored beside the
        answers."""
        if self.task.name == CODE:
            return instructions()[:count]
        with tqdm(total=count, desc="prompts", file=sys.stderr, disable=not processes.is_first()) as bar:

            def done(made: int) -> None:
                bar.update(min(made, count) - bar.n)
                self.phase("The model writes prompts", min(made, count) / count)

            file = beside.with_name(OWN_PROMPTS)
            return own_prompts(self.anatomy, self.tokenizer, count, file, done, self.room)

    def _tuned(self) -> Any:
        if self.start is None:
            return nullcontext()
        adapter = weights.load(self.start, self.anatomy)
        return adapter.main_lora.attached(self.anatomy) if adapter.main_lora else nullcontext()


def in_bfloat16(anatomy: Anatomy) -> Anatomy:
    """A copy in bfloat16 that writes the answers if training computes in bfloat16: most users decode in it."""
    return loading.parts_of(copy.deepcopy(anatomy.model).to(torch.bfloat16))
