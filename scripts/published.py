"""Published models, from their configs only: whether their parts are found, the parameters that streams add, and the
memory needed to decode and to train. Nothing is downloaded.

python -m scripts.published
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scripts.extra_parameters import CONFIGS
from specstream.adapters.card import Card
from specstream.adapters.weights import Adapter, base_shape
from specstream.model import memory
from specstream.model.introspection import Anatomy, dissect
from specstream.training.config import Config

TOKENS, ANSWER = 256, 96  # tokens of a row, and of the response in it
# From the published config.json of each model.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5-0.5B": (
        "qwen2",
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "Qwen3-0.6B": (
        "qwen3",
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "SmolLM2-1.7B": (
        "llama",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
         "num_key_value_heads": 32, "vocab_size": 49152, "tie_word_embeddings": True},
    ),
    "Phi-3-mini": (
        "phi3",
        {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 32, "vocab_size": 32064, "sliding_window": 2047, "tie_word_embeddings": False},
    ),
    "gemma-2-2b": (
        "gemma2",
        {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096,
         "tie_word_embeddings": True},
    ),
    "gemma-3-270m": (
        "gemma3_text",
        {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
         "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
         "tie_word_embeddings": True},
    ),
    "OPT-1.3B": (
        "opt",
        {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
         "vocab_size": 50272, "word_embed_proj_dim": 2048, "tie_word_embeddings": True},
    ),
}  # fmt: skip
ALL = CONFIGS | MORE


def parts(name: str) -> Anatomy:
    """The parts of a model on the meta device."""
    kind, shape = ALL[name]
    with torch.device("meta"):
        return dissect(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)))


def facts(name: str) -> dict[str, int]:
    """The parameters, those that streams add in both modes, and the bytes needed to decode and to train."""
    anatomy, config = parts(name), Config()
    added = {}
    for mode in ("lossless", "shared"):
        shape = {
            n: getattr(config, n) for n in ("gamma", "layers", "start_rank", "lora_rank", "lora_scale", "pair_rank")
        }
        with torch.device("meta"):
            added[mode] = Adapter(anatomy, Card("", base_shape(anatomy), "", mode, **shape)).parameter_count()
    parameters = sum(p.numel() for p in anatomy.model.parameters())
    need = {
        m: memory.to_train(anatomy.model.config, parameters, n, Config(mode=m), TOKENS, ANSWER)
        for m, n in added.items()
    }
    return {
        "parameters": parameters,
        **{f"added, {mode}": count for mode, count in added.items()},
        "decode": 2 * parameters,
        **{f"train, {mode}": count for mode, count in need.items()},
    }


def table() -> Iterator[str]:
    """Lines of a Markdown table, one row per model."""
    yield "| model | parameters | streams add, lossless | shared | weights in bfloat16 | training, lossless | shared |"
    yield "|---|---|---|---|---|---|---|"
    for name in sorted(ALL, key=str.lower):
        found = facts(name)
        counts = [f"{found[n]:,}" for n in ("parameters", "added, lossless", "added, shared")]
        sizes = [memory.gigabytes(found[n]) for n in ("decode", "train, lossless", "train, shared")]
        yield f"| {' | '.join([name, *counts, *sizes])} |"


if __name__ == "__main__":
    print("\n".join(table()))
