"""The parameters that streams add to a model, compared with Medusa heads and an early exit; no weights are needed.

python -m scripts.extra_parameters
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from specstream.adapters.card import Card, HeadCard
from specstream.adapters.heads import KINDS
from specstream.adapters.weights import Adapter, base_shape
from specstream.model.introspection import Anatomy

GAMMA, LAYERS, EXIT_RANK, START_RANK, LORA_RANK, PAIR_RANK, HEADS = 4, 6, 8, 64, 16, 64, 4
# From the published config.json of each model.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3.2-1B": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "Mistral-7B-v0.3": (
        "mistral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
}


def model(name: str) -> Anatomy:
    """A published model on the meta device: nothing is downloaded or stored, and nothing can be computed."""
    kind, shape = CONFIGS[name]
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))
    decoder = network.get_decoder()
    return Anatomy(
        model=network,
        decoder=decoder,
        layers=decoder.layers,
        rotaries=(decoder.rotary_emb,),
        tail=(decoder.norm,),
        head=network.get_output_embeddings(),
        hidden_size=network.config.hidden_size,
        layer_types=("full_attention",) * len(decoder.layers),
        window=None,
        mask_by_type=False,
        softcap=None,
    )


def streams(anatomy: Anatomy, **shape: Any) -> int:
    """Parameters of an adapter with streams initialised as copies of the main stream, plus what ``shape`` adds."""
    card = Card("", base_shape(anatomy), "", "shared", GAMMA, LAYERS, start_rank=0, lora_rank=0, lora_scale=1.0)
    with torch.device("meta"):
        return Adapter(anatomy, replace(card, **shape)).parameter_count()


def medusa_formula(hidden: int, vocabulary: int, heads: int = HEADS) -> int:
    """The paper's count for Medusa: per head, a square linear layer and a projection to the vocabulary, no biases.

    With ``vocabulary`` 0 the heads share the model's own projection.
    """
    return heads * (hidden * hidden + hidden * vocabulary)


def medusa_built(hidden: int, vocabulary: int, heads: int = HEADS) -> int:
    """The same heads as Medusa's authors define them, where the square layer has a bias."""

    def head() -> list[nn.Module]:
        return [nn.Linear(hidden, hidden), *([nn.Linear(hidden, vocabulary, bias=False)] if vocabulary else [])]

    with torch.device("meta"):
        parts = nn.ModuleList(part for _ in range(heads) for part in head())
    return sum(p.numel() for p in parts.parameters())


def heads(anatomy: Anatomy, kind: str, **shape: Any) -> int:
    """Parameters of this project's heads of a kind, which share the model's projection unless ``shape`` says
    otherwise."""
    with torch.device("meta"):
        return KINDS[kind](anatomy, HeadCard(kind, **shape)).parameter_count()


ROWS: dict[tuple[str, str], Callable[[Anatomy, int, int], int]] = {
    ("base model", ""): lambda a, h, v: sum(p.numel() for p in a.model.parameters()),
    (f"{GAMMA} streams", "γh"): lambda a, h, v: streams(a),
    (f"and early exit of rank {EXIT_RANK} (the paper's count)", "γh + 2·8h"): lambda a, h, v: streams(
        a, exit_rank=EXIT_RANK
    ),
    (f"{GAMMA} streams with a start map of rank {START_RANK}", "γh + (1 + γ)·64h"): lambda a, h, v: streams(
        a, start_rank=START_RANK
    ),
    (f"and a pair map of rank {PAIR_RANK}", "γ + γh + (3 + γ)·64h"): lambda a, h, v: streams(
        a, start_rank=START_RANK, pair_rank=PAIR_RANK
    ),
    (f"and LoRA of rank {LORA_RANK} on the top {LAYERS} layers (lossless)", ""): lambda a, h, v: streams(
        a, start_rank=START_RANK, pair_rank=PAIR_RANK, lora_rank=LORA_RANK, mode="lossless"
    ),
    (f"or LoRA of rank {LORA_RANK} on every layer (shared)", ""): lambda a, h, v: streams(
        a, start_rank=START_RANK, pair_rank=PAIR_RANK, lora_rank=LORA_RANK
    ),
    (f"Medusa, {HEADS} heads", "4(h² + hv)"): lambda a, h, v: medusa_formula(h, v),
    ("as built, with biases", "4(h² + h + hv)"): lambda a, h, v: medusa_built(h, v),
    (f"Medusa, {HEADS} heads over the model's own projection", "4h²"): lambda a, h, v: medusa_formula(h, 0),
    ("as built over it, with biases", "4(h² + h)"): lambda a, h, v: heads(a, "medusa", count=HEADS),
    ("Early exit that drafts, with a full map", "2h²"): lambda a, h, v: heads(a, "exit", layers=LAYERS, rank=h),
}


def table() -> Iterator[str]:
    """Lines of a Markdown table: one row per drafting method, one column per model."""
    models = {name: model(name) for name in CONFIGS}
    yield f"| extra parameters | formula | {' | '.join(models)} |"
    yield "|---|---|" + "---|" * len(models)
    for (label, formula), count in ROWS.items():
        cells = [f"{count(a, a.hidden_size, a.model.config.vocab_size):,}" for a in models.values()]
        yield f"| {label} | {formula} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
