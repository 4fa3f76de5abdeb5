"""The pair map, a low-rank bigram bias: how well a drafted token follows the one above it. Streams alone can't know."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specstream.decoding.softmax import log_total
from specstream.tree import Level

CHUNK = 4096  # embeddings at a time: their copies in float32 stay small


class Pairs(nn.Module):
    """Adds ``w_j a(x) . b(y)`` to the logit of token y in stream j where token x is above it.

    Streams guess the tokens of all depths at once, and none knows what the others settle on. a and b are linear
    projections of the model's input embeddings, scaled to unit length: ``before`` and ``after`` are ``[width, rank]``,
    ``weight`` w is ``[gamma]``. Ours, not the paper's; that a draft should know the token above it is Hydra's idea
    (Ankner et al., 2024).
    """

    POOL = 3  # times as many of a stream's likeliest tokens are weighed as may be chosen

    def __init__(self, width: int, gamma: int, rank: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(width, rank))
        self.after = nn.Parameter(torch.zeros(width, rank))
        self.weight = nn.Parameter(torch.ones(gamma))
        self._tables: tuple[Any, Any, Any, Any] | None = None

    def above(self, embedded: Tensor) -> Tensor:
        """a(x), ``[..., rank]``, of input embeddings ``[..., width]``."""
        return F.normalize(embedded.to(self.before.dtype), dim=-1) @ self.before

    def below(self, embedded: Tensor) -> Tensor:
        """b(y), ``[..., rank]``, of input embeddings ``[..., width]``."""
        return F.normalize(embedded.to(self.after.dtype), dim=-1) @ self.after

    @torch.no_grad()
    def fix(self, embeddings: Tensor, ids: Tensor | None) -> None:
        """Keep a(x) of all tokens and b(y) of the ``ids`` that can be drafted (None: all), so that no step computes
        them. The weights must not change afterwards. ``embeddings`` are ``[vocab, width]``."""
        drafted = torch.arange(len(embeddings)) if ids is None else ids.cpu()
        above = torch.cat([_array(self.above(part)) for part in embeddings.split(CHUNK)])
        below = torch.cat([_array(self.below(embeddings[part])) for part in drafted.split(CHUNK)])
        self._tables = above.numpy(), below.numpy(), drafted.numpy(), _array(self.weight).numpy()

    @torch.no_grad()
    def weighed(self, logits: Tensor, ids: Tensor | None, root: int, embeddings: Tensor, width: int) -> Weighed:
        """The ``width`` likeliest tokens of every depth after every token that the depth above may have.

        ``logits`` ``[depths, drafted]`` are the streams' of the tokens ``ids`` ``[drafted]`` (None: all), ``root`` is
        the token above the first depth, ``embeddings`` are ``[vocab, width]``.
        """
        top = logits.topk(min(self.POOL * width, logits.shape[-1]), -1)
        logprobs, places = _array(top.values - log_total(logits)).numpy(), top.indices.cpu().numpy()
        if self._tables is None:
            tokens = places if ids is None else ids.cpu().numpy()[places]
            higher = _under(root, tokens)
            above = _array(self.above(embeddings[torch.from_numpy(higher)])).numpy()
            below = _array(self.below(embeddings[torch.from_numpy(tokens)])).numpy()
            weight = _array(self.weight).numpy()
        else:
            every_above, every_below, names, weight = self._tables
            tokens = names[places]
            above, below = every_above[_under(root, tokens)], every_below[places]
        below = below * weight[: len(tokens), None, None]
        scores = logprobs[:, None] + above @ below.transpose(0, 2, 1)  # [depths, pool above, pool]
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        mass = np.exp(logprobs).sum(-1)[:, None, None]  # weighing moves probability within the pool only
        probs = odds * (mass / odds.sum(-1, keepdims=True))
        return Weighed(tokens.tolist(), probs.tolist(), width)


def _array(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu()


def _under(root: int, tokens: Any) -> Any:
    """What stands above each depth ``[depths, pool]``: the root, then the tokens of the depth before."""
    higher = np.empty_like(tokens)
    higher[0], higher[1:] = root, tokens[:-1]
    return higher


class Weighed:
    """The ``width`` likeliest candidates of a depth after the token above it.

    ``probs`` ``[depths, pool above, pool]`` are of the ``tokens`` ``[depths, pool]``; all rows of the first depth are
    of the root. In plain lists: a tree asks for a few rows only, and they are short.
    """

    def __init__(self, tokens: list[list[int]], probs: list[list[list[float]]], width: int) -> None:
        self._tokens, self._probs, self._width = tokens, probs, width

    def __len__(self) -> int:
        return len(self._tokens)

    def after(self, depth: int, token: int | None) -> Level:
        """As of tree.Candidates."""
        row = self._probs[depth][0 if token is None else self._tokens[depth - 1].index(token)]
        best = sorted(zip(row, self._tokens[depth], strict=True), reverse=True)[: self._width]
        return [(name, prob) for prob, name in best]
