"""How far each attention implementation in bfloat16 is from float32: KL divergence over the model's own answers.

python -m scripts.attention_quality [--tokens 104]

Each reads the same text token by token, as decoding does: transformers' attention, ours, and ours in compiled layers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click
import torch
from torch import Tensor

from specstream.bench.provenance import heading
from specstream.decoding.encode import chat_prompt, encode
from specstream.engine import Engine, load
from specstream.events import Draft
from specstream.hub.catalogue import resolve
from specstream.model.pretrained import load_model
from specstream.native.compiler import NO_COMPILER, NO_LAYERS
from specstream.params import Standard

QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a fox and a river.",
    "How do I boil an egg?",
    "Name three rivers.",
)
Text = tuple[list[int], list[int]]  # a prompt, and what follows


@torch.inference_mode()
def texts(network: object, tokenizer: object, tokens: int) -> list[Text]:
    """The float32 model's greedy answers to the questions, ``tokens`` in all."""
    out = []
    for question in QUESTIONS:
        ids = encode(tokenizer, chat_prompt(tokenizer, question))
        length = tokens // len(QUESTIONS)
        made = network.generate(torch.tensor([ids]), max_new_tokens=length, min_new_tokens=length, do_sample=False)  # type: ignore[attr-defined]
        out.append((ids, made[0, len(ids) :].tolist()))
    return out


@torch.inference_mode()
def by_library(network: object, asked: Sequence[Text]) -> Tensor:
    """Log-probabilities ``[tokens, vocab]`` by transformers, one pass per token."""
    rows = []
    for prompt, answer in asked:
        out = network(torch.tensor([prompt]), use_cache=True)  # type: ignore[operator]
        rows.append(out.logits[0, -1])
        for token in answer[:-1]:
            out = network(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)  # type: ignore[operator]
            rows.append(out.logits[0, -1])
    return torch.stack(rows).float().log_softmax(-1)


def by_engine(engine: Engine, asked: Sequence[Text]) -> Tensor:
    """The same by our standard decoding."""
    rows = []
    for prompt, answer in asked:
        target = engine.make_target(Standard())
        rows.append(target.prefill(prompt)[-1])
        for token in answer[:-1]:
            rows.append(target.verify(token, Draft())[0])
            target.keep([0])
    return torch.stack(rows).log_softmax(-1)


@click.command(help=__doc__.splitlines()[0])
@click.option("--tokens", default=104, show_default=True)
def main(tokens: int) -> None:
    source = resolve("smollm2-135m")
    exact, tokenizer = load_model(source, "cpu", torch.float32)
    asked = texts(exact, tokenizer, tokens)
    want = by_library(exact, asked)
    os.environ[NO_COMPILER] = NO_LAYERS
    engine = load("smollm2-135m", "none", "cpu", "bfloat16")
    ways = {"the library's": by_library(load_model(source, "cpu", torch.bfloat16)[0], asked)}
    ways["ours"] = by_engine(engine, asked)
    del os.environ[NO_COMPILER]
    engine = load("smollm2-135m", "none", "cpu", "bfloat16")
    engine.refresh(wait=True)
    if engine.info.compiled:
        ways["ours, compiled"] = by_engine(engine, asked)
    print(heading("bfloat16"), end="\n\n| attention | KL to float32 | same choice |\n|---|---|---|\n")
    for name, got in ways.items():
        divergence = (want.exp() * (want - got)).sum(-1).mean()
        same = (want.argmax(-1) == got.argmax(-1)).float().mean()
        print(f"| {name} | {divergence:.5f} | {same:.1%} of {len(want)} |")


if __name__ == "__main__":
    main()
