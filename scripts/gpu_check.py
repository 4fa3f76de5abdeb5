"""A six-minute check of a CUDA machine: invariance, tests of the engine, cost of a step, four tasks.

python -m scripts.gpu_check --out FOLDER [--data FOLDER] [--device cuda] [--quick] [--seconds 360]

--data holds TASK/dev.jsonl for each task; parts that need it, or the model, are skipped if it is missing. Each part's
output and its results as JSON are written to FOLDER, with a summary.json. Nothing is downloaded. The exit status is 1
if a part failed. So far it has been run on a CPU only, with --device cpu --quick.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from specstream.bench.provenance import heading
from specstream.hub.catalogue import DEFAULT, ModelError, here

TASKS = ("sql", "e2e", "dialogsum", "chat")
TESTS = ("tests/test_golden.py", "tests/test_streaming_variants.py")
QUICK_TESTS = "test_streaming_equals_standard_equals_generate and llama"
LEFT_OUT, FAILED, DONE = "left out", "failed", "done"


@dataclass(frozen=True)
class Part:
    """A command, and its time limit in seconds. ``lacks`` names what is missing to run it."""

    name: str
    words: tuple[str, ...]
    limit: int
    lacks: str = ""


def parts(device: str, data: Path | None, quick: bool, out: Path) -> Iterator[Part]:
    """The parts in the order in which they run: the shortest first, since there may be no time left for later ones."""
    program = ("-m", "specstream")
    model = "" if _has_model() else f"the model {DEFAULT}"
    yield Part("invariance", (*program, "invariance", "--device", device, *_json(out, "invariance")), 60)
    seconds = "2" if quick else "20"
    cost = (*program, "cost", "--device", device, "--seconds", seconds, *_json(out, "cost"))
    yield Part("cost", cost, 60, model)
    only = ("-k", QUICK_TESTS) if quick else ()
    yield Part("tests", ("-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *only), 150)
    for task in TASKS:
        file = (data or Path()) / task / "dev.jsonl"
        lacks = model or ("" if data and file.is_file() else f"prompts ({file})" if data else "--data")
        asked = ("--task", task, "--data", str(file), "--methods", "streaming,hf", "--repeats", "1")
        size = ("--limit", "1", "--max-new-tokens", "8") if quick else ("--limit", "6", "--max-new-tokens", "96")
        yield Part(task, (*program, "bench", "--device", device, *asked, *size, *_json(out, task)), 60, lacks)


def _json(out: Path, name: str) -> tuple[str, str]:
    return "--json", str(out / f"{name}.json")


def _has_model() -> bool:
    try:
        return here(DEFAULT) is not None
    except ModelError:
        return False


def run(part: Part, out: Path, device: str, left: float) -> dict[str, Any]:
    """Run a part within the time left; its output goes to a file named after it."""
    if part.lacks or left < 1:
        return {"part": part.name, "state": LEFT_OUT, "words": part.lacks or "no time left", "seconds": 0.0}
    environment = os.environ | {"SPECSTREAM_TEST_DEVICE": device, "HF_HUB_OFFLINE": "1"}
    started, words = time.monotonic(), ""
    with (out / f"{part.name}.txt").open("w", encoding="utf-8") as file:
        try:
            limit = min(part.limit, left)
            call = [sys.executable, *part.words]
            code = subprocess.run(
                call, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code, words = 1, f"not done within {limit:.0f} s"
    words = words or (_last_line(out / f"{part.name}.txt") if code else "")
    seconds = round(time.monotonic() - started, 1)
    return {"part": part.name, "state": FAILED if code else DONE, "words": words, "seconds": seconds}


def _last_line(file: Path) -> str:
    return (file.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1][:200]


@click.command(help=__doc__)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="Run only a little of each part, to test this script.")
@click.option("--seconds", default=360.0, show_default=True, help="Time limit for everything together.")
def main(out: Path, data: Path | None, device: str, quick: bool, seconds: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + seconds
    click.echo(heading(device))
    results = []
    for part in parts(device, data, quick, out):
        results.append(run(part, out, device, until - time.monotonic()))
        click.echo("{part:12} {state:8} {seconds:6.1f} s  {words}".format(**results[-1]))
        (out / "summary.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(any(r["state"] == FAILED for r in results))


if __name__ == "__main__":
    main()
