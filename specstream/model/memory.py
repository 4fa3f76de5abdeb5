"""Memory: how much a model will need, is free, and is used by this process. Heavy imports are inside functions."""

from __future__ import annotations

import gc
import math
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from specstream.hub import catalogue, download
from specstream.hub.download import ModelError
from specstream.model import devices

STATES = 18  # activations, in multiples of a row's width, that a layer keeps for its gradient, including LoRA's
PROGRAM = 700_000_000  # bytes of Python, PyTorch and transformers


@dataclass(frozen=True)
class Need:
    """The memory of a model in bytes: its weights, and the cache of a text that fills its ``context`` (tokens)."""

    weights: int
    cache: int = 0
    context: int = 0


def need(model: str, device: str = "auto", dtype: str = "auto") -> Need | None:
    """The memory that a model will take on a device: parameters times bytes, and the cache that its config implies.

    None if that is unknown until it is fetched. Raises ModelError for an unknown model, device or dtype.
    """
    where = devices.choose_device(device)[0]
    size = devices.loaded_in(devices.choose_dtype(dtype, where)[0], where)[0].itemsize
    found = catalogue.here(model)
    parameters = _counted(found.path) if found else _listed(model)
    if not parameters:
        return None
    cache, context = _cache(found.path, size) if found else (0, 0)
    return Need(parameters * size, cache, context)


def _counted(folder: Path) -> int:
    """The number of weights in a folder's safetensors files, read from their headers."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def _listed(model: str) -> int:
    """The catalogue's parameter count, else the Hub's if it answers; 0 if neither is known."""
    if entry := catalogue.CATALOGUE.get(model):
        return entry.parameters
    from huggingface_hub import HfApi

    with suppress(Exception):  # the Hub may fail in any way; the estimate is a mere convenience
        found = HfApi().model_info(model, timeout=download.HUB_WAIT, expand=["safetensors"]).safetensors
        return found.total if found else 0
    return 0


def _cache(folder: Path, itemsize: int) -> tuple[int, int]:
    """Bytes of keys and values for a full context, and its number of tokens; zeros if the config does not say."""
    from transformers import AutoConfig

    with suppress(Exception):  # a foreign config may lack anything
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        context = config.max_position_embeddings
        return 2 * config.num_hidden_layers * heads * width * itemsize * context, context
    return 0, 0


def to_train(config: Any, parameters: int, trained: int, how: Any, tokens: int, answer: int) -> int:
    """An estimate of the bytes that training takes: weights in float32, trained weights with gradient and the
    optimizer's two moments, the activations that gradients need, and the program itself.

    ``config`` is the model's, ``parameters`` its parameter count, ``trained`` the number of weights to train, ``how`` a
    training ``Config``, ``tokens`` and ``answer`` the lengths of a row and of its response. If the layers below the
    streams are frozen, their activations are not kept.
    """
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None) or 4 * hidden
    top = min(how.layers, layers)
    rows = how.batch / how.accumulate
    main = tokens * (top if how.mode == "lossless" or how.tuned_layers != "all" else layers)
    states = rows * (main + answer * how.share * how.gamma * top) * (STATES * hidden + 5 * inner)
    half = 1.5 if how.precision != "float32" else 1.0  # matmuls use copies of the weights in 16 bits
    return int(4 * half * parameters + 16 * trained + 4 * states + PROGRAM)


def free(device: str) -> int:
    """Free bytes for a model on a device (which may be "auto" or "mps"). An offloaded one is first in main memory."""
    if device != devices.OFFLOAD and devices.choose_device(device)[0] == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def used() -> int:
    """Bytes used by this process, in main memory and on a CUDA GPU if it uses one."""
    total = psutil.Process().memory_info().rss
    torch: Any = sys.modules.get("torch")
    return int(total + (torch.cuda.memory_allocated() if torch and torch.cuda.is_available() else 0))


def check(model: str, device: str, dtype: str) -> None:
    """Raises ModelError if the weights alone exceed the free memory, since loading could get the program killed."""
    wanted, there = need(model, device, dtype), free(device)
    if wanted and wanted.weights > there:
        raise ModelError(
            f"The model {model} needs {gigabytes(wanted.weights)} and {gigabytes(there)} are free: unload the current "
            "model first, or choose a smaller one or half precision."
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation. PyTorch has an exception for this on a GPU, but not on a CPU."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"


def give_back() -> None:
    """Free unreferenced objects, including reference cycles, and a GPU's unused blocks.

    What remains, a million objects of libraries and models, is left out of later automatic collections: one takes 0.2 s
    or more, in the middle of a run. The next call looks at it again.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    torch: Any = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
