"""The pair map: how well a drafted token follows the one above it, which streams alone can't know."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specstream.tree import Level


class Pairs(nn.Module):
    """Adds ``w_j a(x) . b(y)`` to the logit of token y in stream j where token x is above it.

    Streams guess the tokens of all depths at once, none knowing what the others settle on. Here a and b are linear maps
    of the model's input embeddings, scaled to unit length: ``before`` and ``after`` are ``[width, rank]``, ``weight`` w
    is ``[gamma]``. Not of the paper; the idea that a draft should know the draft above it is that of Hydra heads
    (Ankner et al., 2024).
    """

    POOL = 32  # likeliest tokens of a stream that are weighed again

    def __init__(self, width: int, gamma: int, rank: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(width, rank))
        self.after = nn.Parameter(torch.zeros(width, rank))
        self.weight = nn.Parameter(torch.ones(gamma))

    def above(self, embedded: Tensor) -> Tensor:
        """a(x), ``[..., rank]``, of input embeddings ``[..., width]``."""
        return F.normalize(embedded.to(self.before.dtype), dim=-1) @ self.before

    def below(self, embedded: Tensor) -> Tensor:
        """b(y), ``[..., rank]``, of input embeddings ``[..., width]``."""
        return F.normalize(embedded.to(self.after.dtype), dim=-1) @ self.after

    def weighed(self, logits: Tensor, ids: Tensor | None, root: int, table: Tensor, width: int) -> Weighed:
        """The ``width`` likeliest tokens of every depth after every token that the depth above may have.

        ``logits`` ``[depths, drafted]`` are the streams' of the tokens ``ids`` ``[drafted]`` (None: all), ``root`` is
        the token above the first depth, ``table`` ``[vocab, width]`` are the input embeddings.
        """
        top = logits.softmax(-1).topk(min(self.POOL, logits.shape[-1]), -1)
        tokens = top.indices if ids is None else ids[top.indices]  # [depths, pool]
        embedded = table[torch.cat([tokens.new_tensor([root]), tokens.flatten()])]
        first, others = self.above(embedded).split([1, tokens.numel()])
        higher = others.unflatten(0, tokens.shape)[:-1]  # what stands above all depths but the first
        lower = self.below(embedded[1:]).unflatten(0, tokens.shape) * self.weight[: len(tokens), None, None]
        bonus = torch.cat([(first @ lower[0].T).expand(1, tokens.shape[1], -1), higher @ lower[1:].mT])
        scores = top.values.log()[:, None] + bonus  # [depths, pool above, pool]
        mass = top.values.sum(-1)[:, None, None]  # weighing moves probability within the pool only
        best = (scores.softmax(-1) * mass).topk(min(width, tokens.shape[1]), -1)
        return Weighed(tokens.tolist(), best.indices.tolist(), best.values.tolist())


class Weighed:
    """The candidates of a depth after the token above it."""

    def __init__(self, tokens: list[list[int]], places: list[list[list[int]]], probs: list[list[list[float]]]) -> None:
        self._tokens, self._places, self._probs = tokens, places, probs
        self._rows: list[dict[int | None, int]] = [{None: 0}]
        self._rows += [{token: row for row, token in enumerate(level)} for level in tokens[:-1]]

    def __len__(self) -> int:
        return len(self._tokens)

    def after(self, depth: int, token: int | None) -> Level:
        """As of tree.Candidates."""
        row = self._rows[depth][token]
        names = self._tokens[depth]
        return [(names[i], p) for i, p in zip(self._places[depth][row], self._probs[depth][row], strict=True)]
