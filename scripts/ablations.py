"""The effect of each training option: short training runs that differ in one setting, with several seeds, as tables.

python -m scripts.ablations --task e2e --data e2e/train.jsonl --dev e2e/dev.jsonl --out RESULTS
    [--rows 400] [--seeds 2] [--only layers,gamma] [-- more options of train, such as --epochs 3]

Every training run is alone on the machine, makes one pass over ROWS rows by default, and is stored in RESULTS, so it is
not repeated. The tables are made from the stored results, so the work can be spread over days.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from specstream.training.progress import Progress, take_in

LOSSLESS = ("--mode", "lossless")
# The settings compared, by the name of their table; an empty tuple is the trainer's default.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "layers": {"2": ("--layers", "2"), "4": ("--layers", "4"), "6": (), "8": ("--layers", "8")},
    "gamma": {"2": ("--gamma", "2"), "4": (), "6": ("--gamma", "6"), "8": ("--gamma", "8")},
    "start": {"identity": ("--start-rank", "0"), "16": ("--start-rank", "16"), "64": ()},
    "rank": {"4": ("--lora-rank", "4"), "16": (), "32": ("--lora-rank", "32")},
    "alpha": {"0.1": ("--alpha", "0.1"), "0.5": (), "1": ("--alpha", "1")},
    "exit": {"none": (), "rank 8": ("--exit-rank", "8")},
    "value-rotation": {"embeddings": (), "rotation": ("--value-rotation", "0.4")},
    "pairs": {"none": ("--pair-rank", "0"), "64": ()},
    "targets": {"references": LOSSLESS, "own answers": (*LOSSLESS, "--targets", "self")},
    "cost": {
        "all tokens drafted": ("--draft-vocabulary", "0"),
        "draft vocabulary": (),
        "in float32": ("--precision", "float32"),
        "half of the positions": ("--share", "0.5"),
        "no pair map": ("--pair-rank", "0"),
        "in four parts": ("--accumulate", "4"),
        "top layers, states kept": ("--tuned-layers", "top"),
        "top layers, none kept": ("--tuned-layers", "top", "--cache", "0"),
        "lossless": LOSSLESS,
        "lossless, none kept": (*LOSSLESS, "--cache", "0"),
        "plain LoRA": ("--mode", "plain"),
    },
}


@dataclass(frozen=True)
class Outcome:
    """One training run: tokens per step and losses on held-out prompts, training tokens per second, and peak memory in
    bytes."""

    tokens_per_step: float | None
    losses: list[float]
    rate: float
    memory: int


def outcome(progress: Progress, tokens: float) -> Outcome:
    """The outcome of a finished training run over ``tokens`` tokens."""
    last = progress.validations[-1]
    return Outcome(last.tokens_per_step, last.losses, tokens / progress.seconds, progress.memory)


def train(folder: Path, options: Sequence[str]) -> None:
    """Run one training, in a separate process, unless its result is already stored."""
    done = folder / "outcome.json"
    if done.is_file():
        return
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    words = ["train", *options, "--out", str(folder / "adapter"), "--progress", str(events)]
    subprocess.run([sys.executable, "-m", "specstream", *words], check=True, stdout=sys.stderr)
    lines = events.read_text(encoding="utf-8").splitlines()
    progress = Progress()
    for line in lines:
        take_in(progress, line)
    told = {event["kind"]: event for event in map(json.loads, lines)}
    tokens = told["begin"]["tokens"] / told["begin"]["rows"] * told["end"]["examples"]
    done.write_text(json.dumps(vars(outcome(progress, tokens))), encoding="utf-8")


def table(name: str, cells: dict[str, list[Outcome]]) -> Iterator[str]:
    """A group's Markdown table: means over the seeds, with lowest and highest."""
    yield f"| {name} | tokens per step | loss: main, streams | tokens/s in training | peak memory, GB |"
    yield "|---|---|---|---|---|"
    for setting, found in cells.items():
        losses = [f"{statistics.fmean(column):.2f}" for column in zip(*(o.losses for o in found), strict=True)]
        rate, memory = statistics.median(o.rate for o in found), max(o.memory for o in found) / 1e9
        decoded = _spread([o.tokens_per_step for o in found])
        yield f"| {setting} | {decoded} | {' '.join(losses)} | {rate:.0f} | {memory:.1f} |"


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.fmean(known):.2f} ({min(known):.2f}-{max(known):.2f})" if known else "1"


@click.command(help=__doc__.splitlines()[0], context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--task", required=True)
@click.option("--data", required=True)
@click.option("--dev", required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--rows", default=400, show_default=True, help="Rows of the data to use, evenly spread.")
@click.option("--seeds", default=2, show_default=True)
@click.option("--only", default=",".join(GROUPS), help="Comma-separated groups.")
@click.argument("more", nargs=-1)
def main(task: str, data: str, dev: str, out: Path, rows: int, seeds: int, only: str, more: tuple[str, ...]) -> None:
    common = ["--task", task, "--data", data, "--dev", dev, "--epochs", "1", "--limit", str(rows), *more]
    for name in only.split(","):
        cells: dict[str, list[Outcome]] = {}
        for setting, options in GROUPS[name].items():
            folders = [out / _slug(options) / f"seed-{seed}" for seed in range(seeds)]
            for seed, folder in enumerate(folders):
                train(folder, [*common, *options, "--seed", str(seed)])
            found: list[dict[str, Any]] = [json.loads((f / "outcome.json").read_text("utf-8")) for f in folders]
            cells[setting] = [Outcome(**values) for values in found]
        print("\n".join(table(name, cells)), end="\n\n", flush=True)


def _slug(options: Sequence[str]) -> str:
    """The folder name of a setting; all groups share the default's."""
    return "".join(options).replace("--", "_").strip("_") or "default"


if __name__ == "__main__":
    main()
