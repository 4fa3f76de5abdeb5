"""What ``python -m specstream train`` does."""

from __future__ import annotations

import copy
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from specstream.adapters import store
from specstream.adapters.heads import EXIT, MEDUSA
from specstream.adapters.store import Adapter, Card, HeadCard, base_shape
from specstream.bench.provenance import PeakMemory
from specstream.data import datasets
from specstream.data.json_lines import whole_rows
from specstream.data.tasks import Task, task
from specstream.decoding.text import chat_prompt
from specstream.model import devices, loading
from specstream.model.introspection import Anatomy
from specstream.params import EarlyExit, Medusa
from specstream.training.batches import (
    DataError,
    Example,
    draft_vocabulary,
    hold_out,
    read_examples,
    read_prompts,
    spread,
)
from specstream.training.config import Config
from specstream.training.heads import ExitModel, MedusaModel, check_out, head_model
from specstream.training.probe import BUDGET
from specstream.training.progress import Event, Writer
from specstream.training.self_distillation import answer_all, own_prompts
from specstream.training.trainer import Trainer

METHOD_OF = {MEDUSA: Medusa.name, EXIT: EarlyExit.name}
HELD_OUT = 64  # rows that validations look at


@dataclass(frozen=True)
class Request:
    """What to train on and where to put it; ``Config`` says how.

    ``targets`` "references" trains on the data's references, "self" on the model's own answers to its prompts, at each
    of ``temperatures``; ``own_prompts`` adds that many prompts that the model writes itself. ``start`` is a trained
    adapter to begin with. Without ``dev``, ``hold_out`` rows of the data are kept for validation. ``limit`` rows are
    used, spread over the data; 0 is all. ``progress`` is a file that events are appended to (``progress.Writer``).
    """

    model: str
    task: str
    data: str
    dev: str | None
    out: Path
    device: str = "auto"
    resume: bool = False
    start: Path | None = None
    targets: str = "references"
    temperatures: tuple[float, ...] = (0.0,)
    own_prompts: int = 0
    max_length: int = 512
    max_answer: int = 192
    limit: int = 0
    hold_out: int = 0
    progress: Path | None = None
    command: tuple[str, ...] = ()


def train_adapter(request: Request, config: Config) -> Card:
    """Train and save an adapter. Raises ValueError (one sentence) for anything wrong with the settings or the data."""
    chosen = task(request.task)
    if not chosen.outputs and request.targets == "references":
        raise DataError(f"The task {chosen.name} has no references to train on: give --targets self.")
    for name in (request.data, request.dev):
        if name and not name.startswith(datasets.HUB) and not Path(name).is_fifo():  # a pipe is read once
            next(datasets.read_rows(Path(name)), None)  # a bad path is told before the model is loaded
    request = replace(request, start=_start(request, config))
    _make(request.out)
    where, _ = devices.choose_device(request.device)
    config.chosen_precision(where)  # refuses one that the device does not have
    watch = _Watch(request.progress, PeakMemory(where).read)
    network, tokenizer, source = loading.fetch(request.model, where, torch.float32, watch.phase)
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"The tokenizer of {request.model} has no end-of-text token to end answers with: choose another."
        )
    anatomy = loading.parts_of(network)
    if config.mode != "medusa" and config.layers > len(anatomy.layers):  # heads have no layers of their own
        raise ValueError(f"--layers is {config.layers}, but the model has {len(anatomy.layers)} layers.")
    examples, held_out = _examples(request, config, chosen, anatomy, tokenizer, watch)
    size = anatomy.model.get_input_embeddings().num_embeddings
    if config.draft_vocabulary >= size:  # all of a small one
        config = replace(config, draft_vocabulary=0)
    vocabulary = draft_vocabulary(examples, config.draft_vocabulary, size) if config.draft_vocabulary else None
    card = _card(request, anatomy, chosen, config)
    card = replace(card, training={"base": {"origin": source.origin, "revision": source.revision}} | _earlier(request))
    trainee = _head_model(request, anatomy, card, config, vocabulary) if config.trains_heads else None
    trainer = Trainer(anatomy, tokenizer, card, config, request.out, vocabulary, trainee)
    if request.resume and not trainer.resume():
        raise DataError(f"There is no checkpoint in {request.out} to resume from: leave --resume away.")
    if request.start and not request.resume and not trainee:
        trainer.start_from(request.start)
    _note(_expectation(examples, trainer))
    watch(
        {
            "kind": "begin",
            **trainer.position(),
            "rows": len(examples),
            "tokens": sum(map(len, examples)),
            "held_out": len(held_out),
        }
    )
    with _bar(watch) as report, stop_wish() as should_stop:
        main = trainer.accelerator.is_main_process
        card = trainer.train(examples, held_out, report if main else lambda event: None, should_stop)
    watch({"kind": "end", "stopped": not trainer.finished, **trainer.position()})
    if not trainer.finished:
        _note("stopped before the end; a checkpoint is saved: go on with --resume.")
    return card


class _Watch:
    """Writes events to the progress file, where one is wanted; of several processes only the first writes."""

    def __init__(self, file: Path | None, memory: Callable[[], int]) -> None:
        first = os.environ.get("RANK", "0") == "0"
        self._writer = Writer(file, memory) if file and first else None

    def __call__(self, event: Event) -> None:
        if self._writer:
            self._writer(event)

    def phase(self, words: str, fraction: float | None = None) -> None:
        """Tell what is done before the first step."""
        if self._writer:
            self._writer.phase(words, fraction)


@contextmanager
def stop_wish() -> Iterator[Callable[[], bool]]:
    """Whether an interrupt (Ctrl-C) or SIGTERM has come: the step under way is ended, and a checkpoint saved.

    A second one ends the process at once. Python hears signals in its main thread only: elsewhere none comes.
    """
    asked = threading.Event()
    before: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make(out: Path) -> None:
    """Make the folder of the adapter before hours are spent on what goes there. Raises DataError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except FileExistsError:
        raise DataError(f"{out} is a file: give --out a folder.") from None
    except OSError as error:
        raise DataError(f"The folder {out} can't be written ({error.strerror}): give --out another one.") from None


def _start(request: Request, config: Config) -> Path | None:
    """The folder of the adapter to begin with. Heads that are resumed find theirs beside them.

    Raises AdapterError for an unknown one, and DataError where the heads' folder holds another adapter.
    """
    start = store.find(str(request.start), request.model) if request.start else None
    if config.trains_heads:
        if request.resume and not start and (request.out / store.CARD).is_file():
            return request.out
        check_out(request.out, start)
    return start


def _earlier(request: Request) -> dict[str, Any]:
    """What was trained before this, where it begins with an adapter: the commands and how each training went."""
    if request.start is None:
        return {}
    card = store.read_card(request.start)
    stage = {"command": card.command, "date": card.date, "progress": card.training.get("progress", {})}
    return {"earlier": [*card.training.get("earlier", []), stage]}


def _head_model(
    request: Request, anatomy: Anatomy, base: Card, config: Config, vocabulary: Tensor | None
) -> MedusaModel | ExitModel:
    """Heads to train, on the base with the adapter's LoRA merged. ``base`` is the card of no adapter at all."""
    card = base
    if request.start:
        card = loading.tuned(request.start, anatomy).card
    shape: dict[str, Any] = {"count": config.gamma, "projection": config.projection}
    if config.mode == EXIT:
        shape = {"layers": config.layers, "rank": config.exit_rank or anatomy.hidden_size}
    made = {n: getattr(base, n) for n in ("data", "licence", "command", "training")}
    heads = HeadCard(config.mode, draft_vocabulary=config.draft_vocabulary, **shape, **made)
    if not request.start:
        card = replace(card, data="", licence="", command="")
    return head_model(anatomy, card, request.start, heads, vocabulary, config)


def default_data(task_name: str) -> str:
    """The public dataset of a task as ``hub:NAME``. Raises DataError for a task without one."""
    hub = task(task_name).hub
    if not hub:
        raise DataError(f"The task {task_name} has no public dataset: give --data FILE.jsonl.")
    return f"hub:{hub}"


def summary(out: Path, card: Card, mode: str) -> list[str]:
    """What came of a training in a mode and what to do next, for people."""
    made = card.heads.get(mode, card)
    name = "" if made is card else f" --method {METHOD_OF[mode]}"
    progress = made.training["progress"]
    step = progress["best_step"] or progress["step"]
    what = "Adapter" if made is card else "Heads"
    lines = [f"{what} saved in {out}: step {step} of {progress['step']}, {progress['seconds'] / 60:.0f} minutes."]
    if "tokens_per_step" in made.metrics:
        found = made.metrics["tokens_per_step"]
        lines.append(f"Tokens per step on held-out prompts, {BUDGET} nodes: {found:.2f} (standard decoding: 1).")
    return [*lines, f"Try it: python -m specstream generate --adapter {out} --task {card.task}{name} --prompt TEXT"]


def _expectation(examples: list[Example], trainer: Trainer) -> str:
    """What a training is going to do, before it begins."""
    config, tokens = trainer.config, sum(map(len, examples))
    budget = f"{config.minutes:g} minutes" if config.minutes else f"{config.epochs} passes"
    what = "Heads" if config.trains_heads else "Streams"
    return (
        f"{len(examples):,} rows of {tokens // len(examples)} tokens on average, {config.batch} a step, for {budget}; "
        f"{trainer.weights:,} weights to train. {what} begin with losses near 10 and draft usefully "
        "below 3; a checkpoint is saved every few minutes, so stop when you like and go on with --resume."
    )


def _examples(
    request: Request, config: Config, chosen: Task, anatomy: Anatomy, tokenizer: Any, watch: _Watch
) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples. The held-out ones are spread over the data."""
    watch.phase("Reading the data")
    if request.targets == "self":
        writer = _in_bfloat16(anatomy) if config.chosen_precision(anatomy.device.type) == "bf16" else anatomy
        return _own_examples(request, chosen, _Answers(request, chosen, writer, tokenizer, watch))
    longest = min(request.max_length, anatomy.context)
    examples = read_examples(request.data, chosen, tokenizer, longest, note=_note)
    examples = spread(examples, request.limit or len(examples))
    if not request.dev:
        return hold_out(examples, request.hold_out, lambda e: e.prompt)
    held_out = read_examples(request.dev, chosen, tokenizer, longest, "validation", _note)
    return examples, spread(held_out, HELD_OUT)


def _own_examples(request: Request, chosen: Task, make: _Answers) -> tuple[list[Example], list[Example]]:
    """The same with the model's own answers."""
    longest = min(request.max_length, make.anatomy.context - request.max_answer)
    if longest < 1:
        raise DataError(
            f"An answer of {request.max_answer} tokens leaves no room for a prompt in this model's context of "
            f"{make.anatomy.context}: give a smaller --max-answer."
        )
    texts = read_prompts(request.data, chosen, make.tokenizer, longest, note=_note)
    texts = spread(texts, request.limit or len(texts))
    if request.dev:
        asked = spread(read_prompts(request.dev, chosen, make.tokenizer, longest, "validation", _note), HELD_OUT)
    else:
        texts, asked = hold_out(texts, request.hold_out)
    examples = make(texts, "answers.jsonl", request.own_prompts)
    return examples, make(asked, "answers-dev.jsonl") if asked else []


def _in_bfloat16(anatomy: Anatomy) -> Anatomy:
    """A copy to write answers with, where training computes in that format too: most users decode in it."""
    return loading.parts_of(copy.deepcopy(anatomy.model).to(torch.bfloat16))


def _note(words: str) -> None:
    tqdm.write(f"note: {words}", file=sys.stderr)


@dataclass
class _Answers:
    """Makes the model, with the LoRA of the adapter to start from, answer prompts."""

    request: Request
    task: Task
    anatomy: Anatomy
    tokenizer: Any
    watch: _Watch

    def __call__(self, texts: list[str], name: str, own: int = 0) -> list[Example]:
        request = self.request
        if own:
            texts = list(dict.fromkeys([*texts, *self._own_prompts(own)]))
        prompts = [chat_prompt(self.tokenizer, t) if self.task.asked else t for t in texts]
        with tqdm(desc="answers", file=sys.stderr) as bar:

            def done(made: int, total: int) -> None:
                bar.total = total
                bar.update(made - bar.n)
                self.watch.phase("The model answers the prompts", made / max(1, total))

            answers = (request.out / name, request.max_answer, request.temperatures)
            return answer_all(self.anatomy, self.tokenizer, prompts, *answers, self._tuned, done)

    def _own_prompts(self, count: int) -> list[str]:
        """Prompts by the model itself; made once and kept."""
        file = self.request.out / "own-prompts.jsonl"
        have = [text for row in whole_rows(file) if isinstance(text := row.get("prompt"), str)]
        if len(have) >= count:
            return have[:count]
        with tqdm(total=count, desc="prompts", file=sys.stderr) as bar:

            def done(made: int) -> None:
                bar.update(min(made, count) - bar.n)
                self.watch.phase("The model writes prompts", min(made, count) / count)

            made = own_prompts(self.anatomy, self.tokenizer, count, 0, done)
        lines = (json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in made)
        file.write_text("".join(lines), encoding="utf-8")
        return made

    def _tuned(self) -> Any:
        if self.request.start is None:
            return nullcontext()
        adapter: Adapter = store.load(self.request.start, self.anatomy)
        return adapter.main_lora.attached(self.anatomy) if adapter.main_lora else nullcontext()


def _card(request: Request, anatomy: Anatomy, chosen: Task, config: Config) -> Card:
    data = request.data if request.data.startswith("hub:") else Path(request.data).name
    words = f"{data} in the form of {chosen.hub}" if chosen.hub else f"the model's own answers to {data}"
    names = ("mode", "gamma", "layers", "start_rank", "lora_rank", "lora_scale", "exit_rank", "value_rotation")
    shape = {n: getattr(config, n) for n in (*names, "draft_vocabulary", "pair_rank")}
    if config.mode == "lossless" and request.start:
        shape["main_rank"], shape["main_scale"] = store.read_card(request.start).tuning
    if config.trains_heads:  # beside an adapter that changes nothing, unless --start names another
        shape |= {n: 0 for n in shape if n not in ("lora_scale", "layers")} | {"mode": "plain"}
    return Card(
        base=request.model,
        base_shape=base_shape(anatomy),
        task=chosen.name,
        **shape,
        data=words,
        licence=chosen.licence,
        command=shlex.join(["python", "-m", "specstream", *request.command]),
    )


@contextmanager
def _bar(watch: _Watch) -> Iterator[Callable[[Event], None]]:
    """A progress bar over the share of the budget; validations as lines. ``watch`` is told everything too."""
    with tqdm(total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}", file=sys.stderr) as bar:
        show = _reporter(bar)

        def report(event: Event) -> None:
            show(event)
            watch(event)

        yield report


def _reporter(bar: Any) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        losses = " ".join(f"{x:.2f}" for x in event["losses"])
        if event["kind"] == "validation":
            hits = " ".join(f"{x:.2f}" for x in event["hits"])
            decoded = f", {event['tokens_per_step']:.2f} tokens per step" if "tokens_per_step" in event else ""
            bar.write(
                f"step {event['step']}: loss {losses}, top-1 {hits} (main stream first){decoded}", file=sys.stderr
            )
            return
        bar.set_postfix_str(f"step {event['step']} loss {losses}", refresh=False)
        bar.update(min(1.0, event["fraction"]) - bar.n)

    return report
