"""Our decoding inside transformers: ``model.generate(**inputs, custom_generate=decoder(model))``.

The settings are those of ``generate``: its generation config, logits processors and stopping criteria are applied at
every position, as in its own loop, so greedy decoding gives the same tokens. In half precision, where two candidates
may tie within rounding error, the tokens are those of our standard decoding, whatever the drafter. Sampling uses the
same distribution with other random numbers; ``torch.manual_seed`` makes it repeatable.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from specstream.adapters.heads import Heads
from specstream.adapters.weights import Adapter
from specstream.decoding.drafters.registry import make_drafter
from specstream.decoding.encode import too_long
from specstream.decoding.loop import Run, decode
from specstream.decoding.sampling import Picker
from specstream.events import Reason, Step
from specstream.model.attention import using
from specstream.model.introspection import Anatomy, UnsupportedModel
from specstream.params import DraftModel, Method, PromptLookup, Sampling, Streaming
from specstream.target import loading
from specstream.target.draft_model import usable
from specstream.target.model_target import ModelTarget, Variant

# These keep state between calls, and would see tokens that are only drafted.
STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)
NO_SECOND = "The method draft_model needs a second model: give it as draft_model."
TRAINING = "It is in training mode, where dropout changes its numbers: call model.eval() first."
EXTRAS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class NotSupported(ValueError):
    """``generate`` was asked for something that this decoding does not support; the message is one sentence."""


@dataclass(frozen=True)
class Processed(Picker):
    """Chooses with the processors that ``generate`` prepared. When sampling, the noise depends on seed and position."""

    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    sample: bool = False

    @property
    def greedy(self) -> bool:
        return not self.sample

    @property
    def plain(self) -> bool:
        return not self.sample and not self.processors

    def warped(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        ids = torch.tensor([list(prefix)], device=logits.device)
        scores = logits.to(torch.float32, copy=True)  # a processor may work in place
        return self.processors(ids, scores[None])[0]


class Silent:
    """A text stream without text: ``generate`` returns token ids."""

    def push(self, token: int) -> tuple[str, bool]:
        return "", False

    def flush(self) -> str:
        return ""


@dataclass
class HostedRun(Run):
    """A run that ends when transformers' stopping criteria say so, or at the end of the model's context."""

    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)
    longest: int = 0

    def _most(self) -> int:
        return self.longest

    def _end(self, token: int, stopped: bool) -> Reason | None:
        if bool(self.criteria(torch.tensor([self.ids]), None).any()):
            return Reason.LENGTH if len(self.ids) >= self.longest else Reason.EOS
        return Reason.CONTEXT if len(self.ids) >= self.target.context else None


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to verify drafts, with its drafting parts."""

    parts: Anatomy
    adapter: Adapter | None
    heads: Heads
    second: Anatomy | None
    method: Method
    attention: str

    def run(self, ids: list[int], picker: Picker, criteria: StoppingCriteriaList, longest: int) -> HostedRun:
        """A run from a prompt's tokens, to which it appends."""
        streams = Variant.of(self.method) if isinstance(self.method, Streaming) else None
        target = ModelTarget(self.parts, self.adapter, streams, self.heads)
        second = ModelTarget(self.second) if self.second else None
        return HostedRun(
            target=target,
            drafter=make_drafter(self.method, target, ids, picker, second),
            picker=picker,
            text=Silent(),  # type: ignore[arg-type]
            ids=ids,
            eos=(),
            show=str,
            criteria=criteria,
            longest=longest,
        )


def decoder(
    model: PreTrainedModel,
    adapter: str | os.PathLike[str] | None = None,
    method: Method | None = None,
    streamer: BaseStreamer | None = None,
    draft_model: PreTrainedModel | None = None,
) -> Callable[..., Any]:
    """The ``custom_generate`` argument for ``model.generate``: create it once per model and reuse it.

    ``adapter`` is the folder of an adapter for the model, with streams or heads; weights that it tuned are merged into
    the model here, so the model's own output changes too. ``draft_model`` is a second transformers model with the same
    tokenizer. ``method`` defaults to Speculative Streaming if there are streams, else to the draft model if given, else
    to prompt lookup. ``streamer`` is given here because transformers does not pass ``generate(streamer=...)`` on to
    functions; nor does it pass ``assistant_model``, nor the ``tokenizer`` that ``stop_strings`` needs: give a
    ``StopStringCriteria`` among the ``stopping_criteria`` instead. Raises ValueError for a model that can't verify
    draft trees.
    """
    prepared = _prepare(model, Path(adapter) if adapter else None, method, draft_model)

    def generate(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        if model is not prepared.parts.model:
            raise NotSupported("This decoder was made for another model: create one for this model.")
        _refuse(input_ids, logits_processor, generation_config, kwargs)
        if input_ids.shape[1] >= prepared.parts.context:
            raise NotSupported(too_long(input_ids.shape[1], prepared.parts.context))
        seed = int(torch.randint(2**31, (1,))) if generation_config.do_sample else 0
        picker = Processed(Sampling(seed=seed), processors=logits_processor, sample=bool(generation_config.do_sample))
        run = prepared.run(input_ids[0].tolist(), picker, stopping_criteria, generation_config.max_length)
        with using(prepared.parts.model, prepared.attention):
            _drive(run, input_ids, streamer, kwargs.get("streamer"))
        _warn_full_context(run)
        out = torch.tensor([run.ids], device=input_ids.device)
        return GenerateDecoderOnlyOutput(sequences=out) if generation_config.return_dict_in_generate else out

    return generate


def _prepare(
    model: PreTrainedModel, folder: Path | None, method: Method | None, draft_model: PreTrainedModel | None
) -> PreparedModel:
    """Merge and test a model. Raises NotSupported, AdapterError or DraftModelError."""
    try:
        parts = loading.parts_of(model)
    except UnsupportedModel as error:
        raise NotSupported(str(error)) from error
    loaded, heads = loading.drafting_parts(folder, parts)
    loading.made_ready(parts, loaded, heads)
    loaded = loaded if loaded and loaded.card.gamma else None
    attention, reason = loading.tested(parts, loaded)
    if reason:
        raise NotSupported(f"{reason} {TRAINING}" if model.training else reason)
    second = usable("The given model", draft_model) if draft_model is not None else None
    chosen = method or (Streaming() if loaded else DraftModel() if second else PromptLookup())
    chosen = chosen.on(parts.device.type)
    if chosen.name == DraftModel.name and second is None:
        raise NotSupported(NO_SECOND)
    if lacking := loading.lacking(loaded, heads, second).get(chosen.name):
        raise NotSupported(lacking)
    return PreparedModel(parts, loaded, heads, second, chosen, attention)


def _warn_full_context(run: HostedRun) -> None:
    if run.reason is Reason.CONTEXT:
        end = f"The text ends at {len(run.ids):,} tokens, the model's context"
        warnings.warn(f"{end}, before the requested {run.longest:,}.", stacklevel=3)


def _drive(run: Run, prompt: Tensor, own: BaseStreamer | None, passed: BaseStreamer | None) -> None:
    """Run to the end, passing tokens to a streamer; one passed by ``generate`` has already received the prompt."""
    streamer = own or passed
    if own:
        own.put(prompt.cpu())
    for event in decode(run, lambda: False):
        if streamer and isinstance(event, Step):
            for token in event.tokens:
                streamer.put(torch.tensor([token.id]))
    if streamer:
        streamer.end()


def _refuse(
    input_ids: Tensor, processors: LogitsProcessorList, config: GenerationConfig, kwargs: dict[str, Any]
) -> None:
    """Raise NotSupported for arguments that would otherwise be silently ignored."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise NotSupported(f"Only greedy decoding and sampling are possible, not {mode.value.replace('_', ' ')}.")
    if input_ids.shape[0] != 1 or config.num_return_sequences not in (None, 1):
        raise NotSupported("Speculative decoding supports one sequence only: call generate once for each prompt.")
    if not input_ids.shape[1] or kwargs.get("inputs_embeds") is not None:
        raise NotSupported("Give the prompt as input_ids, with one token at least.")
    if wanted := [name for name in EXTRAS if getattr(config, name, None)]:
        raise NotSupported(f"{wanted[0]} is not available: the tokens of a step come from one pass over a tree.")
    if state := [p for p in processors if isinstance(p, STATEFUL)]:
        raise NotSupported(f"{type(state[0]).__name__} can't judge drafted tokens: leave its setting out.")
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if mask is not None and not bool(mask.all()):
        raise NotSupported("Padding is not supported: give the prompt without it.")
    positions = kwargs.get("position_ids")
    if positions is not None and positions.flatten().tolist() != list(range(input_ids.shape[1])):
        raise NotSupported("Tokens are counted from 0 here: leave position_ids out.")
    if config.cache_implementation or (cache is not None and cache.get_seq_length()):
        raise NotSupported("This decoding uses its own cache: leave past_key_values and cache_implementation out.")
