"""Devices and number formats: the choice for each kind of hardware, and its reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from specstream import native
from specstream.hub.download import ModelError
from specstream.model import cpu_linear, devices
from specstream.model.devices import choose_device, choose_dtype
from specstream.training.config import Config


def machine(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False, **cpu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)


def test_device_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True, mps=True)
    assert choose_device() == ("cuda", "a CUDA GPU was found (Test GPU)")
    machine(monkeypatch, mps=True)
    assert choose_device() == ("mps", "an Apple GPU was found")
    machine(monkeypatch)
    assert choose_device() == ("cpu", "no GPU was found")


def test_a_chosen_device_is_honoured_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True)
    assert choose_device("cpu")[0] == "cpu" and choose_device("cuda")[0] == "cuda"
    with pytest.raises(ModelError, match="no Apple GPU"):
        choose_device("mps")
    machine(monkeypatch)
    with pytest.raises(ModelError, match="no CUDA GPU on this machine: choose device auto or cpu"):
        choose_device("cuda")
    with pytest.raises(ModelError, match="no device 'tpu'"):
        choose_device("tpu")


def test_offloading_says_what_it_offloads_from(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True)
    device, reason = choose_device(devices.OFFLOAD)
    assert device == "cuda" and reason.endswith(
        "found (Test GPU); layers that don't fit wait in main memory and on disk"
    )
    machine(monkeypatch)
    assert choose_device(devices.OFFLOAD) == ("cpu", "no GPU was found; layers that don't fit wait on disk")


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_dtype_auto_on_a_processor(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    machine(monkeypatch, **{flag: True})
    assert choose_dtype("auto", "cpu") == (torch.bfloat16, "the hardware computes in bfloat16")
    machine(monkeypatch, **{flag: False, "avx2": True})
    for works, kind in ((True, torch.float16), (False, torch.float32)):
        monkeypatch.setattr(cpu_linear, "works", lambda half, works=works: works)
        assert choose_dtype("auto", "cpu") == (kind, "the hardware has no bfloat16 arithmetic")


@pytest.mark.parametrize("native", [True, False])
def test_dtype_auto_on_gpus(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_dtype("auto", "cuda")[0] == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("auto", "mps")[0] == torch.float16


def test_a_chosen_dtype_is_honoured_or_refused() -> None:
    for name in ("float32", "bfloat16", "float16"):
        assert choose_dtype(name, "cpu") == (getattr(torch, name), "you chose it")
    with pytest.raises(ModelError, match="no dtype 'int4'"):
        choose_dtype("int4", "cpu")


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp16")])
def test_training_takes_bfloat16_only_where_the_gpu_computes_in_it(
    native: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert Config().chosen_precision("cuda") == precision
    assert Config(precision="bfloat16").chosen_precision("cuda") == "bf16"


def test_training_multiplies_in_the_format_that_decoding_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("avx512_bf16", "amx_bf16", "bf16"):
        machine(monkeypatch, **{flag: True})
        assert Config().chosen_precision("cpu") == "bf16" and Config().chosen_precision("mps") == "no"
    machine(monkeypatch, avx2=True)
    assert Config().chosen_precision("cpu") == "no"


@pytest.mark.parametrize(
    ("kind", "is_packed", "tiles", "nodes"),
    [
        (torch.bfloat16, True, True, 12),
        (torch.bfloat16, True, False, 0),
        (torch.bfloat16, False, True, 0),
        (torch.float32, True, True, 0),
    ],
)
def test_more_nodes_are_drafted_where_a_matmul_takes_sixteen_rows_at_a_time(
    kind: torch.dtype, is_packed: bool, tiles: bool, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, amx_bf16=tiles)
    found, reason = devices.cheap_nodes(kind, is_packed)
    assert found == nodes and ("AMX" in reason) == (nodes == 12)


def test_float16_drafts_what_the_matmul_takes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "rows", lambda: 14)  # as with AVX-512
    assert devices.cheap_nodes(torch.float32, True, half=True)[0] == 0
    monkeypatch.setattr(native, "rows", lambda: 6)
    found, reason = devices.cheap_nodes(torch.float32, True, half=True)
    assert found == 5 and "six rows" in reason


def test_float16_on_a_processor_is_loaded_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "works", lambda half: True)
    assert devices.loaded_in(torch.float16, "cpu") == (torch.float32, True)
    assert devices.loaded_in(torch.float16, "cuda") == (torch.float16, False)
    assert devices.loaded_in(torch.bfloat16, "cpu") == (torch.bfloat16, False)


def test_the_choices_cost_no_torch() -> None:
    code = "import sys, specstream.model.devices, specstream.training.config; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
