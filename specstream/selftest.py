"""A check at load time that the model verifies trees rightly: a dozen tokens, a few passes."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from specstream.adapters import Adapter
from specstream.anatomy import Anatomy
from specstream.events import Draft
from specstream.target import ModelTarget

log = logging.getLogger(__name__)
# Largest logit difference that rounding explains, as a share of the logits' spread. A wrong mask or position changes
# logits by about their spread.
TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
HALF_TOLERANCE = 0.3
PARENTS = (-1, -1, 0, 0, 1, 2)
PATH = (0, 1, 4)  # rows of an accepted path: the root, node 0, and its second child, node 3
PROMPT, NODES = 6, len(PARENTS)


def failure(anatomy: Anatomy, adapter: Adapter | None) -> str | None:
    """Why this model can't verify trees, in one sentence, or None when its node logits equal its path logits."""
    try:
        gap = worst_gap(anatomy, adapter)
    except Exception as error:  # any failure of foreign model code means the same to us: standard decoding only
        log.info("the self-test failed", exc_info=True)
        return f"This model can't verify draft trees ({type(error).__name__} in the self-test): standard decoding only."
    if math.isnan(gap):
        return "The model's numbers are not finite in the self-test: choose float32 as its number format."
    if gap > TOLERANCE.get(anatomy.dtype, HALF_TOLERANCE):
        return (
            f"This model failed the tree self-test (logits off by {gap:.2g} of their spread): standard decoding only."
        )
    return None


@torch.inference_mode()
def worst_gap(anatomy: Anatomy, adapter: Adapter | None) -> float:
    """Largest difference, in spreads of the logits: of node logits in a tree pass from logits of each path alone, of
    the logits that we make of the last layer's states, for the streams, from the model's own, and of deferred streams
    from those of the pass. NaN if any is."""
    vocab = anatomy.model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocab, (PROMPT + 1 + NODES,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt, root, drafted = tokens[:PROMPT], tokens[PROMPT], tokens[PROMPT + 1 :]
    target = ModelTarget(anatomy, adapter, streaming=adapter is not None)
    target.prefill(prompt)
    draft = Draft(tuple(drafted), PARENTS, (1.0,) * NODES)
    got = target.verify(root, draft)
    gaps = [_gap(got[row], _alone(anatomy, [*prompt, root, *path])) for row, path in enumerate(_paths(drafted))]
    gaps.append(_head_gap(anatomy, prompt))
    if adapter:
        gaps.append(_deferred_gap(target.stream_logits(PATH[-1]), anatomy, adapter, prompt, root, draft))
    target.release()
    return float(torch.tensor(gaps).max())


def _deferred_gap(
    streams: Tensor, anatomy: Anatomy, adapter: Adapter, prompt: list[int], root: int, draft: Draft
) -> float:
    target = ModelTarget(anatomy, adapter, streaming=True)
    target.prepare(deferred=True, prune=0.0)
    target.prefill(prompt)
    target.verify(root, draft)
    target.keep(PATH)
    deferred = target.stream_logits(PATH[-1])
    target.release()
    return _gap(deferred, streams)


def _head_gap(anatomy: Anatomy, ids: list[int]) -> float:
    states: list[Tensor] = []

    def note(_module: object, _args: object, out: Any) -> None:
        states.append(out[0] if isinstance(out, tuple) else out)

    hook = anatomy.layers[-1].register_forward_hook(note)
    try:
        want = _alone(anatomy, ids)
    finally:
        hook.remove()
    return _gap(anatomy.logits(states[0].view(1, len(ids), -1)[0, -1:])[0], want)


def _paths(drafted: list[int]) -> list[list[int]]:
    paths: list[list[int]] = [[]]
    for node, parent in enumerate(PARENTS):
        paths.append([*paths[parent + 1], drafted[node]])
    return paths


def _alone(anatomy: Anatomy, ids: list[int]) -> Tensor:
    out = anatomy.model(input_ids=torch.tensor([ids], device=anatomy.device), use_cache=False)
    return out.logits[0, -1].float()


def _gap(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.std().clamp_min(1e-6))
