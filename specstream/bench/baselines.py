"""Baselines from transformers: the same prompts through its own ``generate``, which is not our code.

They run on a copy of the stock model, as the library loads it, without our packed weights. If an adapter tuned the
model, the copy has the tuned weights too, so that both write the same text.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from specstream.adapters.find import find_adapter
from specstream.bench.tables import REFERENCES
from specstream.decoding.detokenize import TextStream
from specstream.decoding.sampling import Picker
from specstream.engine import Engine
from specstream.events import Draft, Event, Finished, Origin, Reason, Started, Step, Token
from specstream.model import devices
from specstream.model.cpu_linear import round_weights
from specstream.params import Sampling
from specstream.target import loading
from specstream.target.draft_model import NONE
from specstream.target.model_target import synchronize

LOOKUP_TOKENS = 10  # recommended by the method's author
NEVER = 2**31 - 1  # an end-of-text id that no token has; without one, the model's own would be used


class ReferenceUnavailable(ValueError):
    """A baseline can't run here; the message says why."""


class Times(BaseStreamer):
    """Records when tokens arrive: ``generate`` passes the prompt, then the tokens of each pass."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.blocks: list[list[int]] = []
        self.at = [time.perf_counter()]

    def put(self, value: Tensor) -> None:
        if len(self.at) == 1 and not self.blocks:  # the prompt
            self.blocks.append([])
            return
        synchronize(self._device)
        self.blocks.append(value.flatten().tolist())
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is buffered."""


class _Choice(LogitsProcessor):
    """Our choice of token as a logits processor: greedy ``generate`` then makes the same choice, even when sampling."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._picker.scores(scores[0], input_ids[0].tolist())[None].float()


class _StopText(StoppingCriteria):
    """Our stop strings. The library's own check only the last token and miss one inside an accepted draft."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self._text, self._seen = TextStream(tokenizer, stop), start

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        new = input_ids[0, self._seen :].tolist()
        self._seen += len(new)
        return torch.tensor([any([self._text.push(token)[1] for token in new])], device=input_ids.device)


class Reference:
    """A contender that calls ``generate`` with fixed options."""

    ours = False

    def __init__(
        self,
        name: str,
        engine: Engine,
        model: PreTrainedModel,
        settings: dict[str, Any] | None = None,
        extra_parameters: int = 0,
        options: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.name, self.label = name, REFERENCES[name]
        self.settings, self.extra_parameters = settings or {}, extra_parameters
        self._engine, self._model, self._options = engine, model, options

    def run(self, prompt: str, sampling: Sampling) -> list[Event]:
        ids, picker = self._engine.encode(prompt), Picker(sampling)
        inputs = torch.tensor([ids], device=self._model.device)
        eos = [] if sampling.ignore_eos else sorted(self._engine.eos)
        ends = [_StopText(self._engine.tokenizer, sampling.stop, len(ids))] if sampling.stop else []
        times = Times(self._model.device)
        self._model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=min(sampling.max_new_tokens, self._engine.info.context - len(ids)),
            eos_token_id=eos or [NEVER],
            pad_token_id=eos[0] if eos else 0,
            logits_processor=LogitsProcessorList([] if picker.plain else [_Choice(picker)]),
            streamer=times,
            stopping_criteria=StoppingCriteriaList(ends),
            **self._options(),
        )
        text = TextStream(self._engine.tokenizer, sampling.stop)
        return [Started(self.name, len(ids)), *_events(times, text, eos, sampling.max_new_tokens)]


def _events(times: Times, text: TextStream, eos: Sequence[int], limit: int) -> list[Event]:
    """One step per pass. Tokens past the end are cut off, as in our runs; not every generation mode does so."""
    out: list[Event] = []
    emitted, reason = 0, None
    for index, block in enumerate(times.blocks[1:]):
        tokens = []
        for token in block if reason is None else []:
            shown, stopped = text.push(token)
            tokens.append(Token(token, shown, Origin.TARGET))
            emitted += 1
            reason = _reason(token in eos, stopped, emitted >= limit)
            if reason:
                break
        seconds = times.at[index + 1] - times.at[index]
        out.append(Step(index, Draft(), tuple(tokens), {"verify": seconds}, rows=0))
    tail = "" if reason is Reason.STOP_STRING else text.flush()
    return [*out, Finished(reason or Reason.CONTEXT, tail=tail)]


def _reason(ended: bool, stopped: bool, full: bool) -> Reason | None:
    if ended:
        return Reason.EOS
    return Reason.STOP_STRING if stopped else Reason.LENGTH if full else None


def references(names: Sequence[str], engine: Engine, adapter: str, assistant: str | None) -> list[Reference]:
    """The named baselines on a stock copy of the engine's model, which is loaded once.

    ``assistant`` None means the engine's draft model, loaded again as transformers loads it. Raises
    ReferenceUnavailable.
    """
    if not names:
        return []
    if assistant is None and (draft := engine.info.draft_model) not in NONE:
        assistant = draft
    if "hf-assistant" in names and not assistant:
        raise ReferenceUnavailable("The method hf-assistant needs a second model: give --draft-model or --assistant.")
    if engine.info.model == "toy":
        raise ReferenceUnavailable("The toy model is not a transformers model: transformers' methods can't run on it.")
    if engine.info.dtype == "int8":
        raise ReferenceUnavailable("transformers has no such int8, so it writes other texts: choose another dtype.")
    model = stock(engine.info.model, adapter, engine.info.device, engine.info.dtype)
    return [_reference(name, engine, model, assistant) for name in names]


def stock(name: str, adapter: str, device: str, dtype: str) -> PreTrainedModel:
    """The model as transformers loads it, with the weights that the adapter tuned.

    If ours has float16 weights with float32 arithmetic, this one has the same rounded weights, stored in float32.
    """
    kind, half = devices.loaded_in(getattr(torch, dtype), device)
    network, _, _ = loading.fetch(name, device, kind)
    folder = find_adapter(adapter, name)
    if folder or half:
        parts = loading.parts_of(network)
        if folder:
            loading.tuned(folder, parts)
        if half:
            round_weights(parts)
    return network


def _reference(name: str, engine: Engine, model: PreTrainedModel, assistant: str | None) -> Reference:
    if name == "hf":
        return Reference(name, engine, model)
    if name == "hf-prompt-lookup":
        settings = {"prompt_lookup_num_tokens": LOOKUP_TOKENS}
        return Reference(name, engine, model, settings, options=lambda: settings)
    info = engine.info
    kind, _ = devices.loaded_in(getattr(torch, info.dtype), info.device)
    helper, tokenizer, _ = loading.fetch(str(assistant), info.device, kind)
    fresh = copy.deepcopy(helper.generation_config)
    own: PreTrainedTokenizerBase = engine.tokenizer  # the toy model has no references
    same = tokenizer.get_vocab() == own.get_vocab()
    both = {} if same else {"tokenizer": own, "assistant_tokenizer": tokenizer}

    def options() -> dict[str, Any]:
        helper.generation_config = copy.deepcopy(fresh)  # a run adapts its settings, which the next would inherit
        return {"assistant_model": helper} | both

    count = sum(p.numel() for p in helper.parameters())
    return Reference(name, engine, model, {"assistant": assistant}, count, options)
