"""The work of ``python -m specstream train``."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from specstream import processes
from specstream.adapters import readme
from specstream.adapters.card import CARD, Card, HeadCard, read_card
from specstream.adapters.find import find_adapter
from specstream.adapters.heads import EXIT, MEDUSA
from specstream.adapters.weights import Adapter, base_shape
from specstream.bench.provenance import PeakMemory
from specstream.data import datasets
from specstream.data.tasks import Task, task
from specstream.hub import catalogue
from specstream.model import devices, memory
from specstream.model.introspection import Anatomy
from specstream.params import EarlyExit, Medusa, Sampling
from specstream.stats import counted
from specstream.target import loading
from specstream.training import forecast
from specstream.training.answers import CODE, OWN_PROMPTS, AnswerWriter, check_unread, in_bfloat16, no_room, note
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
from specstream.training.self_distillation import read_answers
from specstream.training.trainer import Trainer

METHOD_OF = {MEDUSA: Medusa.name, EXIT: EarlyExit.name}
TRIED, TRIED_TOKENS = 3, 64  # held-out prompts on which a finished adapter is timed, and tokens of each
HELD_OUT = 64  # rows used for validation
OWN_LICENCE = "yours, not stated"  # of data that is not the task's public dataset
TYPICAL = 192  # assumed tokens per row, for estimating memory before the data is read
MOST_KEPT_BACK = 32  # most prompts that are held out by default
ANSWERS_FILE, HELD_OUT_FILE = "answers.jsonl", "answers-dev.jsonl"


@dataclass(frozen=True)
class TrainingRequest:
    """What to train on and where to save it; ``Config`` says how.

    ``targets`` "references" trains on the data's references, "self" on the model's own answers to its prompts, at each
    of ``temperatures``; ``own_prompts`` adds that many prompts written by the model itself. ``answers`` is a file of
    previously written answers that replaces ``data``. ``start`` is a trained adapter to start from.
    Without ``dev``, ``hold_out`` prompts of the data are held out for validation (-1: a tenth, at most 32). ``limit``
    rows are used, evenly spread over the data; 0 is all. Events are appended to ``progress`` (``progress.Writer``).
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
    answers: Path | None = None
    temperatures: tuple[float, ...] = (0.0,)
    own_prompts: int = 0
    max_length: int = 512
    max_answer: int = 192
    limit: int = 0
    hold_out: int = 0
    progress: Path | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """The result of training: the card of the best adapter, the progress at the end (``trainer.TrainerState``), whether
    the budget is used up, and some held-out prompts."""

    card: Card
    progress: dict[str, Any]
    finished: bool
    prompts: tuple[str, ...] = ()


def train_adapter(request: TrainingRequest, config: Config) -> Trained:
    """Train and save an adapter. Raises ValueError, with one sentence, if settings or data are invalid."""
    chosen = task(request.task)
    if not chosen.outputs and request.targets == "references" and not request.answers:
        raise DataError(f"The task {chosen.name} has no references to train on: give --targets self.")
    for name in filter(None, (request.data, request.dev)):
        datasets.check_first_row(name, chosen, request.targets == "references" and not request.answers)
    if request.answers:
        datasets.check_first_row(str(request.answers), None)
    for written in _own_files(request):
        check_unread(request.out / written, request.data, request.dev)
    request = replace(request, start=_start(request, config))
    _make(request.out)
    where, _ = devices.choose_device(request.device)
    config.chosen_precision(where)  # raises for one that the device does not support
    processes.join(where)
    watch = _Watch(request.progress, PeakMemory(where).read)
    if words := _needed(request, config):
        note(words)
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
    if config.draft_vocabulary >= size:  # a small vocabulary needs no restriction
        config = replace(config, draft_vocabulary=0)
    vocabulary = draft_vocabulary(examples, config.draft_vocabulary, size) if config.draft_vocabulary else None
    card = _card(request, anatomy, chosen, config)
    card = replace(card, training={"base": {"origin": source.origin, "revision": source.revision}} | _earlier(request))
    trainee = _head_model(request, anatomy, card, config, vocabulary) if config.trains_heads else None
    trainer = Trainer(anatomy, tokenizer, card, config, request.out, vocabulary, trainee)
    if request.resume and not trainer.resume():
        raise DataError(f"There is no checkpoint in {request.out} to resume from: omit --resume.")
    if request.start and not request.resume and not trainee:
        trainer.start_from(request.start)
    note(expectation(examples, trainer))
    if config.minutes and not request.resume and len(examples) >= 2 * config.batch and not trainee:
        note(_forecast(request, config, trainer.seconds_per_step(examples)))
    watch(
        {
            "kind": "begin",
            **trainer.position(),
            "rows": len(examples),
            "tokens": sum(map(len, examples)),
            "held_out": len(held_out),
        }
    )
    with _bar(watch) as report, stop_requests() as should_stop:
        main = trainer.accelerator.is_main_process
        card = trainer.train(examples, held_out, report if main else lambda event: None, should_stop)
    watch({"kind": "end", "stopped": not trainer.finished, **trainer.position()})
    if not trainer.finished:
        note("stopped before the end; a checkpoint is saved: continue with --resume.")
    prompts = tuple(tokenizer.decode(e.prompt) for e in spread(held_out, TRIED)) if held_out else ()
    return Trained(card, asdict(trainer.progress), trainer.finished, prompts)


def _forecast(request: TrainingRequest, config: Config, seconds: float) -> str:
    """What training is likely to reach at ``seconds`` per step."""
    start = forecast.Stage.of(read_card(request.start)) if request.start else None
    return forecast.announced(request.task, config.gamma, seconds, config.batch, config.minutes, start)


def _own_files(request: TrainingRequest) -> Iterator[str]:
    """The names of the files in ``out`` into which the model's own answers and prompts are written."""
    if request.answers or request.targets == "self":
        yield HELD_OUT_FILE
    if request.targets == "self" and not request.answers:
        yield ANSWERS_FILE
        if request.own_prompts and request.task != CODE:
            yield OWN_PROMPTS


def _needed(request: TrainingRequest, config: Config) -> str:
    """An estimate of the memory that training will take, before the model is loaded; empty if its shape is
    unknown."""
    found = catalogue.here(request.model)
    if found is None or config.trains_heads:
        return ""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        shape = AutoConfig.from_pretrained(found.path, local_files_only=True)
        with torch.device("meta"):
            parts = loading.parts_of(AutoModelForCausalLM.from_config(shape))
            count = Adapter(parts, _card(request, parts, task(request.task), config)).parameter_count()
    except Exception:  # a foreign config may lack anything; loading the model reports what is wrong
        return ""
    weights = sum(p.numel() for p in parts.model.parameters())
    tokens = min(request.max_length, TYPICAL)
    bytes_ = memory.to_train(shape, weights, count, config, tokens, min(tokens, request.max_answer) // 2)
    there = memory.gigabytes(memory.free(request.device))
    return (
        f"{count:,} weights are added to {weights:,}. With rows of {tokens} tokens training takes about "
        f"{memory.gigabytes(bytes_)} of memory; {there} are free."
    )


class _Watch:
    """Writes events to the progress file, if there is one; of several processes only the first writes."""

    def __init__(self, file: Path | None, memory: Callable[[], int]) -> None:
        self._writer = Writer(file, memory) if file and processes.is_first() else None

    def __call__(self, event: Event) -> None:
        if self._writer:
            self._writer(event)

    def phase(self, words: str, fraction: float | None = None) -> None:
        """Report work that precedes the first step."""
        if self._writer:
            self._writer.phase(words, fraction)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether an interrupt (Ctrl-C) or SIGTERM has arrived; training then finishes the
    current step and saves a checkpoint.

    A second signal ends the process at once. Python delivers signals to its main thread only.
    """
    asked = threading.Event()
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
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
    """Create the adapter's folder before hours are spent on training. Raises DataError, also for a folder whose
    README.md would be overwritten: that of a model, or of somebody's project."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except FileExistsError:
        raise DataError(f"{out} is a file: give --out a folder.") from None
    except OSError as error:
        raise DataError(f"The folder {out} can't be written ({error.strerror}): give --out another one.") from None
    if (out / readme.FILE).exists() and not (out / CARD).exists() and not any(out.glob("checkpoint*")):
        raise DataError(f"{out} has a {readme.FILE} that is no adapter's, and would be overwritten: change --out.")


def _start(request: TrainingRequest, config: Config) -> Path | None:
    """The folder of the adapter to start from; for resumed heads, the adapter in their own folder.

    Raises AdapterError for an unknown one, and DataError if the heads' folder holds another adapter.
    """
    start = find_adapter(str(request.start), request.model) if request.start else None
    if config.trains_heads:
        if request.resume and not start and (request.out / CARD).is_file():
            return request.out
        check_out(request.out, start)
    return start


def _earlier(request: TrainingRequest) -> dict[str, Any]:
    """The earlier stages of the adapter to start from: their commands, dates and progress."""
    if request.start is None:
        return {}
    card = read_card(request.start)
    stage = {"command": card.command, "date": card.date, "progress": card.training.get("progress", {})}
    return {"earlier": [*card.training.get("earlier", []), stage]}


def _head_model(
    request: TrainingRequest, anatomy: Anatomy, base: Card, config: Config, vocabulary: Tensor | None
) -> MedusaModel | ExitModel:
    """Heads to train on the base with the adapter's LoRA merged. ``base`` is the card used if there is no adapter."""
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


def summary(out: Path, trained: Trained, mode: str) -> list[str]:
    """The result of training in a mode and what to do next, as lines for the user."""
    card, progress = trained.card, trained.progress
    made = card.heads.get(mode, card)
    name = "" if made is card else f" --method {METHOD_OF[mode]}"
    step = progress["best_step"] or progress["step"]
    what = "Adapter" if made is card else "Heads"
    lines = [f"{what} saved in {out}: step {step} of {progress['step']}, {progress['seconds'] / 60:.0f} minutes."]
    if "tokens_per_step" in made.metrics:
        found = made.metrics["tokens_per_step"]
        lines.append(f"Tokens per step on held-out prompts, {BUDGET} nodes: {found:.2f} (standard decoding: 1).")
        lines.append(forecast.an_hour(forecast.Stage.of(card, progress), progress) if made is card else "")
    lines = [line for line in lines if line]
    return [*lines, f"Try it: python -m specstream generate --adapter {out} --task {card.task}{name} --prompt TEXT"]


def timed(request: TrainingRequest, prompts: Sequence[str]) -> str:
    """A sentence about the speed of the finished adapter on this machine against standard decoding, or why it could
    not be measured."""
    from specstream.bench.prompts import prompts_as_cases
    from specstream.bench.results import result_rows
    from specstream.bench.runner import Ours, bench
    from specstream.engine import load

    try:
        engine = load(request.model, str(request.out), request.device)
    except ValueError as error:
        return f"Its speed was not measured: {error}"
    cases = prompts_as_cases(prompts)
    rows = bench(engine, cases, [Ours(engine, engine.default_method())], Sampling(max_new_tokens=TRIED_TOKENS))
    measured = result_rows(rows, request.task)[-1]
    return (
        f"On this machine, {len(prompts)} held-out prompts: {measured['speedup']:.2f} times as fast as standard "
        f"decoding, {measured['tokens_per_step']:.2f} tokens per step at default settings."
    )


def expectation(examples: list[Example], trainer: Trainer) -> str:
    """A description of the training about to start."""
    config, tokens = trainer.config, sum(map(len, examples))
    budget = forecast.in_minutes(config.minutes) if config.minutes else counted(config.epochs, "epoch")
    what = "Heads" if config.trains_heads else "Streams"
    return (
        f"{counted(len(examples), 'row')} of {tokens // len(examples)} tokens on average, {config.batch} per step, for "
        f"{budget}; {trainer.weights:,} weights to train. {what} start with losses near 10 and draft usefully "
        "below 3. A checkpoint is saved every few minutes, so you can stop at any time and continue with --resume."
    )


def _examples(
    request: TrainingRequest,
    config: Config,
    chosen: Task,
    anatomy: Anatomy,
    tokenizer: PreTrainedTokenizerBase,
    watch: _Watch,
) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples. The held-out ones are evenly spread over the data."""
    watch.phase("Reading the data")
    if request.answers:
        size = anatomy.model.get_input_embeddings().num_embeddings
        longest = min(request.max_length + request.max_answer, anatomy.context)
        examples = read_answers(request.answers, tokenizer, size, longest)
        examples = spread(examples, request.limit or len(examples))
        if not request.dev:
            return hold_out(examples, _kept_back(request, {e.prompt for e in examples}), lambda e: e.prompt)
        asked = _held_out_prompts(request, chosen, anatomy, tokenizer)
        return examples, _writer(request, config, chosen, anatomy, tokenizer, watch)(asked, request.out / HELD_OUT_FILE)
    if request.targets == "self":
        return _own_examples(request, chosen, _writer(request, config, chosen, anatomy, tokenizer, watch))
    longest = min(request.max_length, anatomy.context)
    examples = read_examples(request.data, chosen, tokenizer, longest, note=note)
    examples = spread(examples, request.limit or len(examples))
    if not request.dev:
        return hold_out(examples, _kept_back(request, {e.prompt for e in examples}), lambda e: e.prompt)
    held_out = read_examples(request.dev, chosen, tokenizer, longest, "validation", note)
    return examples, spread(held_out, HELD_OUT)


def _kept_back(request: TrainingRequest, prompts: Collection[object]) -> int:
    """How many prompts are held out if there is no --dev."""
    return min(MOST_KEPT_BACK, len(prompts) // 10) if request.hold_out < 0 else request.hold_out


def _writer(
    request: TrainingRequest, config: Config, chosen: Task, anatomy: Anatomy, tokenizer: Any, watch: _Watch
) -> AnswerWriter:
    in16 = config.chosen_precision(anatomy.device.type) == "bf16"
    how = (request.max_answer, request.temperatures, request.start, watch.phase)
    return AnswerWriter(chosen, in_bfloat16(anatomy) if in16 else anatomy, tokenizer, *how)


def _held_out_prompts(request: TrainingRequest, chosen: Task, anatomy: Anatomy, tokenizer: Any) -> list[str]:
    longest = min(request.max_length, anatomy.context - request.max_answer)
    return spread(read_prompts(str(request.dev), chosen, tokenizer, longest, "validation", note), HELD_OUT)


def _own_examples(request: TrainingRequest, chosen: Task, make: AnswerWriter) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples with the model's own answers."""
    longest = min(request.max_length, make.anatomy.context - request.max_answer)
    if longest < 1:
        raise DataError(no_room(request.max_answer, make.anatomy.context))
    texts = read_prompts(request.data, chosen, make.tokenizer, longest, note=note)
    texts = spread(texts, request.limit or len(texts))
    if request.dev:
        asked = _held_out_prompts(request, chosen, make.anatomy, make.tokenizer)
    else:
        texts, asked = hold_out(texts, _kept_back(request, texts))
    examples = make(texts, request.out / ANSWERS_FILE, request.own_prompts)
    return examples, make(asked, request.out / HELD_OUT_FILE) if asked else []


def _card(request: TrainingRequest, anatomy: Anatomy, chosen: Task, config: Config) -> Card:
    public = request.data == f"hub:{chosen.hub}"
    words = request.data if request.data.startswith("hub:") else Path(request.data).name
    if not chosen.hub:
        words = f"the model's own answers to {words}"
    if request.answers:
        words = f"the model's own answers in {request.answers.name}"
    names = ("mode", "gamma", "layers", "start_rank", "lora_rank", "lora_scale", "exit_rank", "value_rotation")
    shape = {n: getattr(config, n) for n in (*names, "draft_vocabulary", "pair_rank")}
    if config.mode == "lossless" and request.start:
        shape["main_rank"], shape["main_scale"] = read_card(request.start).tuning
    if config.trains_heads:  # beside an adapter that changes nothing, unless --start gives one
        shape |= {n: 0 for n in shape if n not in ("lora_scale", "layers")} | {"mode": "plain"}
    return Card(
        base=request.model,
        base_shape=base_shape(anatomy),
        task=chosen.name,
        **shape,
        data=words,
        licence=chosen.licence if public or not request.data else OWN_LICENCE,
        command=shlex.join(["python", "-m", "specstream", *request.command]),
    )


@contextmanager
def _bar(watch: _Watch) -> Iterator[Callable[[Event], None]]:
    """A progress bar over the share of the budget, with validations as lines. ``watch`` also gets every event."""
    with tqdm(total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}", file=sys.stderr) as bar:
        show = _reporter(bar)

        def report(event: Event) -> None:
            show(event)
            watch(event)

        yield report


def _reporter(bar: tqdm[NoReturn]) -> Callable[[Event], None]:
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
