"""int8: rows are independent of each other, drafts change nothing, and the model is close to 16 bits."""

from __future__ import annotations

import copy
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts.quality_of_formats import distances, texts_of
from specstream import engine, native
from specstream.bench import baselines
from specstream.events import Draft
from specstream.hub.download import ModelError
from specstream.model import attention, cpu_linear, hardware, quantized
from specstream.model.cpu_linear import Format
from specstream.model.devices import choose_dtype
from specstream.model.introspection import Anatomy, dissect
from specstream.model.quantized import Int8Linear, NativeInt8, OneDnnInt8, int8_linear
from specstream.params import Medusa, Sampling, Standard, Streaming
from specstream.session import token_ids
from specstream.target import compiled, self_test
from specstream.target.model_target import ModelTarget
from tests import tiny
from tests.test_heads import medusa_run, random_heads
from tests.tiny import save

pytestmark = pytest.mark.skipif(not quantized.works(), reason="this processor has no fast product of bytes")
DTYPE = torch.bfloat16 if hardware.computes_bfloat16("cpu") else torch.float32
SAMPLES = tuple(torch.tensor([tiny.prompt(length, length)]) for length in (20, 9))
PROMPT = tiny.prompt(21)


def linear(out: int = 960, width: int = 576, bias: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
    """A weight, a bias, and rows of which some channels are far larger than the rest."""
    torch.manual_seed(0)
    rows = torch.randn(64, width)
    rows[:, ::50] *= 30
    return torch.randn(out, width) * width**-0.5, torch.randn(out) if bias else None, rows


def in_int8(family: str = "llama", mode: str = "shared") -> tuple[Anatomy, object]:
    """A tiny model with an adapter, packed as ``load`` does it."""
    anatomy = dissect(tiny.tiny(family).to(DTYPE))
    adapter = tiny.random_adapter(anatomy, mode=mode)
    adapter.ready(anatomy)
    form = cpu_linear.calibrated(anatomy, SAMPLES)
    adapter.merge_copies(anatomy, form)
    anatomy = cpu_linear.pack(anatomy, form)
    attention.install(anatomy.model)
    return anatomy, adapter


# ---- the product -----------------------------------------------------------------------------------------------------

KINDS = [OneDnnInt8, *([NativeInt8] if native.multiplies(torch.int8) else [])]


@pytest.mark.skipif(NativeInt8 not in KINDS, reason="the functions in C++ can't be built here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("out", [960, 50, 3])
def test_both_kinds_compute_the_same(dtype: torch.dtype, out: int) -> None:
    weight, bias, rows = linear(out=out)
    one, other = (kind(weight, bias, rows.abs().amax(0))(rows.to(dtype)) for kind in (NativeInt8, OneDnnInt8))
    ours = NativeInt8(weight, bias, rows.abs().amax(0))
    assert torch.equal(ours.floats(rows.to(dtype)), ours(rows.to(dtype)).float())
    assert torch.allclose(one.float(), other.float(), atol=1e-4, rtol=1e-5 if dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_is_told_by_its_outputs(kind: type[Int8Linear]) -> None:
    weight, _, rows = linear(bias=False)
    rows[1, 3], rows[2, 4] = float("nan"), float("inf")
    assert kind(weight)(rows[:4]).isnan().any(-1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(
    dtype: torch.dtype, bias: bool, kind: type[Int8Linear]
) -> None:
    weight, bias_of, rows = linear(bias=bias)
    made, rows = kind(weight, bias_of, rows.abs().amax(0)), rows.to(dtype)
    with torch.inference_mode():
        whole = made(rows)
        assert whole.dtype == dtype
        for count in range(1, 33):
            for first in (0, 1, 5, 31):
                assert torch.equal(made(rows[None, first : first + count])[0], whole[first : first + count])


def test_large_channels_cost_little_once_their_size_is_in_the_weights() -> None:
    weight, bias, rows = linear()
    plain, smooth = (
        quantized.error(int8_linear(weight, bias, seen), weight, rows) for seen in (None, rows.abs().amax(0))
    )
    assert smooth < 0.02 < 2 * smooth < plain


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_of_huge_numbers_stay_finite(kind: type[Int8Linear]) -> None:
    weight, _, rows = linear(bias=False)
    rows[0], rows[1] = 0, rows[1] * 1e30
    with torch.inference_mode():
        out = kind(weight)(rows)
    assert not out[0].any() and out.isfinite().all()


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_linear_layer_that_int8_changes_much_stays_as_it_is_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = dissect(tiny.tiny("llama").to(DTYPE))
    down = anatomy.layers[0].mlp.down_proj.weight.shape
    monkeypatch.setattr(quantized, "error", lambda made, weight, rows: 1.5 * cpu_linear.WORST * (weight.shape == down))
    form = cpu_linear.calibrated(anatomy, SAMPLES)
    assert form.kept == {"mlp.down_proj"}
    cpu_linear.pack(anatomy, form)
    kinds = cpu_linear.PackedLinear | cpu_linear.NativeLinear
    assert all(isinstance(layer.mlp.down_proj, kinds) for layer in anatomy.layers)
    assert cpu_linear.format_of(anatomy.layers[0]) == Format("int8", kept=form.kept)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("family", "mode"), [("llama", "shared"), ("qwen3", "lossless"), ("opt", "shared")])
def test_every_method_writes_what_standard_decoding_writes(family: str, mode: str, temperature: float) -> None:
    anatomy, adapter = in_int8(family, mode)
    assert cpu_linear.format_of(anatomy.layers[0]).name == "int8" and self_test.failure(anatomy, adapter) is None
    for seed in range(3):
        sampling = Sampling(max_new_tokens=32, temperature=temperature, seed=seed)
        want = tiny.ids_of(tiny.finish(tiny.standard_run(anatomy, PROMPT, sampling)))
        for streams in ("in-pass", "deferred"):
            run = tiny.streaming_run(anatomy, adapter, PROMPT, sampling, Streaming(budget=12, streams=streams))
            assert tiny.ids_of(tiny.finish(run)) == want
        beside = random_heads(anatomy)
        beside.ready(anatomy, None)
        assert tiny.ids_of(tiny.finish(medusa_run(anatomy, beside, PROMPT, sampling, Medusa(budget=12)))) == want


def test_copies_of_layers_are_of_the_structure_of_the_layers() -> None:
    anatomy, adapter = in_int8(mode="lossless")
    assert adapter.merged
    for copied, own in zip(reversed(adapter.merged), reversed(anatomy.layers), strict=False):
        assert compiled.shapes(copied) == compiled.shapes(own)


def test_a_check_in_float32_computes_with_the_same_whole_numbers() -> None:
    anatomy, _ = in_int8()
    ids = torch.tensor([PROMPT])
    with torch.inference_mode(), engine._float32(anatomy.model)():
        logits = anatomy.model(ids).logits
    assert logits.dtype == torch.float32 and logits.isfinite().all()


def next_logits(anatomy: Anatomy) -> Tensor:
    """Logits of a standard step after the prompt."""
    target = ModelTarget(anatomy)
    target.prefill(PROMPT)
    return target.verify(7, Draft())


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_compiled_layers_compute_the_same(tmp_path: Path) -> None:
    model = tiny.tiny("llama").to(DTYPE)
    save(model, tmp_path / "model")
    anatomy = dissect(copy.deepcopy(model))
    anatomy = cpu_linear.pack(anatomy, cpu_linear.calibrated(anatomy, SAMPLES))
    attention.install(anatomy.model)
    want = next_logits(anatomy)
    compiled._build(tmp_path / "model", DTYPE, out := tmp_path / "library", cpu_linear.format_of(anatomy.layers[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "kept", lambda *_: out)
        compiled.attach(anatomy)
    assert all(isinstance(vars(layer).get("forward"), compiled.CompiledLayer) for layer in anatomy.layers)
    assert self_test.failure(anatomy, None) is None and self_test.exact(anatomy)
    assert (next_logits(anatomy) - want).abs().mean() < 0.1 * want.std()  # they round at other points


def test_a_library_is_of_one_format(tmp_path: Path) -> None:
    kept = set()
    for form in (cpu_linear.NATIVE, Format("int8"), Format("int8", kept=frozenset({"mlp.down_proj"}))):
        anatomy = cpu_linear.pack(dissect(tiny.tiny("llama").to(DTYPE)), form)
        kept.add(compiled.kept(anatomy))
    assert len(kept) == 3


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_int8_is_chosen_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, words = choose_dtype("int8", "cpu")
    assert kind == DTYPE and words.startswith("you chose it") and "the reference" in words
    assert "8 bits" not in choose_dtype("auto", "cpu")[1]
    with pytest.raises(ModelError, match=r"^int8 is for processors .* not for the device cuda: choose auto\.$"):
        choose_dtype("int8", "cuda")
    monkeypatch.setattr(quantized, "works", lambda: False)
    with pytest.raises(ModelError, match="not for this processor"):
        choose_dtype("int8", "cpu")


def test_a_loaded_model_says_that_it_is_in_int8(tmp_path: Path) -> None:
    save(tiny.tiny("llama"), tmp_path)
    loaded = engine.load(str(tmp_path), adapter="none", device="cpu", dtype="int8")
    assert loaded.info.dtype == "int8" and loaded.info.exact and not loaded.info.unavailable.keys() & {"prompt_lookup"}
    with pytest.raises(baselines.ReferenceUnavailable, match="choose another dtype"):
        baselines.references(["hf"], loaded, "none", None)
    auto = engine.load(str(tmp_path), adapter="none", device="cpu")
    assert auto.info.dtype != "int8"


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_a_model_without_layers_for_int8_is_refused(family: str, tmp_path: Path) -> None:
    save(tiny.tiny(family), tmp_path)
    with pytest.raises(ModelError, match=r"^No linear layer of this model can be computed in int8"):
        engine.load(str(tmp_path), adapter="none", device="cpu", dtype="int8")


# ---- the shipped model -----------------------------------------------------------------------------------------------

E2E = "name[The Salted Fig], eatType[pub], food[Italian], area[riverside], near[Harbour Hall]"
SQL = "CREATE TABLE lakes (lake VARCHAR, depth INTEGER, region VARCHAR)\n\nWhat is the total depth in the region North?"
CHAT = "Give me three tips for a job interview."
FURTHEST = 0.015  # nats of KL to float32 on average; bfloat16 has 0.0005


@cache
def loaded(adapter: str) -> engine.Engine:
    return engine.load("smollm2-135m", adapter, device="cpu", dtype="int8")


@pytest.mark.real_model
@pytest.mark.parametrize(("task", "text"), [("e2e", E2E), ("sql", SQL), ("chat", CHAT)])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_streaming_and_medusa_equal_standard_on_the_shipped_model(task: str, text: str, temperature: float) -> None:
    ours = loaded(task)
    prompt, sampling = ours.prompt(task, text), Sampling(max_new_tokens=40, temperature=temperature)
    want = token_ids(list(ours.generate(prompt, Standard(), sampling)))
    for method in (Streaming(budget=12, pause=0), Medusa(budget=12, pause=0)):
        if method.name not in ours.info.unavailable:
            assert token_ids(list(ours.generate(prompt, method, sampling))) == want


@pytest.mark.real_model
def test_int8_is_close_to_float32_on_the_models_own_answers() -> None:
    exact = engine.load("smollm2-135m", "none", device="cpu", dtype="float32")
    texts = texts_of(exact, ["Why is the sky blue?", "Write a short invitation to a birthday party."], 40)
    far, same = distances(exact, loaded("none"), texts)
    assert far < FURTHEST and same > 0.9
