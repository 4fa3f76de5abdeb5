"""From logits to the target's token: one choice per position, the same for every decoding method.

The choice is the argmax of warped logits plus Gumbel noise, which is a draw from the warped distribution. The noise
depends on the seed and the position only, never on how many tree nodes were looked at, so that every method that asks
for the token at a position gets the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specstream.params import Sampling


def gumbel(seed: int, position: int, size: int) -> Tensor:
    """Standard Gumbel noise, float64 ``[size]`` on the CPU, a pure function of (seed, position)."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()


@dataclass(frozen=True)
class Picker:
    """Chooses the target's token at a position."""

    sampling: Sampling

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    @property
    def plain(self) -> bool:
        """True when the choice is the argmax of the raw logits."""
        return self.greedy and self.sampling.repetition_penalty == 1

    def scores(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        """Warped logits ``[vocab]``, with noise when sampling. Their argmax is the token at position ``len(prefix)``.

        ``logits`` is ``[vocab]``; ``prefix`` are all token ids before the position, those on a node's path included.
        """
        warpers = self._warpers()
        scores = logits.float()
        if warpers:
            seen = list(prefix) if self.sampling.repetition_penalty != 1 else []  # the others don't look at it
            ids = torch.tensor([seen], dtype=torch.long, device=logits.device)
            scores = warpers(ids, scores[None])[0]
        if self.greedy:
            return scores
        return scores.cpu().double() + gumbel(self.sampling.seed, len(prefix), len(scores))

    def pick(self, logits: Tensor, prefix: Sequence[int]) -> int:
        """The target's token after ``prefix``, given its ``logits`` ``[vocab]``."""
        return int(self.scores(logits, prefix).argmax())

    def _warpers(self) -> LogitsProcessorList:
        s = self.sampling
        out = LogitsProcessorList()
        if s.repetition_penalty != 1:
            out.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
        if self.greedy:
            return out
        out.append(TemperatureLogitsWarper(s.temperature))
        if s.top_k:
            out.append(TopKLogitsWarper(s.top_k))
        if s.top_p < 1:
            out.append(TopPLogitsWarper(s.top_p))
        if s.min_p:
            out.append(MinPLogitsWarper(s.min_p))
        return out
