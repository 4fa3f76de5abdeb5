"""Tokens per second and peak memory of training steps, one setting after the other, each in a process of its own.

PYTHONPATH=. python docs/scripts/training_cost.py --data e2e/train.jsonl --task e2e [--steps 8]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "all tokens drafted": {"draft_vocabulary": 0},
    "draft vocabulary 8192 (default)": {},
    "and half of the positions carry streams": {"share": 0.5},
    "and an early exit of rank 8": {"exit_rank": 8},
    "in 4 parts": {"accumulate": 4},
    "lossless": {"mode": "lossless"},
    "plain LoRA, no streams": {"mode": "plain"},
}


def measure(data: str, task_name: str, steps: int, settings: dict[str, Any]) -> dict[str, float]:
    """Median tokens (of rows, prompts included) per second, and the process's peak memory in GB."""
    from specstream import models
    from specstream.anatomy import dissect
    from specstream.tasks import task
    from specstream.training.command import Request, _card
    from specstream.training.config import Config
    from specstream.training.data import batches, draft_vocabulary, read_examples
    from specstream.training.trainer import Trainer

    where, _ = models.choose_device("auto")
    network, tokenizer = models.load_model(
        models.resolve(models.DEFAULT), where, models.choose_dtype("float32", where)[0]
    )
    anatomy, config = dissect(network), Config(epochs=1000, **settings)
    examples = read_examples(data, task(task_name), tokenizer, 512)
    size = network.get_input_embeddings().num_embeddings
    vocabulary = draft_vocabulary(examples, config.draft_vocabulary, size) if config.draft_vocabulary else None
    request = Request(models.DEFAULT, task_name, data, None, Path("."))
    trainer = Trainer(
        anatomy, tokenizer, _card(request, anatomy, task(task_name), config), config, Path("."), vocabulary
    )
    trainer._steps_planned = 1000
    rates = []
    for batch in batches(examples, config.batch, 0, 0)[: steps + 2]:
        parts = [trainer._collate(batch[i :: trainer.parts], random.Random(0)) for i in range(trainer.parts)]
        started = time.perf_counter()
        trainer._step(parts)
        rates.append(sum(map(len, batch)) / (time.perf_counter() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux
    return {"rate": statistics.median(rates[2:]), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.data, args.task, args.steps, SETTINGS[args.only])))
        return
    print("| setting | tokens per second | peak memory, GB |\n|---|---|---|")
    for name in SETTINGS:
        out = subprocess.run([sys.executable, *sys.argv, "--only", name], check=True, capture_output=True, text=True)
        found = json.loads(out.stdout.splitlines()[-1])
        print(f"| {name} | {found['rate']:.0f} | {found['peak']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
