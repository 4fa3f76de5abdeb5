"""The effect of each number format: distance of the model from float32, quality of its texts, tokens per step.

python -m scripts.quality_of_formats --data DIR [--limit 20] [--distances 12] [--tokens 48] [--tasks e2e,sql]

Formats that this processor lacks are left out. DIR holds TASK/dev.jsonl with the held-out rows of each task. Distances
are the mean KL divergence, in nats, from float32's distributions to the format's, on float32's own greedy answers to
the chat prompts, and the share of tokens on which both agree. Texts are those of standard decoding; streaming writes
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch
from torch import Tensor

from scripts.formats import available
from specstream import engine
from specstream.bench import evaluation
from specstream.bench.provenance import heading
from specstream.data.datasets import task_rows
from specstream.data.tasks import task
from specstream.params import Sampling, Standard, Streaming
from specstream.session import token_ids

MODEL = "smollm2-135m"
Text = tuple[list[int], int]  # tokens, and the index at which the answer begins


def texts_of(loaded: engine.Engine, questions: Sequence[str], tokens: int) -> list[Text]:
    """The greedy answers of a model to chat questions, of at most ``tokens`` tokens."""
    texts = []
    for question in questions:
        prompt = loaded.prompt("chat", question)
        answer = token_ids(list(loaded.generate(prompt, Standard(), Sampling(max_new_tokens=tokens))))
        ids = loaded.encode(prompt)
        texts.append(([*ids, *answer], len(ids)))
    return texts


def distances(exact: engine.Engine, other: engine.Engine, texts: Sequence[Text]) -> tuple[float, float]:
    """Mean KL divergence in nats from ``exact`` to ``other``, and the share of tokens on which both agree."""
    pairs = [(_answer_logits(exact, text), _answer_logits(other, text)) for text in texts]
    p, q = (torch.cat(parts).double().log_softmax(-1) for parts in zip(*pairs, strict=True))
    return float((p.exp() * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).double().mean())


@torch.inference_mode()
def _answer_logits(loaded: engine.Engine, text: Text) -> Tensor:
    """Logits ``[tokens, vocab]`` for the tokens of the answer."""
    ids, start = text
    model = loaded.make_target(Standard()).anatomy.model
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1].float()


def evaluated(loaded: engine.Engine, name: str, data: Path, limit: int) -> list[str]:
    """The cells of a table row: the quality of a task's texts, and tokens per step of streaming."""
    items = evaluation.read_items(loaded, str(data / name / "dev.jsonl"), "", task(name), limit)
    results = [
        evaluation.evaluate(loaded, items, name, method, Sampling(max_new_tokens=128))
        for method in (Standard(), Streaming())
    ]
    same = evaluation.compare(*results)["same_texts"]
    scores = ", ".join(f"{evaluation.NAMES[n]} {v['mean']:.1f}" for n, v in (results[0]["quality"] or {}).items())
    return [scores or "no references", f"{results[1]['tokens_per_step']:.2f}", f"{same} of {len(items)}"]


@click.command(help=__doc__.splitlines()[0])
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--limit", default=20, show_default=True, help="Held-out prompts of each task.")
@click.option("--distances", "prompts", default=12, show_default=True, help="Prompts for the distances; 0: none.")
@click.option("--tokens", default=48, show_default=True, help="Length of their answers.")
@click.option("--tasks", default="e2e,sql", show_default=True)
@click.option("--formats", default="bfloat16,int8", show_default=True)
def main(data: Path, limit: int, prompts: int, tokens: int, tasks: str, formats: str) -> None:
    chosen = available(formats.split(","))
    print(heading(MODEL, f"{torch.get_num_threads()} threads"))
    if prompts:
        exact = engine.load(MODEL, "none", device="cpu", dtype="float32")
        rows = task_rows(str(data / "chat" / "dev.jsonl"), "", task("chat"), prompts, answers=False)
        texts = texts_of(exact, [str(row.columns["prompt"]) for row in rows], tokens)
        print("| format | KL to float32, nats | same choice |\n|---|---|---|")
        for dtype in chosen:
            far, same = distances(exact, engine.load(MODEL, "none", device="cpu", dtype=dtype), texts)
            print(f"| {dtype} | {far:.4f} | {same:.1%} |", flush=True)
    print("\n| task | format | quality | tokens per step | same text streamed |\n|---|---|---|---|---|")
    for name in filter(None, tasks.split(",")):
        for dtype in chosen:
            cells = evaluated(engine.load(MODEL, name, device="cpu", dtype=dtype), name, data, limit)
            print(f"| {' | '.join([name, dtype, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
