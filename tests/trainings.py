"""Shared by the training tests: a tiny model as a user's folder, rows for it, and a finished training run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from specstream.training.jobs import Plan, Record


def save_model(folder: Path) -> Path:
    """A tiny random model with the smallest tokenizer that has an end of text: words that are numbers."""
    from transformers import PreTrainedTokenizerFast

    from tests import tiny

    tiny.tiny("llama").save_pretrained(folder)
    rules: dict[str, Any] = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    words = {str(i): i for i in range(tiny.VOCAB)}
    rules["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "0"}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    tokens = {"eos_token": "2", "bos_token": "1", "pad_token": "0"}
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens).save_pretrained(folder)
    return folder


def rows(count: int) -> str:
    """Rows of the task sql whose answers count on from the question."""
    lines = []
    for i in range(count):
        answer = " ".join(str(3 + (i + k) % 90) for k in range(1, 9))
        lines.append(json.dumps({"question": str(3 + i % 90), "context": f"{20 + i % 11} {30 + i}", "answer": answer}))
    return "\n".join(lines) + "\n"


def events(steps: int, stopped: bool = False) -> list[dict[str, Any]]:
    """The output of a training run of so many steps, one second each."""
    found: list[dict[str, Any]] = [{"kind": "begin", "step": 0, "seconds": 0, "rows": 900, "held_out": 32}]
    for step in range(1, steps + 1):
        losses = [2 + 7 / step, *(3 + j + 6 / step for j in range(4))]
        share = step / steps * (0.5 if stopped else 1)
        found.append({"kind": "step", "step": step, "seconds": step, "fraction": share, "losses": losses,
                      "memory": 2_100_000_000})  # fmt: skip
        if step % 5 == 0:
            look = {"kind": "validation", "step": step, "seconds": step, "losses": [x + 0.2 for x in losses]}
            found.append(look | {"tokens_per_step": 1 + step / steps})
    return [*found, {"kind": "end", "stopped": stopped}]


def put_training(root: Path, name: str, stopped: bool = False, owner: str = "me", **plan: Any) -> Path:
    """A finished training run, as its process leaves it."""
    folder = root / name
    folder.mkdir(parents=True)
    given = {"model": "smollm2-135m", "task": "sql", "mode": "shared", "data": "mine.jsonl", "minutes": 5.0} | plan
    Record(Plan(name, owner=owner, options={"hold_out": 32}, **given), "2026-01-02T03:04:05.000+00:00").write(folder)
    begun = time.time()
    lines = (json.dumps(event | {"time": begun + at}) + "\n" for at, event in enumerate(events(20, stopped)))
    (folder / "progress.jsonl").write_text("".join(lines))
    card = {"base": given["model"], "gamma": 4, "layers": 6, "licence": "CC BY 4.0", "command": "python -m specstream"}
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "adapter.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Streams for questions\n")
    return folder
