"""The check at load time that the model verifies trees correctly: a dozen tokens, a few passes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specstream.adapters.weights import Adapter
from specstream.events import Draft
from specstream.model.attention import using
from specstream.model.cpu_linear import format_of
from specstream.model.introspection import Anatomy
from specstream.model.masks import causal_mask, layer_masks, model_masks
from specstream.streams.stream_attention import PassLayout, carry
from specstream.target.model_target import ModelTarget, PlainTarget, Variant

log = logging.getLogger(__name__)
# The root-mean-square logit difference that rounding explains, as a share of the logits' standard deviation. A wrong
# mask or position changes logits by about one standard deviation.
TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
HALF_TOLERANCE = 0.3
INT8_TOLERANCE = 1.2  # quantising a row to 255 levels amplifies the smallest difference to one level
PARENTS = (-1, -1, 0, 0, 1, 2)
PATH = (0, 1, 4)  # rows of an accepted path: the root, node 0, and its second child, node 3
PROMPT, NODES = 6, len(PARENTS)
BESIDE = 48  # further rows of the pass whose bits are compared: some libraries round that many in another way


def failure(anatomy: Anatomy, adapter: Adapter | None) -> str | None:
    """Why this model can't verify trees, in one sentence; None if its node logits equal its path logits."""
    try:
        gaps = [(worst_gap(anatomy, adapter), _tolerance(anatomy, anatomy.layers[0]))]
        if adapter:
            layer, *_ = adapter.merged or anatomy.layers
            gaps.append((streams_gap(anatomy, adapter), _tolerance(anatomy, layer)))
    except Exception as error:  # any failure of foreign model code has the same consequence: standard decoding only
        log.info("the self-test failed", exc_info=True)
        return f"This model can't verify draft trees ({type(error).__name__} in the self-test): standard decoding only."
    if any(math.isnan(gap) for gap, _ in gaps):
        return "The model's numbers are not finite in the self-test: choose float32 as its number format."
    if off := [gap for gap, tolerance in gaps if gap > tolerance]:
        return (
            f"This model failed the tree self-test (logits off by {max(off):.2g} of their spread): standard decoding "
            "only."
        )
    return None


@torch.inference_mode()
def plain_failure(model: PreTrainedModel) -> str | None:
    """Why not even standard decoding works with a model, as the end of a sentence; None if the logits of every position
    are those of one pass over the whole text, so no position depends on a later one."""
    vocab = model.get_input_embeddings().num_embeddings
    text = torch.randint(vocab, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    target = PlainTarget(model)
    try:
        want = model(input_ids=torch.tensor([text], device=model.device)).logits[0].float()
        got = [target.prefill(text[:1]), *(target.verify(token, Draft()) for token in text[1:])]
        gaps = [_gap(ours[0], theirs) for ours, theirs in zip(got, want, strict=True)]
    except Exception as error:  # foreign model code may fail in any way
        log.info("standard decoding failed", exc_info=True)
        return f"it fails in a test of six tokens ({type(error).__name__})"
    if min(gaps[: PROMPT // 2]) > TOLERANCE.get(model.dtype, HALF_TOLERANCE):  # rounding may spoil one of them
        return "its tokens depend on later ones, so it is not a causal language model"
    return None


def _tolerance(anatomy: Anatomy, layer: nn.Module) -> float:
    int8 = format_of(layer).name == "int8"
    return INT8_TOLERANCE if int8 else TOLERANCE.get(anatomy.dtype, HALF_TOLERANCE)


@torch.inference_mode()
def worst_gap(anatomy: Anatomy, adapter: Adapter | None) -> float:
    """The largest difference, in standard deviations of the logits, between: node logits in a tree pass and logits of
    each path alone; our logits from the last layer's states and the model's own. NaN if any is."""
    prompt, root, draft = _sample(anatomy)
    target = ModelTarget(anatomy, adapter, Variant() if adapter else None)
    target.prefill(prompt)
    got = target.verify(root, draft)
    want, states = _alone(anatomy, [[*prompt, root, *path] for path in _paths(draft.tokens)])
    gaps = [_gap(ours, theirs) for ours, theirs in zip(got, want, strict=True)]
    gaps.append(_gap(anatomy.logits(states[:1])[0], want[0]))
    target.release()
    return float(torch.tensor(gaps).max())


@torch.inference_mode()
def streams_gap(anatomy: Anatomy, adapter: Adapter) -> float:
    """The same difference between the streams of an accepted path and those carried by a single pass over the same
    text, as in training."""
    prompt, root, draft = _sample(anatomy)
    target = ModelTarget(anatomy, adapter, Variant(deferred=True))
    target.prefill(prompt)
    target.verify(root, draft)
    target.keep(PATH)
    deferred = target.stream_logits(PATH[-1])
    target.release()
    ids = torch.tensor([[*prompt, root, *(draft.tokens[row - 1] for row in PATH[1:])]], device=anatomy.device)
    rows = ids.shape[1]
    positions = torch.arange(rows, device=anatomy.device)[None]
    masks = layer_masks(anatomy, causal_mask(rows, 0).to(positions.device), positions)
    plan = PassLayout(masks, positions, positions[:, -1:])
    lora = adapter.lora if adapter.card.mode == "lossless" else None
    with carry(anatomy, adapter.streams, plan, lora) as carried:
        anatomy.decoder(
            input_ids=ids,
            attention_mask=model_masks(anatomy, plan.masks),
            position_ids=positions,
            use_cache=False,
        )
    return _gap(deferred, adapter.draft_logits(anatomy, carried.states[0, 0]))


def _sample(anatomy: Anatomy) -> tuple[list[int], int, Draft]:
    """A prompt, the root after it, and a tree below the root."""
    vocab = anatomy.model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocab, (PROMPT + 1 + NODES,), generator=torch.Generator().manual_seed(0)).tolist()
    return tokens[:PROMPT], tokens[PROMPT], Draft(tuple(tokens[PROMPT + 1 :]), PARENTS, (1.0,) * NODES)


def _paths(drafted: Sequence[int]) -> list[list[int]]:
    paths: list[list[int]] = [[]]
    for node, parent in enumerate(PARENTS):
        paths.append([*paths[parent + 1], drafted[node]])
    return paths


def _alone(anatomy: Anatomy, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Logits ``[texts, vocab]`` after each text, and the last layer's states there ``[texts, hidden]``, by the model's
    own forward with transformers' attention. Shorter texts are padded on the right, where no row attends."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + text[-1:] * (longest - len(text)) for text in texts], device=anatomy.device)
    noted: list[Tensor] = []
    hook = anatomy.layers[-1].register_forward_hook(lambda _m, _a, out: noted.append(out))
    try:
        with using(anatomy.model, anatomy.attention):
            logits = anatomy.model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    states = noted[0][0] if isinstance(noted[0], tuple) else noted[0]
    rows, last = torch.arange(len(texts)), torch.tensor([len(text) - 1 for text in texts])
    return logits[rows, last].float(), states.view(*ids.shape, -1)[rows, last]


@torch.inference_mode()
def exact(anatomy: Anatomy) -> bool:
    """Whether a token has the same bits as a node of a tree and in standard decoding by the model's own forward, on
    this machine."""
    prompt, root, sample = _sample(anatomy)
    draft = Draft(sample.tokens + (root,) * BESIDE, PARENTS + (-1,) * BESIDE, (1.0,) * (NODES + BESIDE))
    tree, plain = ModelTarget(anatomy), ModelTarget(anatomy, direct=False)
    for target in (tree, plain):
        target.prefill(prompt)
    logits = tree.verify(root, draft)
    tree.keep(PATH)
    equal = True
    for row, token in zip(PATH, [root, *(draft.tokens[row - 1] for row in PATH[1:])], strict=True):
        equal &= torch.equal(logits[row], plain.verify(token, Draft())[0])
        plain.keep([0])
    assert tree.cache is not None and plain.cache is not None
    for ours, theirs in zip(tree.cache.layers, plain.cache.layers, strict=True):
        equal &= torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    return equal


def _gap(got: Tensor, want: Tensor) -> float:
    """Root mean square of the differences, in standard deviations of ``want``. (The maximum would grow with the
    vocabulary: rounding Gemma's 262,144 logits to bfloat16 gives 0.09 here, but a maximum of 0.33; a wrong mask gives
    2.)"""
    return float((got - want).square().mean().sqrt() / want.std().clamp_min(1e-6))
