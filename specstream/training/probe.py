"""Tokens per step by real decoding, in the middle of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from specstream.adapters import Adapter
from specstream.anatomy import Anatomy
from specstream.drafters.streaming import StreamingDrafter
from specstream.events import Step
from specstream.loop import Run, decode
from specstream.params import Sampling, Streaming
from specstream.sampling import Picker
from specstream.target import ModelTarget
from specstream.text import TextStream

BUDGET = 32  # nodes, as in the adapters' cards
TOKENS = 64


def tokens_per_step(anatomy: Anatomy, adapter: Adapter, tokenizer: Any, prompts: Iterable[Sequence[int]]) -> float:
    """Greedy decoding of prompts: tokens after the first by passes after the prompt's. NaN when nothing was decoded."""
    tokens = steps = 0
    shared = adapter.main_lora
    for prompt in prompts:
        target = ModelTarget(anatomy, adapter, streaming=True)
        drafter = StreamingDrafter(target, Streaming(budget=BUDGET))
        picker = Picker(Sampling(max_new_tokens=TOKENS))
        run = Run(target, drafter, picker, TextStream(tokenizer, ()), list(prompt), {tokenizer.eos_token_id}, str)
        with shared.attached(anatomy) if shared else nullcontext():
            events = [e for e in decode(run, lambda: False) if isinstance(e, Step)]
        steps += len(events) - 1
        tokens += sum(len(e.tokens) for e in events[1:])
    return tokens / steps if steps else float("nan")
