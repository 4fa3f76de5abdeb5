"""Tiny random models of real architectures, and helpers of the engine tests. No downloads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from specstream.adapters.card import Card
from specstream.adapters.weights import Adapter, base_shape
from specstream.decoding.detokenize import TextStream
from specstream.decoding.drafters.standard import StandardDrafter
from specstream.decoding.drafters.streaming import StreamingDrafter
from specstream.decoding.interfaces import Drafter
from specstream.decoding.loop import Run, decode
from specstream.decoding.sampling import Picker
from specstream.events import Step
from specstream.model.introspection import Anatomy, dissect
from specstream.params import NODES, Sampling, Streaming
from specstream.target.model_target import ModelTarget, Variant

# Where the models of the engine's tests are: SPECSTREAM_TEST_DEVICE=cuda runs these tests on a GPU.
DEVICE = os.environ.get("SPECSTREAM_TEST_DEVICE", "cpu")
VOCAB = 120
WINDOW = 8
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention"] * 2
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": WINDOW}),
    "phi3-window": ("phi3", {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": WINDOW}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED}),
    "cohere": ("cohere", {"logit_scale": 0.8}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
}
PLAIN_ONLY = {
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}),
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
}


def tiny(family: str, seed: int = 0) -> Any:
    """A random model with clear argmaxes: the default initialisation gives nearly flat logits and hides errors."""
    kind, extra = FAMILIES.get(family) or PLAIN_ONLY[family]
    base = (
        LLAMA
        if family in FAMILIES
        else {k: LLAMA[k] for k in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **base | extra))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.6 if "embed" in name or "wte" in name else 0.15)
    model.generation_config.eos_token_id = None  # runs end where a test says so
    return model.eval().to(DEVICE)


def random_adapter(
    anatomy: Anatomy,
    gamma: int = 3,
    layers: int = 2,
    mode: str = "shared",
    seed: int = 1,
    exit_rank: int = 0,
    pair_rank: int = 0,
) -> Adapter:
    """An adapter with large random weights. In shared mode its LoRA is merged into the model at once."""
    torch.manual_seed(seed)
    shape = base_shape(anatomy)
    ranks = {"lora_rank": 2, "exit_rank": exit_rank, "pair_rank": pair_rank}
    card = Card("tiny", shape, "e2e", mode, gamma, layers, 4, lora_scale=1.0, **ranks)
    adapter = Adapter(anatomy, card).eval().to(DEVICE)
    for weight in adapter.parameters():
        nn.init.normal_(weight, std=0.1)
    if mode == "shared" and adapter.lora:
        adapter.lora.merge(anatomy)
    return adapter


def model_with_adapter(
    family: str, gamma: int = 3, layers: int = 2, mode: str = "shared", exit_rank: int = 0, pair_rank: int = 0
) -> tuple[Anatomy, Adapter]:
    anatomy = dissect(tiny(family))
    return anatomy, random_adapter(anatomy, gamma, layers, mode, exit_rank=exit_rank, pair_rank=pair_rank)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class NumberTokenizer:
    """Every token is its number and a space."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(f"{i} " for i in ids)


def new_run(target: Any, drafter: Drafter, ids: list[int], sampling: Sampling, eos: Sequence[int] = ()) -> Run:
    return Run(target, drafter, Picker(sampling), TextStream(NumberTokenizer(), sampling.stop), list(ids), eos, str)


def streaming_run(
    anatomy: Anatomy,
    adapter: Adapter,
    ids: list[int],
    sampling: Sampling,
    params: Streaming | None = None,
    eos: Sequence[int] = (),
) -> Run:
    """Without pauses and with full trees unless ``params`` say so: random streams gain nothing, and hardly draft."""
    params = (params or Streaming(streams="in-pass")).on(anatomy.device.type)
    params = replace(params, budget=params.budget or NODES)
    target = ModelTarget(anatomy, adapter, Variant.of(params))
    params = replace(params, pause=0) if params.pause == Streaming().pause else params
    run = new_run(target, None, ids, sampling, eos)
    run.drafter = StreamingDrafter(target, params, run.ids)
    return run


def standard_run(anatomy: Anatomy, ids: list[int], sampling: Sampling, eos: Sequence[int] = ()) -> Run:
    return new_run(ModelTarget(anatomy), StandardDrafter(), ids, sampling, eos)


def finish(run: Run, check: Callable[[Run, Step], None] | None = None) -> list[Step]:
    """All steps of a run; ``check`` sees the run after each."""
    return list(_steps(run, check))


def _steps(run: Run, check: Callable[[Run, Step], None] | None) -> Iterator[Step]:
    with closing(decode(run, lambda: False)) as events:
        for event in events:
            if isinstance(event, Step):
                if check:
                    check(run, event)
                yield event


def ids_of(steps: Sequence[Step]) -> list[int]:
    return [t.id for s in steps for t in s.tokens]


class _Choice(LogitsProcessor):
    """Our choice of token as a logits processor, so that greedy ``generate`` makes the same choice."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._picker.scores(scores[0], input_ids[0].tolist())[None].float().to(scores.device)


def generate_ids(model: Any, ids: list[int], sampling: Sampling, eos: int | None = None) -> list[int]:
    """What transformers' own ``generate`` gives, with our sampling plugged in as a logits processor."""
    out = model.generate(
        input_ids=torch.tensor([ids], device=model.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
        do_sample=False,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([_Choice(Picker(sampling))]),
    )
    return out[0, len(ids) :].tolist()


def save(model: Any, folder: Path, **options: Any) -> None:
    """A model with the smallest tokenizer there is: words that are numbers."""
    model.save_pretrained(folder, **options)
    words = {str(i): i for i in range(VOCAB)}
    rules = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    rules["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "0"}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)
