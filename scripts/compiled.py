"""The gain of torch.compile in transformers' generate, which compiles as a whole: ms per token, and the warm-up.

python -m scripts.compiled [--dtype bfloat16] [--tokens 48]
"""

from __future__ import annotations

import statistics
import time

import click
import torch

from specstream.bench.provenance import heading
from specstream.hub.catalogue import resolve
from specstream.model.pretrained import load_model


@click.command(help=__doc__.splitlines()[0])
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@click.option("--tokens", default=48, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(dtype: str, tokens: int, repeats: int) -> None:
    network, tokenizer = load_model(resolve("smollm2-135m"), "cpu", getattr(torch, dtype))
    prompt = tokenizer("Facts: name[The Salted Fig], eatType[pub], area[riverside]\nText:", return_tensors="pt")
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def per_token() -> float:
        started = time.perf_counter()
        network.generate(**prompt, **length, cache_implementation="static", disable_compile=True)
        return 1000 * (time.perf_counter() - started) / tokens

    per_token()
    eager = statistics.median(per_token() for _ in range(repeats))
    started = time.perf_counter()
    network.forward = torch.compile(network.forward)
    per_token()
    warm_up = time.perf_counter() - started
    compiled = statistics.median(per_token() for _ in range(repeats))
    print(heading(dtype, f"{torch.get_num_threads()} threads"))
    print(f"static cache: {eager:.1f} ms per token, compiled {compiled:.1f} after {warm_up:.0f} s of warm-up")


if __name__ == "__main__":
    main()
