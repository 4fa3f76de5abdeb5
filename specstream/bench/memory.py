"""The memory of one method, measured in a new process that loads only what the method needs.

``python -m specstream.bench.memory`` reads a MemoryRequest from standard input and writes its result, both as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specstream.adapters.card import WEIGHTS, Card, read_card, write_card
from specstream.adapters.find import find_adapter
from specstream.adapters.heads import EXIT, MEDUSA
from specstream.installation import environment, python
from specstream.params import DraftModel, EarlyExit, Medusa, Sampling, Streaming, method

PROMPTS = 3  # the shortest, the medium and the longest one
HEADS = {Medusa.name: MEDUSA, EarlyExit.name: EXIT}
LIMIT = 1800  # seconds for one method


class NotMeasured(ValueError):
    """The process of a method failed; the message says why in one sentence."""


@dataclass(frozen=True)
class MemoryRequest:
    """What a process loads and runs. ``method`` and ``sampling`` are the results of their ``to_dict``."""

    model: str
    adapter: str
    device: str
    dtype: str
    draft_model: str
    name: str
    method: dict[str, Any]
    sampling: dict[str, Any]
    prompts: Sequence[str]


def picked(prompts: Sequence[str]) -> list[str]:
    """A few prompts, from the shortest to the longest, so that a method reaches its peak."""
    ranked = sorted(prompts, key=len)
    return list(dict.fromkeys(ranked[round(i * (len(ranked) - 1) / (PROMPTS - 1))] for i in range(PROMPTS)))


def measured(request: MemoryRequest) -> dict[str, int]:
    """Measure in a new process. In bytes: ``load_memory`` until the model is ready, ``peak_memory`` during the runs.

    Raises NotMeasured.
    """
    said = json.dumps(asdict(request))
    try:
        done = subprocess.run(
            python("specstream.bench.memory"),
            input=said,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"The memory of {request.name} was not measured within {LIMIT} seconds.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        raise NotMeasured(f"The memory of {request.name} could not be measured: {last}")
    out: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return out


def measure(request: MemoryRequest) -> dict[str, int]:
    """Measure in this process, which should have done nothing else."""
    from specstream.bench.provenance import PeakMemory
    from specstream.engine import load
    from specstream.model.devices import choose_device

    memory = PeakMemory(choose_device(request.device)[0])
    memory.start()
    with tempfile.TemporaryDirectory() as folder:
        adapter = reduced(request.adapter, request.model, request.name, Path(folder))
        draft = request.draft_model if request.name == DraftModel.name else "none"
        engine = load(request.model, adapter, request.device, request.dtype, draft=draft)
    engine.refresh(wait=True)
    loading = memory.read()
    memory.start()
    for prompt in request.prompts:
        for _ in engine.generate(prompt, method(request.name, **request.method), Sampling(**request.sampling)):
            pass
    return {"load_memory": loading, "peak_memory": memory.read()}


def reduced(adapter: str, model: str, name: str, folder: Path) -> str:
    """Write to ``folder`` an adapter with only the parts of ``adapter`` that a method needs. Returns the folder, or
    "none" if there are no such parts.

    Every method uses the weights that the adapter tuned; streams and heads only the method that drafts with them.
    """
    source = find_adapter(adapter, model)
    if source is None:
        return "none"
    card = read_card(source)
    kept = {kind: head for kind, head in card.heads.items() if kind == HEADS.get(name)}
    if name != Streaming.name:
        card = _without_streams(source, card, folder)
    else:
        (folder / WEIGHTS).symlink_to((source / WEIGHTS).resolve())
    if not (card.gamma or card.lora_rank or kept):
        return "none"
    for head in kept.values():
        (folder / head.file).symlink_to((source / head.file).resolve())
    write_card(folder, replace(card, heads=kept))
    return str(folder)


def _without_streams(source: Path, card: Card, folder: Path) -> Card:
    """Write the LoRA that tuned the model as a separate adapter. Returns its card."""
    from safetensors.torch import load_file, save_file

    prefix = "main." if card.mode == "lossless" else "lora."
    rank, scale = card.tuning
    weights = load_file(source / WEIGHTS)
    own = {"lora." + name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    save_file(own if rank else {}, folder / WEIGHTS)
    plain = replace(card, mode="plain", gamma=0, lora_rank=rank, lora_scale=scale, main_rank=0)
    return replace(plain, exit_rank=0, draft_vocabulary=0, value_rotation=0.0, pair_rank=0)


def main() -> None:
    try:
        print(json.dumps(measure(MemoryRequest(**json.load(sys.stdin)))))
    except Exception as error:  # one line for the calling process
        raise SystemExit(" ".join(str(error).split()) or type(error).__name__) from None


if __name__ == "__main__":
    main()
