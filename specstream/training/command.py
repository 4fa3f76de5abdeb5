"""What ``python -m specstream train`` does."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from specstream import models
from specstream.adapters import Card, base_shape
from specstream.anatomy import dissect
from specstream.tasks import Task, task
from specstream.training.data import DataError, read_examples
from specstream.training.trainer import Config, Trainer


def train_adapter(
    model: str,
    task_name: str,
    mode: str,
    data: str,
    dev: Path | None,
    out: Path,
    resume: bool,
    device: str,
    max_length: int,
    values: dict[str, Any],
    command: list[str],
) -> Card:
    """Train and save an adapter. Raises ValueError (one sentence) for anything wrong with the settings or the data."""
    chosen = task(task_name)
    config = check(Config(mode=mode, **values))
    if not chosen.outputs:
        raise DataError(f"The task {task_name} has no references to train on: choose e2e, sql or dialogsum.")
    if data.startswith("hub:"):
        raise DataError("Hub datasets can't be read directly yet: download the JSONL file and give its path.")
    where, _ = models.choose_device(device)
    source = models.resolve(model)
    network, tokenizer = models.load_model(source, where, models.choose_dtype("float32", where)[0])
    anatomy = dissect(network)
    if config.layers > len(anatomy.layers):
        raise ValueError(f"--layers is {config.layers}, but the model has {len(anatomy.layers)} layers.")
    examples = read_examples(Path(data), chosen, tokenizer, max_length)
    held_out = read_examples(dev, chosen, tokenizer, max_length)[:200] if dev else []
    trainer = Trainer(anatomy, tokenizer, _card(model, anatomy, chosen, config, Path(data), command), config, out)
    if resume and not trainer.resume():
        raise DataError(f"There is no checkpoint in {out} to resume from: leave --resume away.")
    with _bar() as report:
        return trainer.train(examples, held_out, report)


def check(config: Config) -> Config:
    """Refuse settings that can't work, in one sentence."""
    for name in ("gamma", "layers", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} must be at least 1.")
    for name in ("start_rank", "lora_rank", "seed"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative.")
    for name in ("lr", "alpha"):
        value = getattr(config, name)
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"--{name} must be a number above 0.")
    if not math.isfinite(config.minutes) or config.minutes < 0 or (config.minutes == 0 and config.epochs < 1):
        raise ValueError("--minutes or --epochs must say how long to train.")
    return config


def _card(model: str, anatomy: Any, chosen: Task, config: Config, data: Path, command: list[str]) -> Card:
    return Card(
        base=model,
        base_shape=base_shape(anatomy),
        task=chosen.name,
        mode=config.mode,
        gamma=config.gamma,
        layers=config.layers,
        start_rank=config.start_rank,
        lora_rank=config.lora_rank,
        lora_scale=config.lora_scale,
        data=f"{data.name} in the form of {chosen.hub}",
        licence=chosen.licence,
        command=shlex.join(["python", "-m", "specstream", *command]),
    )


@contextmanager
def _bar() -> Any:
    """A progress bar over the share of the budget; validations as lines."""
    with tqdm(total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}", file=sys.stderr) as bar:
        yield _reporter(bar)


def _reporter(bar: Any) -> Callable[[dict[str, Any]], None]:
    def report(event: dict[str, Any]) -> None:
        losses = " ".join(f"{x:.2f}" for x in event["losses"])
        if event["kind"] == "validation":
            hits = " ".join(f"{x:.2f}" for x in event["hits"])
            bar.write(f"step {event['step']}: loss {losses}, top-1 {hits} (main stream first)", file=sys.stderr)
            return
        bar.set_postfix_str(f"step {event['step']} loss {losses}", refresh=False)
        bar.update(min(1.0, event["fraction"]) - bar.n)

    return report
