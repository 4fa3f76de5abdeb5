"""Draft model (Leviathan et al. 2023, Chen et al. 2023): a second model with the same tokenizer drafts token by token.

Greedy and coupled drafts are verified by equality, our own rule; sampled ones by the papers' ratio rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from specstream import tree
from specstream.decoding.drafters.levels import likeliest
from specstream.decoding.interfaces import Drafter, RewindableTarget
from specstream.decoding.sampling import Picker
from specstream.events import Draft
from specstream.params import DraftModel
from specstream.tree import Level


class DraftModelDrafter(Drafter):
    """Drafts a chain of the draft model's likeliest tokens, with the next likeliest beside each. When sampling it can
    also draft a chain of samples: "coupled", with the target's noise at each position, or "sampled", with independent
    noise; the run's ``picker`` then gets the distributions.

    The model has its own cache, in which accepted tokens stay, so a step reads only new tokens. ``ids`` are the
    committed tokens; the list grows during the run. ``vocabulary`` is the number of tokens that the target scores.
    """

    def __init__(
        self, model: RewindableTarget, ids: Sequence[int], params: DraftModel, picker: Picker, vocabulary: int
    ) -> None:
        self._model, self._ids, self._params, self._picker = model, ids, params, picker
        self._vocabulary = vocabulary
        self._greedy = params.drafts == "greedy" or picker.greedy
        self._read: list[int] = []  # the tokens in the model's cache
        self._same = 0  # how many of them are known to be committed

    def propose(self, room: int) -> Draft:
        self._picker.drawn.clear()
        wanted = min(self._params.depth, self._params.nodes)
        depth = min(wanted, room, self._model.context - len(self._ids))
        return tree.caterpillar(self._levels(depth), self._params.nodes) if depth > 0 else Draft()

    def observe(self, row: int) -> None:
        """Read the prompt too, after the prompt pass, so that its time counts as part of that pass."""
        if not self._read and len(self._ids) <= self._model.context:
            self._pass(self._ids[:-1])

    def _levels(self, depth: int) -> list[Level]:
        """The candidates of each depth, as long as the draft is likely enough."""
        logits, levels, path, joint = self._catch_up(), list[Level](), list[int](), 1.0
        while logits.logsumexp(-1).isfinite():  # half precision can overflow: stop drafting there
            levels.append(self._level(logits, path))
            token, prob = levels[-1][0]
            path.append(token)
            joint *= prob
            if len(path) == depth or (self._greedy and joint < self._params.confidence):
                break
            logits = self._pass([token])
        return levels

    def _level(self, logits: Tensor, path: list[int]) -> Level:
        """The candidates after ``path``, with their probabilities: the likeliest, or the sampled one."""
        if self._greedy:
            return likeliest(logits[None], self._params.width)[0]
        prefix = [*self._ids, *path]
        if self._params.drafts == "coupled":
            token = self._picker.pick(logits, prefix)
            return [(token, float(self._picker.probabilities(logits, prefix)[token]))]
        drawn = self._picker.drawn[len(prefix)] = self._picker.draw(logits, prefix)
        return [(drawn.token, float(drawn.probs[drawn.token]))]

    def _catch_up(self) -> Tensor:
        """Discard rejected tokens and read new ones. Returns logits ``[vocab]`` after the newest token."""
        most = min(len(self._read), len(self._ids) - 1)  # the newest token is always read, for its logits
        same = min(self._same, most)
        while same < most and self._read[same] == self._ids[same]:
            same += 1
        if same < len(self._read):
            self._model.rewind(same)
            del self._read[same:]
        logits = self._pass(self._ids[same:])
        self._same = len(self._ids)
        return logits

    def _pass(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens to the cache. Returns logits ``[vocab]`` after the last one, as many as the target has: models
        with the same tokenizer may differ in the number of unused ids."""
        known = [t if t < self._model.vocabulary else 0 for t in tokens]
        with self.passing(self._model.synchronize):
            if self._read:
                logits = self._model.verify(known[0], _chain(known[1:]))
                self._model.keep(range(len(known)))
            else:
                logits = self._model.prefill(known)
        self._read += tokens
        return F.pad(logits[-1], (0, self._vocabulary - logits.shape[-1]), value=-math.inf)


def _chain(tokens: Sequence[int]) -> Draft:
    return Draft(tuple(tokens), tuple(range(-1, len(tokens) - 1)), (1.0,) * len(tokens))
