"""The functions in C++: their numbers, the bits of a row beside others, and compiled layers that call them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from specstream import native
from specstream.decoding.softmax import highest, log_total
from specstream.engine import load
from specstream.events import Draft, Step
from specstream.model import attention, cpu_linear, native_linear
from specstream.model.native_linear import FbgemmLinear, NativeLinear
from specstream.params import Sampling, Standard
from specstream.target import compiled, model_target, self_test
from specstream.target.model_target import ModelTarget, Variant
from specstream.target.self_test_cache import SelfTestCache
from tests import tiny
from tests.test_exact import Twin, bushy_run, compiler, ready  # noqa: F401  compiler is a fixture
from tests.test_quantized import next_logits, save

pytestmark = pytest.mark.skipif(native.library() is None, reason="the functions in C++ can't be built here")


KINDS = [torch.float32, *([torch.bfloat16] if native.multiplies(torch.bfloat16) else [])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 48), (17, 6), (960, 576), (50, 64), (1, 2)])
@pytest.mark.parametrize("dtype", KINDS)
def test_a_linear_layer_is_the_product_with_its_weights(
    outputs: int, inputs: int, bias: bool, dtype: torch.dtype
) -> None:
    weight, offset = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype) if bias else None
    linear = NativeLinear(weight, offset)
    weight = weight if dtype == torch.bfloat16 else weight.half()
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    for shape in ((1, inputs), (3, 1, inputs), (70, inputs), (2, 7, inputs)):
        x = torch.randn(shape).to(dtype)
        want = torch.nn.functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
        made = linear(x)
        assert made.shape == (*shape[:-1], outputs) and made.dtype == dtype
        assert torch.allclose(made.double(), want, atol=1e-5 * inputs**0.5, rtol=rounding)


@pytest.mark.parametrize("inputs", [78, 96])  # 96 fill tiles, where the processor has them, and 78 don't
@pytest.mark.parametrize("dtype", KINDS)
def test_a_row_has_the_same_bits_beside_any_others(dtype: torch.dtype, inputs: int) -> None:
    linear, rows = NativeLinear(torch.randn(100, inputs).to(dtype)), torch.randn(75, inputs).to(dtype)
    whole = linear(rows)
    for count in (*range(1, 18), 31, 32, 33, 48, 64, 65):
        for start in range(75 - count + 1):
            assert torch.equal(linear(rows[start : start + count]), whole[start : start + count])


@pytest.mark.skipif(torch.bfloat16 not in KINDS, reason="no bfloat16 here")
def test_a_check_in_float32_uses_the_same_weights() -> None:
    weight, offset, x = torch.randn(50, 20).bfloat16(), torch.randn(50).bfloat16(), torch.randn(3, 20)
    want = torch.nn.functional.linear(x, weight.float(), offset.float())
    assert torch.equal(NativeLinear(weight, offset)(x), want)
    assert torch.equal(
        NativeLinear(weight, offset).floats(x.bfloat16()), NativeLinear(weight, offset)(x.bfloat16()).float()
    )


def test_several_threads_and_a_forked_process_get_the_same_result() -> None:
    linear, rows = NativeLinear(torch.randn(4096, 256)), torch.randn(5, 256)
    want, wrong = linear(rows), []

    def repeat() -> None:
        wrong.extend(i for i in range(300) if not torch.equal(linear(rows), want))

    threads = [threading.Thread(target=repeat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    if (child := os.fork()) == 0:
        os._exit(0 if torch.equal(linear(rows), want) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_weights_beyond_float16_stay_finite_and_rows_need_not_be_contiguous() -> None:
    linear = NativeLinear(torch.tensor([[1e6, -1e6], [1.0, 2.0]]))
    assert linear(torch.tensor([[1.0, 0.0]])).tolist() == [[65504.0, 1.0]]
    x = torch.randn(6, 8).t()
    linear = NativeLinear(torch.randn(5, 6))
    assert torch.equal(linear(x), linear(x.contiguous()))


def attended(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, softcap: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    with torch.inference_mode():
        out, _ = attention.attend(torch.nn.Module(), query, keys, values, mask, softcap=softcap, s_aux=sinks)
    return out


def example(keys: int, dtype: torch.dtype = torch.float32, dim: int = 24, value_dim: int = 80) -> list[Tensor]:
    """Random queries of six heads, and keys and values of two, with a mask that hides many."""
    mask = torch.where(torch.rand(1, 1, 5, keys) < 0.6, 0.0, torch.finfo(dtype).min)
    mask[..., 0] = 0
    shapes = (1, 6, 5, dim), (1, 2, keys, dim), (1, 2, keys, value_dim)
    return [*(torch.randn(shape).to(dtype) for shape in shapes), mask.to(dtype)]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("keys", [16, 64, 112, 256])
def test_attention_is_the_one_in_float64(
    keys: int, sinks: bool, softcap: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, sunk = example(keys, dtype), torch.randn(6) if sinks else None
    own = attended(*given, softcap, sunk)
    assert own.dtype == dtype and own.shape == (1, 5, 6, 80)
    monkeypatch.setattr(native, "takes", lambda *_: False)
    want = attended(*(t.float() for t in given), softcap, sunk)
    assert torch.allclose(own.float(), want, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", KINDS)
def test_what_a_mask_hides_changes_no_bit_wherever_it_lies(dtype: torch.dtype) -> None:
    query, keys, values, _ = example(48, dtype)
    hidden = torch.finfo(dtype).min
    want = attended(query, keys, values, torch.zeros(1, 1, 5, 48, dtype=dtype))
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        place = torch.randperm(336, generator=random)[:48].sort().values
        more_keys, more_values = (torch.randn(1, 2, 336, size).to(dtype) * 9 for size in (24, 80))
        more_keys[:, :, place], more_values[:, :, place] = keys, values
        mask = torch.full((1, 1, 5, 336), hidden, dtype=dtype)
        mask[..., place] = 0
        assert torch.equal(attended(query, more_keys, more_values, mask), want)
        assert torch.equal(attended(query[:, :, 2:3], more_keys, more_values, mask[:, :, 2:3]), want[:, 2:3])


@pytest.mark.parametrize("dtype", KINDS)
def test_a_norm_is_pytorch_s(dtype: torch.dtype) -> None:
    x, weight = (torch.randn(2, 5, 192) * 9).to(dtype), torch.randn(192).to(dtype)
    assert native.takes(dtype, 192)
    made, want = native.rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(x.float(), (192,), weight.float(), 1e-5)
    assert torch.allclose(made.float(), want, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2**-8)
    assert torch.equal(native.rms_norm(x[:, 2:4], weight, 1e-5), made[:, 2:4])


def test_gradients_and_batches_take_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: pytest.fail("called"))
    query, keys, values, mask = example(64)
    attention.attend(torch.nn.Module(), query.requires_grad_(), keys, values, mask)[0].sum().backward()
    assert query.grad is not None
    two = [t.detach().expand(2, *t.shape[1:]) for t in (query, keys, values, mask)]
    assert attended(*two).shape == (2, 5, 6, 80)


@pytest.mark.parametrize("form", ["float16", *(["bfloat16"] if torch.bfloat16 in KINDS else [])])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_layers_call_them_and_stay_exact(family: str, form: str, tmp_path: Path) -> None:
    anatomy, adapter = ready(family, form, gamma=4, mode="lossless")
    assert compiled.can_compile(anatomy)
    want = next_logits(anatomy)
    save(tiny.tiny(family), tmp_path / "model")
    compiled._build(
        tmp_path / "model", anatomy.dtype, out := tmp_path / "library", cpu_linear.format_of(anatomy.layers[0])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "kept", lambda *_: out)
        compiled.attach(anatomy, adapter.merged or ())
    replaced = [layer for layer in anatomy.layers if isinstance(vars(layer).get("forward"), compiled.CompiledLayer)]
    assert replaced
    assert self_test.failure(anatomy, None) is None and self_test.exact(anatomy)
    made = next_logits(anatomy)
    if form == "float16":
        assert torch.allclose(made, want, atol=1e-4)
    assert (made - want).abs().mean() < 0.1 * want.std()  # in bfloat16 they round at other points
    for seed in range(3):
        run = bushy_run(anatomy, adapter, Variant(True), Sampling(max_new_tokens=30, temperature=0.7, seed=seed), seed)
        twin = Twin(run, ModelTarget(anatomy))
        tiny.finish(run, twin)
        assert twin.compared > 10


def test_the_denominator_of_a_softmax_is_that_of_float64() -> None:
    assert native.library() is native.loaded()
    for size in (1, 7, 8, 33, 49152):
        rows = torch.randn(5, size) * 9
        want = rows.double().logsumexp(-1).float()
        assert torch.allclose(log_total(rows), want, atol=2e-6, rtol=2e-6)
        assert torch.equal(log_total(rows, [3, 1, 3]), log_total(rows)[[3, 1, 3]])
    rows[2, 5] = float("nan")
    assert log_total(rows).isnan().tolist() == [False, False, True, False, False]


def test_the_highest_logits_are_those_of_topk() -> None:
    for size, count in ((1, 3), (5, 5), (33, 4), (49152, 12)):
        rows = torch.randn(3, size)
        values, indices = highest(rows, count)
        want = rows.topk(min(count, size))
        assert torch.equal(values, want.values) and torch.equal(indices, want.indices)
    assert highest(torch.zeros(1, 100), 3)[1].tolist() == [[0, 1, 2]]


def test_without_the_functions_the_results_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(4, 1000)
    totals, (values, indices) = log_total(rows, [2, 0]), highest(rows, 5)
    monkeypatch.setattr(native, "loaded", lambda: None)
    assert torch.allclose(log_total(rows, [2, 0]), totals, atol=2e-6)
    assert torch.equal(highest(rows, 5)[0], values) and torch.equal(highest(rows, 5)[1], indices)


def test_functions_that_were_not_asked_for_are_not_built(tmp_path: Path) -> None:
    code = "from specstream import native; assert native.loaded() is native.library(build=False) is None"
    env = os.environ | {"SPECSTREAM_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("home", ["empty", "filled"])
def test_without_leave_nothing_is_compiled_and_nothing_compiled_is_used(home: str, tmp_path: Path) -> None:
    save(tiny.tiny("llama"), tmp_path / "model")
    (tmp_path / "compiler").write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\nexit 1\n")
    (tmp_path / "compiler").chmod(0o755)
    code = (
        "import sys; from specstream import engine, native; from specstream.params import Sampling\n"
        "for dtype in ('float16', 'bfloat16', 'int8'):\n"
        "    made = engine.load(sys.argv[1], 'none', 'cpu', dtype)\n"
        "    list(made.generate('1 2 3', None, Sampling(max_new_tokens=4)))\n"
        "    assert native.library() is native.loaded() is made.layers is None, dtype"
    )
    env = os.environ | {"SPECSTREAM_NO_COMPILER": "1", "CXX": str(tmp_path / "compiler")}
    if home == "empty":
        env["SPECSTREAM_HOME"] = str(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "called").exists() and not (tmp_path / "home" / "compiled").exists()


def test_a_self_test_passed_without_the_functions_says_nothing_about_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with_them = SelfTestCache([])._file("layers")
    monkeypatch.setattr(native, "loaded", lambda: None)
    assert SelfTestCache([])._file("layers") != with_them


def test_without_a_compiler_pytorch_s_matmul_is_used(tmp_path: Path) -> None:
    code = (
        "from specstream import native; from specstream.model.native_linear import half_linear; import torch;"
        "assert native.library() is None; print(type(half_linear(torch.ones(16, 8))).__name__)"
    )
    env = os.environ | {"CXX": "/bin/false", "SPECSTREAM_HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == FbgemmLinear.__name__


def test_a_damaged_library_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_file", lambda: tmp_path / "broken.so")
    (tmp_path / "broken.so").write_bytes(b"no library")
    assert native._library.__wrapped__() is not None
    assert isinstance(native_linear.half_linear(torch.ones(16, 8)), NativeLinear)


def test_a_complete_library_is_put_in_place_whatever_is_there(tmp_path: Path) -> None:
    def made(name: str) -> Path:
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True)
        (folder / compiled.FORM).write_text(name)
        return folder

    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "layer.pt2").write_text("damaged")
    (tmp_path / "kept.new").mkdir()  # what an earlier version left when it was killed
    compiled._install(made("first"), kept)
    assert [file.name for file in kept.iterdir()] == [compiled.FORM]
    compiled._install(made("second"), kept)
    assert (kept / compiled.FORM).read_text() == "first"
    with pytest.raises(OSError):
        compiled._install(made("third"), tmp_path / "no" / "folder")


SLOW = """#!/bin/sh
sleep 60 &
echo $! > {pid}
wait
"""


@pytest.fixture
def slow_compiler(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A compiler that works for a minute in a process of its own, and the file that names that process."""
    command, pid = tmp_path / "slow", tmp_path / "pid"
    command.write_text(SLOW.format(pid=pid))
    command.chmod(0o755)
    yield command, pid
    with suppress(ProcessLookupError):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def ended(pid: Path) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(50):
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(int(pid.read_text())).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


def test_functions_that_take_too_long_to_build_leave_no_compiler(
    slow_compiler: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(slow_compiler[0]))
    monkeypatch.setattr(native, "LIMIT", 1)
    with pytest.raises(subprocess.TimeoutExpired):
        native._build(tmp_path / "out" / "functions.so")
    assert ended(slow_compiler[1]) and not list((tmp_path / "out").iterdir())


def test_layers_that_take_too_long_to_build_leave_no_compiler(
    slow_compiler: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anatomy, _ = ready("llama", "float32", gamma=2, mode="shared")
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "LIMIT", 1)
    monkeypatch.setattr(compiled.compiler, "works", lambda command: True)
    monkeypatch.setattr(compiled, "python", lambda *_: [str(slow_compiler[0])])
    layers = compiled.Layers(anatomy, (), tmp_path, lambda: None)
    assert not layers.use(wait=True) and "the compiler failed" in layers.words
    assert ended(slow_compiler[1])


def test_every_run_starts_with_a_cache_and_none_outlives_it() -> None:
    anatomy, _ = ready("llama", "float32", gamma=2, mode="shared")
    logits = []
    for _ in range(2):
        model_target._CACHED.pop(anatomy.model, None)
        for _ in range(2):
            target = ModelTarget(anatomy)
            target.prefill([1] * 70)
            assert target.cache is not None and all(layer.is_initialized for layer in target.cache.layers)
            logits.append(target.verify(3, Draft()).clone())
            target.release()
    assert all(torch.equal(one, logits[0]) for one in logits)
    (examples,) = model_target._CACHED[anatomy.model].values()
    assert all(t.untyped_storage().nbytes() == 0 for pair in examples for t in pair)


@pytest.mark.real_model
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("compiler")
def test_the_first_run_of_a_process_writes_what_the_second_does() -> None:
    engine = load("smollm2-135m", "dialogsum")
    engine.refresh(wait=True)
    prompt = engine.prompt("dialogsum", "#Person1#: Where shall we go?\n#Person2#: To the lake. Bring your coat. " * 6)
    sampling = Sampling(max_new_tokens=8)

    def probabilities() -> list[float | None]:
        steps = [event for event in engine.generate(prompt, Standard(), sampling) if isinstance(event, Step)]
        return [token.logprob for step in steps for token in step.tokens]

    model_target._CACHED.clear()
    assert probabilities() == probabilities()
