"""The pair map, a low-rank bigram bias: how well a drafted token follows its parent, which streams can't know."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL, c_float, c_int64
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specstream import native
from specstream.decoding.softmax import highest, log_total
from specstream.tree import Level, Path

T = TypeVar("T")
CHUNK = 4096  # embeddings at a time, so that their float32 copies stay small


class Pairs(nn.Module):
    """Adds ``w_j a(x) . b(y)`` to the logit of token y in stream j if its parent is token x.

    Streams predict the tokens of all depths at once, and none knows the others' choices. a and b are linear projections
    of the model's input embeddings, scaled to unit length: ``before`` and ``after`` are ``[width, rank]``, ``weight`` w
    is ``[gamma]``. This is ours, not the paper's; conditioning a draft on its parent token is Hydra's idea (Ankner et
    al., 2024).
    """

    POOL = 3  # a stream's likeliest tokens that are rescored, as a multiple of those that may be chosen

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
        """Precompute a(x) of all tokens and b(y) of the ``ids`` that can be drafted (None: all). The weights must not
        change afterwards. ``embeddings`` are ``[vocab, width]``."""
        drafted = torch.arange(len(embeddings)) if ids is None else ids.cpu()
        above = torch.cat([_array(self.above(part)) for part in embeddings.split(CHUNK)])
        below = torch.cat([_array(self.below(embeddings[part])) for part in drafted.split(CHUNK)])
        self._tables = above.numpy(), below.numpy(), drafted.numpy(), _array(self.weight).numpy()

    @torch.no_grad()
    def weighed(self, logits: Tensor, ids: Tensor | None, root: int, embeddings: Tensor, width: int) -> Weighed:
        """The ``width`` likeliest tokens of every depth after every candidate of the depth above.

        ``logits`` ``[depths, drafted]`` are the streams' for the tokens ``ids`` ``[drafted]`` (None: all), ``root`` is
        the parent of the first depth, ``embeddings`` are ``[vocab, width]``.
        """
        pool = min(self.POOL * width, logits.shape[-1])
        if self._tables is not None and (built := native.usable(logits)):
            return self._weighed_natively(built, logits, root, pool, width)
        values, indices = highest(logits, pool)
        logprobs, places = _array(values - log_total(logits)[:, None]).numpy(), indices.cpu().numpy()
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
        mass = np.exp(logprobs).sum(-1)[:, None, None]  # rescoring moves probability only within the pool
        probs = odds * (mass / odds.sum(-1, keepdims=True))
        return Weighed(tokens.ravel().tolist(), probs.ravel().tolist(), np.exp(logprobs).ravel().tolist(), pool, width)

    def _weighed_natively(self, built: CDLL, logits: Tensor, root: int, pool: int, width: int) -> Weighed:
        """The same by one call: a dozen small operations take 0.2 ms, a fiftieth of a step."""
        assert self._tables is not None
        above, below, names, weight = self._tables
        depths, drafted = logits.shape
        tokens: Any = (c_int64 * (depths * pool))()
        alone: Any = (c_float * (depths * pool))()
        probs: Any = (c_float * (depths * pool * pool))()
        tables = above.ctypes.data, below.ctypes.data, names.ctypes.data, above.shape[1], weight.ctypes.data
        built.specstream_weigh(logits.data_ptr(), depths, drafted, pool, root, *tables, tokens, alone, probs)
        return Weighed(tokens, probs, alone, pool, width)


def _array(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu()


def _under(root: int, tokens: Any) -> Any:
    """The possible parents of each depth ``[depths, pool]``: the root, then the tokens of the depth before."""
    higher = np.empty_like(tokens)
    higher[0], higher[1:] = root, tokens[:-1]
    return higher


class Weighed:
    """The ``width`` likeliest candidates of a depth, given the parent token.

    ``probs`` ``[depths * pool above * pool]`` belong to the ``tokens`` ``[depths * pool]``; in the first depth all rows
    are those of the root. ``alone`` ``[depths * pool]`` are the streams' own, for a parent that is not in the pool.
    Flat sequences, whose slices are lists: a tree needs only a few short rows.
    """

    def __init__(
        self, tokens: Sequence[int], probs: Sequence[float], alone: Sequence[float], pool: int, width: int
    ) -> None:
        self._tokens, self._probs, self._alone, self._pool, self._width = tokens, probs, alone, pool, width

    def __len__(self) -> int:
        return len(self._tokens) // self._pool

    def after(self, path: Path) -> Level:
        """As in ``tree.Candidates``."""
        pool, depth = self._pool, len(path)
        above = self._of(self._tokens, depth - 1) if path else ()
        if not path:
            row = self._of(self._probs, 0)
        elif path[-1] in above:
            row = self._of(self._probs, depth * pool + above.index(path[-1]))
        else:
            row = self._of(self._alone, depth)
        best = sorted(zip(row, self._of(self._tokens, depth), strict=True), reverse=True)[: self._width]
        return [(name, prob) for prob, name in best]

    def _of(self, numbers: Sequence[T], row: int) -> Sequence[T]:
        return numbers[row * self._pool : (row + 1) * self._pool]
