"""The model card of an adapter: README.md, with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from specstream.adapters.card import Card
from specstream.hub.catalogue import catalogue
from specstream.info import top_layers

FILE = "README.md"
LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc0-1.0",
}
MODES = {
    "shared": "the model is fine-tuned with LoRA, together with its streams",
    "lossless": "LoRA acts on the stream rows only: the model's output never changes",
    "plain": "the model is fine-tuned with LoRA, without streams",
}
METRICS = {
    "losses": "loss on held-out rows: main stream, then each stream",
    "hits": "top-1 accuracy on held-out rows: main stream, then each stream",
    "tokens_per_step": "tokens per step",
    "losses of medusa": "loss on held-out rows: main stream, then each Medusa head",
    "hits of medusa": "top-1 accuracy on held-out rows: main stream, then each Medusa head",
    "tokens_per_step of medusa": "tokens per step with Medusa heads",
    "losses of exit": "loss on held-out rows: main stream, then the early exit that drafts",
    "hits of exit": "top-1 accuracy on held-out rows: main stream, then the early exit that drafts",
    "tokens_per_step of exit": "tokens per step with the early exit",
}

PER_STREAM = ("losses", "hits")


def write(folder: Path, card: Card) -> Path:
    """Write README.md into an adapter's folder."""
    file = folder / FILE
    file.write_text(text(card), encoding="utf-8")
    return file


def text(card: Card, name: str = "FOLDER") -> str:
    """The model card. ``name`` is the value for ``--adapter``: ``hub:OWNER/NAME``, or the folder."""
    return f"---\n{_front_matter(card)}\n---\n\n" + "\n".join(_body(card, name)) + "\n"


def _front_matter(card: Card) -> str:
    """The YAML that the Hub uses for display, filters and links."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=_base_id(card),
        license=_licence_id(card),
        datasets=re.findall(r"hub:([\w./-]*\w)", card.data) or None,
        tags=["speculative-decoding", "speculative-streaming", card.task, card.mode],
        library_name="specstream",
        pipeline_tag="text-generation",
        base_model_relation="adapter",
    )
    return str(data.to_yaml()).strip()


def _base_id(card: Card) -> str | None:
    """The base's id on the Hub; None for a folder."""
    known = {entry.name: entry.hub_id for entry in catalogue()}
    return known.get(card.base) or (card.base if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", card.base) else None)


def _licence_id(card: Card) -> str:
    """The Hub's name of the licence."""
    name = card.licence.lower().replace(" ", "-")
    return name if name in LICENCES else "other"


def _body(card: Card, name: str) -> Iterator[str]:
    what = "Streams" if card.gamma else "LoRA" if card.lora_rank else "Heads"
    yield f"# {what} for {card.base}: {card.task}"
    yield ""
    yield (
        "Made for [Speculative Streaming](https://arxiv.org/abs/2402.11131), where a model drafts for itself "
        "and verifies its own drafts."
    )
    yield ""
    yield "| | |\n|---|---|"
    yield from (f"| {label} | {_cell(value)} |" for label, value in _facts(card).items() if value not in ("", None))
    yield ""
    yield from _section("Load it", "python", _usage(card, name))
    stages = card.training.get("earlier", [])
    commands = [s["command"] for s in stages] + [card.command, *(head.command for head in card.heads.values())]
    yield from _section("Trained with", "", "\n".join(filter(None, commands)))
    yield from _validations([s["progress"] for s in stages] + [card.training.get("progress", {})])
    yield from _metrics(card)


def _validations(stages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Tokens per step against training time, for validations that decoded."""
    found = [
        (number, v["step"], v["seconds"] / 60, v["tokens_per_step"])
        for number, stage in enumerate(stages, 1)
        for v in stage.get("history", [])
        if "tokens_per_step" in v
    ]
    if len(found) > 1:
        yield "## Validations\n\n| stage | step | minutes | tokens per step |\n|---|---|---|---|"
        yield from (f"| {stage} | {step} | {minutes:.0f} | {rate:.2f} |" for stage, step, minutes, rate in found)
        yield ""


def _metrics(card: Card) -> Iterator[str]:
    metrics = card.metrics | {
        f"{key} of {kind}": value for kind, head in card.heads.items() for key, value in head.metrics.items()
    }
    labels = {k: w + ", then the early exit" * (bool(card.exit_rank) and k in PER_STREAM) for k, w in METRICS.items()}
    if metrics:
        yield "## Metrics\n\n| | |\n|---|---|"
        yield from (f"| {labels.get(key, key)} | {_cell(value)} |" for key, value in metrics.items())


def _facts(card: Card) -> dict[str, Any]:
    base = card.training.get("base") or {}
    streams = {} if card.mode == "plain" else _stream_facts(card)
    return {
        "base model": _base_id(card) or card.base,
        "base weights": base.get("origin"),
        "base revision": base.get("revision"),
        "mode": f"{card.mode}: {MODES[card.mode]}" + (", as it was tuned before" if card.main_rank else ""),
        **streams,
        **_head_facts(card),
        "LoRA rank": card.lora_rank or "no LoRA",
        "tuned before by": f"LoRA of rank {card.main_rank} on all rows, merged on loading" if card.main_rank else None,
        "data": card.data,
        "licence of the data": card.licence,
        "note": card.training.get("note"),
        "date": card.date,
    }


def _stream_facts(card: Card) -> dict[str, Any]:
    return {
        "streams": f"{card.gamma}, in {top_layers(card.layers)}",
        "streams told apart by": f"value rotation, {card.value_rotation}" if card.value_rotation else "embeddings",
        "stream start": f"low rank, {card.start_rank}" if card.start_rank else "identity",
        "early exit": f"rank {card.exit_rank}" if card.exit_rank else "none",
        "pair map": f"rank {card.pair_rank}" if card.pair_rank else "none",
        "draft vocabulary": f"{card.draft_vocabulary:,} tokens" if card.draft_vocabulary else "all tokens",
    }


def _head_facts(card: Card) -> dict[str, Any]:
    """The heads stored beside the adapter, for other drafting methods."""
    out = {}
    if head := card.heads.get("medusa"):
        vocabulary = {"shared": "with the model's own LM head", "own": "each with a projection of its own"}
        out["Medusa heads"] = f"{head.count} Medusa heads, {vocabulary[head.projection]}"
    if head := card.heads.get("exit"):
        out["early exit that drafts"] = f"after layer {head.layers}, rank {head.rank}"
    return out


def _usage(card: Card, name: str) -> str:
    return (
        "import specstream\n\n"
        f'engine = specstream.load("{card.base}", adapter="{name}")\n'
        f'events = engine.generate(engine.prompt("{card.task}", "..."))'
    )


def _section(title: str, language: str, code: str) -> Iterator[str]:
    if code:
        yield f"## {title}\n\n```{language}\n{code}\n```\n"


def _cell(value: Any) -> str:
    """A value as the text of a table cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return " ".join(str(value).split()).replace("|", "\\|")
