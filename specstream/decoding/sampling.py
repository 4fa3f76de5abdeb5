"""From logits to the target's token: one choice per position, the same for every decoding method.

The choice is the argmax of warped logits plus Gumbel noise, which is a sample from the warped distribution. The noise
depends only on the seed and the position, never on how many tree nodes were evaluated, so every method gets the same
token at a position.

If a drafter sampled its token from its own distribution, the ratio rule chooses instead: also a sample from the warped
distribution, but not the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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


def gumbel(seed: int, position: int, size: int, use: str = "") -> Tensor:
    """Standard Gumbel noise, float64 ``[size]`` on the CPU, a pure function of seed, position and ``use``."""
    uniform = torch.rand(size, generator=_generator(seed, position, use), dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()


def _generator(seed: int, position: int, use: str) -> torch.Generator:
    key = "/".join([str(seed), str(position), *([use] if use else [])])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Drawn(NamedTuple):
    """A token sampled by a drafter, and the distribution it was sampled from, float64 ``[vocab]`` on the CPU."""

    token: int
    probs: Tensor


def by_ratio(probs: Tensor, drawn: Drawn, chance: float, noise: Tensor) -> int:
    """The ratio rule (Leviathan et al. 2023, Chen et al. 2023): a sample from the target's ``probs`` ``[vocab]``.

    A token sampled with probability q is kept with probability min(1, p/q); otherwise a token is sampled from the
    positive part of p - q. ``chance`` is uniform in [0, 1), ``noise`` is Gumbel noise ``[vocab]``; neither was used
    for the draft.
    """
    rest = (probs - drawn.probs).clamp_min(0)
    if (
        chance * float(drawn.probs[drawn.token]) < float(probs[drawn.token]) or not rest.any()
    ):  # there is none if p equals q
        return drawn.token
    return int((rest.log() + noise).argmax())


@dataclass(frozen=True)
class Picker:
    """Chooses the target's token at a position. ``drawn`` holds a drafter's samples by position: there the ratio rule
    chooses."""

    sampling: Sampling
    drawn: dict[int, Drawn] = field(default_factory=dict, compare=False)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    @property
    def plain(self) -> bool:
        """Whether the choice is the argmax of the raw logits."""
        return self.greedy and self.sampling.repetition_penalty == 1

    def scores(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        """Warped logits ``[vocab]``, with noise when sampling. Their argmax is the token at position ``len(prefix)``.

        ``logits`` is ``[vocab]``; ``prefix`` holds all token ids before the position, including a node's path.
        """
        scores = self.warped(logits, prefix)
        return scores if self.greedy else scores.cpu().double() + gumbel(self.sampling.seed, len(prefix), len(scores))

    def warped(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        """Logits ``[vocab]`` after penalty, temperature and truncation; ``logits`` itself if there are none."""
        warpers = self._warpers()
        if not warpers:
            return logits.float()
        seen = list(prefix) if self.sampling.repetition_penalty != 1 else []  # only the penalty uses it
        ids = torch.tensor([seen], dtype=torch.long, device=logits.device)
        return warpers(ids, logits.float()[None])[0]

    def probabilities(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        """The warped distribution, float64 ``[vocab]`` on the CPU."""
        return self.warped(logits, prefix).cpu().double().softmax(-1)

    def draw(self, logits: Tensor, prefix: Sequence[int]) -> Drawn:
        """A token sampled for a drafter from its ``logits`` ``[vocab]``, warped like the target's, with other noise."""
        probs = self.probabilities(logits, prefix)
        noise = gumbel(self.sampling.seed, len(prefix), len(probs), "draft")
        return Drawn(int((probs.log() + noise).argmax()), probs)

    def pick(self, logits: Tensor, prefix: Sequence[int]) -> int:
        """The target's token after ``prefix``, given its ``logits`` ``[vocab]``."""
        drawn = self.drawn.get(len(prefix))
        if drawn is None:
            return int(self.scores(logits, prefix).argmax())
        seed, at = self.sampling.seed, len(prefix)
        chance = float(torch.rand((), generator=_generator(seed, at, "ratio"), dtype=torch.float64))
        return by_ratio(self.probabilities(logits, prefix), drawn, chance, gumbel(seed, at, len(logits)))

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
