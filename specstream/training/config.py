"""Settings of a training run: defaults, limits and help texts, defined once for the command line and the page."""

from __future__ import annotations

from dataclasses import dataclass

from specstream.model.devices import training_precision
from specstream.params import Checked, choice, number


@dataclass(frozen=True)
class Config(Checked):
    """Settings of a training run.

    Training ends after ``epochs``, or after ``minutes`` of training time if that is not 0. The learning rate rises
    during the share ``warmup`` of the run, then falls to zero along a cosine. The paper's text gives 0.1 for ``alpha``;
    a larger weight trains the streams sooner.
    """

    mode: str = choice(
        "shared",
        "Mode",
        "shared: fine-tunes the model with its streams; lossless: the model's output does not change; "
        "plain: LoRA without streams, for comparison; medusa, exit: heads beside the adapter given as start.",
        ("shared", "lossless", "plain", "medusa", "exit"),
    )
    gamma: int = number(4, "Gamma", "Number of streams, or of Medusa heads: how many tokens ahead they draft.", 1, 16)
    layers: int = number(
        6, "Layers", "Top layers that carry streams (N_s); for exit: first layers, which draft.", 1, 1000
    )
    start_rank: int = number(
        64, "Start rank", "Rank of the linear layer that initialises the streams; 0: identity.", 0, 4096
    )
    lora_rank: int = number(16, "LoRA rank", "Rank of the LoRA on every linear layer; 0: no LoRA.", 0, 4096)
    tuned_layers: str = choice(
        "all",
        "Tuned layers",
        "all: LoRA is trained in all layers; top: only in those that carry streams, which is quicker; "
        "none: only the pair map is trained, which takes minutes.",
        ("all", "top", "none"),
    )
    lora_scale: float = number(2.0, "LoRA scale", "Scale of LoRA's contribution.", 0, 100, 0.1)
    exit_rank: int = number(
        0, "Exit rank", "Rank of the early exit that prunes drafts, 0: none; for exit: of the exit, 0: full.", 0, 4096
    )
    projection: str = choice(
        "shared",
        "Projection",
        "Medusa heads' projection to the vocabulary; shared: the model's own; own: one per head, as published.",
        ("shared", "own"),
    )
    value_rotation: float = number(
        0.0, "Value rotation", "Radians per stream, instead of stream embeddings; 0: embeddings.", 0, 6, 0.001
    )
    draft_vocabulary: int = number(
        8192, "Draft vocabulary", "Draft only among this many of the most frequent tokens; 0: among all.", 0, 1 << 24
    )
    pair_rank: int = number(
        64, "Pair rank", "Rank of the pair map, which scores a drafted token given its parent; 0: none.", 0, 4096
    )
    alpha: float = number(0.5, "Alpha", "Weight of each stream's loss; the main stream has 1.", 0, 100, 0.1)
    share: float = number(1.0, "Share", "Share of the response's tokens that carry streams in training.", 0.01, 1, 0.01)
    batch: int = number(8, "Batch", "Rows per step.", 1, 4096)
    accumulate: int = number(1, "Accumulate", "Gradient accumulation: micro-batches per batch.", 1, 4096)
    lr: float = number(1e-3, "Learning rate", "Highest learning rate of AdamW.", 1e-8, 1, 1e-4)
    warmup: float = number(0.03, "Warm-up", "Share of the run in which the learning rate rises.", 0, 1, 0.01)
    epochs: int = number(3, "Epochs", "Passes over the data, if no minutes are given.", 1, 100_000)
    minutes: float = number(0.0, "Minutes", "Train for this long; 0: for the epochs.", 0, 1e6)
    cache: float = number(
        2.0, "Cache", "GB of memory for caching the outputs of frozen layers; 0: recomputed every time.", 0, 1e4, 0.1
    )
    precision: str = choice(
        "auto",
        "Precision",
        "Number format of the matmuls; auto: bfloat16 if the device supports it, else float16 on a GPU and "
        "float32 on a CPU.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    seed: int = number(0, "Seed", "Seed of all random choices.", 0, 2**31 - 1)
    save_every: float = number(180.0, "Save every", "Seconds between checkpoints.", 1, 1e9)
    validate_every: int = number(100, "Validate every", "Steps between validations on the held-out rows.", 1, 1_000_000)
    probes: int = number(8, "Probes", "Held-out prompts decoded in each validation; 0: use losses only.", 0, 1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0 or self.lora_scale <= 0:
            raise ValueError("Alpha and LoRA scale must be above 0.")
        if self.tuned_layers == "none" and not self.pair_rank:
            raise ValueError("With no tuned layers there is nothing to train but a pair map: give --pair-rank.")
        if self.mode == "plain":
            for name in ("gamma", "exit_rank", "draft_vocabulary", "pair_rank", "probes"):
                object.__setattr__(self, name, 0)

    @property
    def trains_heads(self) -> bool:
        """Whether heads beside an adapter are trained, instead of an adapter."""
        return self.mode in ("medusa", "exit")

    def chosen_precision(self, device: str) -> str:
        """accelerate's name of the precision: "no", "bf16" or "fp16". Raises ValueError for float16 on a CPU."""
        if self.precision == "float16" and device == "cpu":
            raise ValueError("A processor does not train in float16: choose precision auto, float32 or bfloat16.")
        if self.precision != "auto":
            return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[self.precision]
        return training_precision(device)
