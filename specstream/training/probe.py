"""Tokens per step by real decoding, during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specstream.decoding.detokenize import TextStream
from specstream.decoding.encode import Tokenizer
from specstream.decoding.loop import Run, decode
from specstream.decoding.sampling import Picker
from specstream.events import Step
from specstream.params import Sampling
from specstream.training.trainable import Trainee

BUDGET = 32  # nodes, as in the adapters' cards
TOKENS = 64


def tokens_per_step(trainee: Trainee, tokenizer: Tokenizer, prompts: Iterable[Sequence[int]]) -> float:
    """Tokens per step of greedy decoding, without the prompt pass and its token. NaN if nothing was decoded."""
    tokens = steps = 0
    eos = {i for i in (tokenizer.eos_token_id,) if i is not None}
    for prompt in prompts:
        ids = list(prompt)
        target, drafter = trainee.lane(ids, BUDGET)
        picker = Picker(Sampling(max_new_tokens=TOKENS))
        run = Run(target, drafter, picker, TextStream(tokenizer), ids, eos, str)
        with trainee.tuned():
            events = [e for e in decode(run, lambda: False) if isinstance(e, Step)]
        steps += len(events) - 1
        tokens += sum(len(e.tokens) for e in events[1:])
    return tokens / steps if steps else float("nan")
