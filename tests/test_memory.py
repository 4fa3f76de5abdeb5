"""Memory: how much a model will need, and that it is freed when another is loaded or the model is unloaded."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import huggingface_hub
import pytest
import torch

from specstream.cli.options import no_garbage_collection
from specstream.hub.download import ModelError
from specstream.model import cpu_linear, devices, memory
from specstream.model.memory import Need
from specstream.params import Sampling, Standard
from tests import tiny
from tests.tiny import save
from ui.access_rules import DEMO, Refused
from ui.components import model_panel
from ui.html import render
from ui.jobs.engine_host import Busy, Engines, NotLoaded

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(tiny.tiny("llama"), path)
    return path


@pytest.fixture
def engines(folder: Path) -> Iterator[Engines]:
    engines = Engines({"model": str(folder), "adapter": "none", "device": "cpu", "dtype": "float32"})
    loaded(engines)
    yield engines


def loaded(engines: Engines, **choice: str) -> None:
    engines.load(**choice)
    state = list(engines.watch(0.01))[-1]
    assert state.info and not state.error, state.error


def network(engines: Engines) -> Any:
    """A weak reference to the weights that the engine runs on, after it has run."""
    with engines.lend(threading.Event(), print) as engine:
        list(engine.generate("1 2 3", Standard(), Sampling(max_new_tokens=3)))
        return weakref.ref(engine), weakref.ref(engine.make_target(Standard()).anatomy.layers)


def test_what_a_folder_needs_is_its_parameters_times_bytes_and_its_cache(folder: Path) -> None:
    parameters = sum(p.numel() for p in tiny.tiny("llama").parameters())
    per_token = 2 * 4 * 2 * 16  # keys and values, layers, heads, width of a head
    assert memory.need(str(folder), "cpu", "float32") == Need(4 * parameters, 4 * per_token * 256, 256)
    assert memory.need(str(folder), "cpu", "bfloat16") == Need(2 * parameters, 2 * per_token * 256, 256)
    loaded_first = (
        4 if cpu_linear.works(half=True) else 2
    )  # bytes: float16 is packed from float32, and computes in float32
    assert memory.need(str(folder), "cpu", "float16") == Need(
        loaded_first * parameters, loaded_first * per_token * 256, 256
    )


def test_what_is_not_here_is_estimated_from_the_catalogue_or_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.catalogue, "here", lambda name: None)
    assert memory.need("smollm2-1.7b", "cpu", "float32") == Need(4 * 1_711_376_384)
    assert memory.need("someone/something", "cpu", "float32") is None  # the Hub can't be reached
    answer = SimpleNamespace(safetensors=SimpleNamespace(total=10))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **_: answer)
    assert memory.need("someone/something", "cpu", "bfloat16") == Need(20)


def test_need_is_told_in_words() -> None:
    told = render.memory_need(Need(538_000_000, 377_000_000, 8192), 6_000_000_000)
    assert "need 0.54 GB, and up to 0.38 GB more for a text of 8,192 tokens. 6.00 GB are free now." in told
    assert "It will not fit" in render.memory_need(Need(14_000_000_000), 6_000_000_000)
    assert "known once it is fetched" in render.memory_need(None, 6_000_000_000)
    assert "There is no device" in model_panel.need_words("smollm2-135m", "abacus", "auto")
    assert model_panel.need_words("toy", "auto", "auto") == ""


def test_a_model_larger_than_its_gpu_can_be_offloaded_from_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded into main memory, so that is what it must fit into."""
    choice = {"model": "toy", "adapter": "auto", "device": devices.OFFLOAD, "dtype": "auto"}
    with gr.Blocks():
        panel, _ = model_panel.layout(Engines(choice), lambda: None)
    labels = dict((name, label) for label, name in panel.device.choices)
    assert panel.device.value == devices.OFFLOAD and "larger than its GPU" in labels[devices.OFFLOAD]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Small GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 2000))
    assert memory.free("cuda") == 1000 < memory.free(devices.OFFLOAD)
    assert "will not fit" not in model_panel.need_words("smollm2-135m", devices.OFFLOAD, "float32")


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    folder: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    with pytest.raises(ModelError, match="unload the current model first"):
        memory.check(str(folder), "cpu", "float32")
    engines.load()
    state = list(engines.watch(0.01))[-1]
    assert "are free: unload the current model first" in state.error and state.info  # the one before stays in use


def test_the_model_before_is_gone_when_another_is_loaded(engines: Engines) -> None:
    engine, weights = network(engines)
    assert engine() and weights()
    loaded(engines)
    assert engine() is None and weights() is None


def test_no_collection_in_a_run_looks_at_what_was_loaded() -> None:
    memory.give_back()
    assert len(gc.get_objects()) < gc.get_freeze_count()
    gc.unfreeze()
    with no_garbage_collection():
        loaded = [[] for _ in range(1000)]
    assert len(gc.get_objects()) < gc.get_freeze_count() and loaded


def test_unload_gives_the_model_back_and_a_run_says_what_to_do(engines: Engines) -> None:
    engine, weights = network(engines)
    engines.unload()
    assert list(engines.watch(0.01))[-1].info is None
    assert engine() is None and weights() is None
    with pytest.raises(NotLoaded, match="press Load"), engines.lend(threading.Event(), print):
        pass
    loaded(engines)  # and back again


def test_unload_waits_for_the_run_that_has_the_model_and_is_not_for_a_demo(engines: Engines) -> None:
    with engines.lend(threading.Event(), print) as engine:
        engines.unload()
        with pytest.raises(Busy):
            engines.unload()
        assert engines.state.info and engine.info
        del engine
    assert list(engines.watch(0.01))[-1].info is None
    with pytest.raises(Refused, match="others may be using it"):
        Engines(engines.choice, rules=DEMO).unload()


def test_no_adapter_is_listed_by_a_name_that_gradio_translates() -> None:
    assert model_panel.labelled(["auto", "code"])[0] == ("auto", "auto")
    label, name = model_panel.labelled(["auto", "code"])[1]
    assert name == "code" and label.startswith("code: ")


def test_the_panel_says_what_is_used_and_offers_to_unload(engines: Engines) -> None:
    with gr.Blocks():
        panel, _ = model_panel.layout(engines, lambda: None)
    updates = panel.updates(engines.state)
    assert "the whole program uses" in updates[panel.card] and "are free" not in updates[panel.card]
    assert updates[panel.unload]["interactive"]
    engines.unload()
    state = list(engines.watch(0.01))[-1]
    updates = panel.updates(state)
    assert updates[panel.card] == "" and not updates[panel.unload]["interactive"]
    assert model_panel.title(state).startswith("Model: none yet")
