"""Bit for bit: a token's logits and its cache entries are those of standard decoding, in every number format."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from specstream import native
from specstream.adapters.weights import Adapter
from specstream.decoding.loop import Run
from specstream.engine import Engine, load
from specstream.events import Draft, Origin, Step
from specstream.model import attention, cpu_linear, kv_cache
from specstream.model.hardware import computes_bfloat16
from specstream.model.introspection import Anatomy
from specstream.native.compiler import NO_COMPILER
from specstream.params import Medusa, PromptLookup, Sampling, Standard, Streaming
from specstream.target import model_target, self_test
from specstream.target.model_target import ModelTarget, Variant
from tests import tiny
from tests.test_golden import PROMPT, TEMPERATURES, Oracle

FORMATS = ["float32", "float16", *(["bfloat16"] if computes_bfloat16("cpu") else [])]
FORM = {"float16": cpu_linear.FLOAT16}
OWN_FORWARD = {"opt", "gpt2"}  # what enters their first layer is more than the embedding
STOCK_SUMS = {"gpt2"}  # its linear layers are of a kind that is not packed: PyTorch's own sums depend on the rows


def ready(family: str, kind: str, gamma: int = 3, mode: str = "shared", exit_rank: int = 0) -> tuple[Anatomy, Adapter]:
    """A tiny model and adapter, prepared as the engine does it."""
    anatomy, adapter = tiny.model_with_adapter(family, gamma, mode=mode, exit_rank=exit_rank)
    if kind == "bfloat16":
        anatomy.model.bfloat16()
    adapter.ready(anatomy)
    form = FORM.get(kind, cpu_linear.NATIVE)
    adapter.merge_copies(anatomy, form)
    anatomy = cpu_linear.pack(anatomy, form)
    assert attention.install(anatomy.model)
    return anatomy, adapter


class Bushy(Oracle):
    """The oracle's tree, filled up to ``nodes`` with useless tokens at random positions."""

    nodes = 64

    def propose(self, room: int) -> Draft:
        draft = super().propose(room)
        tokens, parents = list(draft.tokens), list(draft.parents)
        size = self._rng.randrange(1, self.nodes + 1)
        while tokens and len(tokens) < size:
            parent = self._rng.randrange(-1, len(tokens))
            token = self._rng.randrange(3, tiny.VOCAB)
            deep = Draft(tuple(tokens), tuple(parents), (0.5,) * len(tokens)).depths()
            taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
            if token not in taken and (parent < 0 or deep[parent] < room):
                tokens.append(token)
                parents.append(parent)
        return Draft(tuple(tokens), tuple(parents), (0.5,) * len(tokens))


class Twin:
    """Standard decoding of the tokens of a run, compared with it after every step."""

    def __init__(self, run: Run, plain: ModelTarget) -> None:
        self._plain, self._at = plain, len(run.ids)
        self._verify = run.target.verify
        run.target.verify = self._noting  # type: ignore[method-assign]
        self._logits = torch.empty(0)
        plain.prefill(run.ids)
        self.compared = 0

    def _noting(self, root: int, draft: Draft) -> Tensor:
        self._logits = self._verify(root, draft)
        return self._logits

    def __call__(self, run: Run, step: Step) -> None:
        wanted = []
        while self._at < len(run.ids) - 1:
            wanted.append(self._plain.verify(run.ids[self._at], Draft())[0])
            self._plain.keep([0])
            self._at += 1
        assert run.target.length == self._plain.length == self._at
        if not run.target.pruned:
            rows = [0, *(t.node + 1 for t in step.tokens if t.origin is Origin.DRAFT)]
            for row, logits in zip(rows, wanted, strict=False):
                assert torch.equal(self._logits[row], logits)
                self.compared += 1
        for ours, theirs in zip(run.target.cache.layers, self._plain.cache.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def bushy_run(anatomy: Anatomy, adapter: Adapter, variant: Variant, sampling: Sampling, seed: int) -> Run:
    """A run whose trees contain the true continuation, often corrupted."""
    want = tiny.ids_of(tiny.finish(tiny.standard_run(anatomy, PROMPT, sampling)))
    made = ModelTarget(anatomy, adapter, variant)
    drafter = Bushy(made, want, 0.25, seed, len(PROMPT))
    drafter.run = tiny.new_run(made, drafter, PROMPT, sampling)
    return drafter.run


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in STOCK_SUMS])
def test_every_step_is_that_of_standard_decoding(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "BLOCK", 16)  # so that buffers grow in the middle of a run
    for seed, (deferred, gamma, mode) in enumerate(((False, 1, "shared"), (True, 4, "lossless"), (True, 8, "shared"))):
        anatomy, adapter = ready(family, kind, gamma, mode)
        sampling = Sampling(max_new_tokens=30, temperature=TEMPERATURES[seed], seed=seed, repetition_penalty=1.1)
        run = bushy_run(anatomy, adapter, Variant(deferred), sampling, seed)
        twin = Twin(run, ModelTarget(anatomy))
        steps = tiny.finish(run, twin)
        assert max(len(s.tokens) for s in steps) > 3 and max(len(s.draft) for s in steps) > 30
        assert twin.compared > 20


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_calling_the_layers_is_what_the_model_does(family: str) -> None:
    """Families that add positions to the embedding, as OPT, or to what a layer is given, keep their own forward."""
    anatomy, _ = ready(family, "float32")
    draft = Draft((3, 4, 5), (-1, 0, 0), (1.0,) * 3)
    found = []
    for direct in (True, False):
        target = ModelTarget(anatomy, direct=direct)
        target.prefill(PROMPT)
        assert target._calls is not None and target.cache is not None
        assert target._calls.whole == (family not in OWN_FORWARD)
        found.append(
            [target.verify(7, draft), *(t for layer in target.cache.layers for t in (layer.keys, layer.values))]
        )
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_pruned_rows_change_nothing(kind: str, deferred: bool) -> None:
    anatomy, adapter = ready("llama", kind, exit_rank=2, mode="lossless")
    run = bushy_run(anatomy, adapter, Variant(deferred, prune=0.008), Sampling(max_new_tokens=40), 3)
    steps = tiny.finish(run, Twin(run, ModelTarget(anatomy)))
    assert sum("pruned" in s.draft.fate for s in steps) > 3


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_stock_attention_and_stock_sums_are_caught(family: str) -> None:
    """Mutants: the tests above would detect these faults."""
    anatomy, adapter = ready(family, "float32")
    assert self_test.exact(anatomy)
    anatomy.model.set_attn_implementation("eager")
    failed = 0
    for seed in range(6):
        run = bushy_run(anatomy, adapter, Variant(True), Sampling(max_new_tokens=30), seed)
        try:
            tiny.finish(run, Twin(run, ModelTarget(anatomy)))
        except AssertionError:
            failed += 1
    assert failed


# ---- the real model --------------------------------------------------------------------------------------------------

TEXTS = {
    "sql": "Table: city, country, population\nQuestion: Which cities of Norway have more than a million people?\nSQL:",
    "e2e": "Facts: name[The Salted Fig], eatType[pub], food[Italian], area[riverside]\nText:",
    "dialogsum": "Dialogue: A: Did you book the train? B: Yes, the early one. A: Then I will be up at six.\nSummary:",
    "chat": "User: Why is the sky blue? Explain it to a child.\nAssistant:",
}
SETTINGS = (
    Streaming(budget=5),
    Streaming(budget=33, streams="in-pass", pause=0),
    Streaming(budget=64, pairs="off", pause=0),
    Medusa(budget=16, pause=0),
    PromptLookup(budget=8),
)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(NO_COMPILER, raising=False)
    yield


def differing(engine: Engine, text: str, method: Any, sampling: Sampling) -> int:
    """Steps of a run whose bits are not those of standard decoding."""
    run = engine.new_run(engine.encode(text), engine.settled(method), sampling)
    twin = Twin(run, engine.make_target(Standard()))
    wrong = 0

    def check(run: Run, step: Step) -> None:
        nonlocal wrong
        try:
            twin(run, step)
        except AssertionError:
            wrong += 1

    tiny.finish(run, check)
    assert twin.compared > 8 or wrong
    return wrong


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("task", "kind", "compiled"),
    [(t, k, False) for t, k in zip(TEXTS, ["bfloat16", "float16", "float32", "bfloat16"], strict=True)]
    + [("sql", "bfloat16", True), ("chat", "bfloat16", True)],
)
@pytest.mark.timeout(400)
def test_the_real_model_is_exact(task: str, kind: str, compiled: bool, request: pytest.FixtureRequest) -> None:
    if kind not in FORMATS:
        pytest.skip("this processor does not compute in bfloat16")
    if compiled:
        if shutil.which(os.environ.get("CXX") or "g++") is None:
            pytest.skip("there is no C++ compiler")
        request.getfixturevalue("compiler")
    engine = load("smollm2-135m", task, "cpu", kind)
    engine.refresh(wait=compiled)
    assert engine.info.exact and engine.info.compiled == compiled, engine.info.compiling
    long = TEXTS[task] * (12 if task == "e2e" else 1)
    for index, method in enumerate(SETTINGS):
        sampling = Sampling(max_new_tokens=24, temperature=TEMPERATURES[index % 3], seed=index, ignore_eos=True)
        assert differing(engine, long, method, sampling) == 0


def rounds_one_row_otherwise() -> bool:
    linear = cpu_linear.PackedLinear(torch.randn(2048, 1536).bfloat16())
    rows = torch.randn(64, 1536).bfloat16()
    alone = [cpu_linear._onednn(row[None], linear.packed, None, "none", [], "") for row in rows]
    return not torch.equal(torch.cat(alone), torch.cat([linear(some) for some in rows.split(cpu_linear.LEAST)]))


def test_the_check_at_loading_covers_large_trees() -> None:
    anatomy, _ = ready("llama", "float32")
    assert self_test.exact(anatomy)

    def otherwise(_module: Any, _args: Any, out: Any) -> Any:
        states = out[0] if isinstance(out, tuple) else out
        return states * 1.0001 if states.shape[1] > 32 else out

    with anatomy.layers[1].register_forward_hook(otherwise):
        assert not self_test.exact(anatomy)


@pytest.mark.parametrize("kind", [k for k in ("float32", "bfloat16") if k in FORMATS])
def test_many_rows_have_the_bits_of_few_without_a_compiler(kind: str) -> None:
    """With AMX oneDNN rounds 33 rows or more in another way."""
    dtype = getattr(torch, kind)
    linear, rows = cpu_linear.PackedLinear(torch.randn(2048, 1536).to(dtype)), torch.randn(75, 1536).to(dtype)
    few = torch.cat([linear(some) for some in rows.split(5)])
    assert torch.equal(linear(rows), few) and torch.equal(linear(rows[None]), few[None])
    with attention.prompt_pass():  # faster, and the same for every method
        assert torch.allclose(linear(rows), few, rtol=0.02, atol=0.5)


@pytest.mark.real_model
def test_a_pass_of_one_row_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    if "bfloat16" not in FORMATS:
        pytest.skip("this processor does not compute in bfloat16")
    if not rounds_one_row_otherwise():
        pytest.skip("this processor rounds one row as it rounds many")
    monkeypatch.setattr(native, "multiplies", lambda dtype: False)  # ours rounds one row as it rounds many
    engine = load("smollm2-135m", "sql", "cpu", "bfloat16")
    monkeypatch.setattr(model_target, "LEAST", 1)
    monkeypatch.setattr(cpu_linear, "LEAST", 1)
    found = sum(
        differing(engine, TEXTS[t], Streaming(budget=5, pause=0), Sampling(max_new_tokens=48, ignore_eos=True))
        for t in ("sql", "chat")
    )
    assert found
