"""A model with layers in main memory and on disk drafts, and writes the same text as when loaded whole."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import pytest

from specstream.params import Sampling
from specstream.target.offload import spread_out
from tests import tiny

SAMPLING = Sampling(max_new_tokens=20, ignore_eos=True)


def test_the_files_of_a_model_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    anatomy, _ = tiny.model_with_adapter("llama")
    spread_out(anatomy, "cpu", {"cpu": 1, "disk": "1GB"})
    assert list(tmp_path.glob("specstream-offload-*/*"))
    del anatomy
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_a_model_in_pieces_drafts_and_writes_the_same(family: str) -> None:
    anatomy, adapter = tiny.model_with_adapter(family)
    prompt = tiny.prompt(9, 1)
    whole = tiny.finish(tiny.streaming_run(anatomy, adapter, prompt, SAMPLING))
    size = sum(p.numel() * p.element_size() for p in anatomy.layers[0].parameters())
    others = sum(p.numel() * p.element_size() for p in anatomy.model.parameters()) - len(anatomy.layers) * size
    room = {"cpu": int(2.5 * size) + others, "disk": 100 * size}
    places = spread_out(anatomy, "cpu", room)
    layers = [place for name, place in places.items() if "layers." in name]
    assert "disk" in layers and "cpu" in layers and len(layers) == len(anatomy.layers)
    assert any(p.device.type == "meta" for p in anatomy.layers[-1].parameters())
    pieces = tiny.finish(tiny.streaming_run(anatomy, adapter, prompt, SAMPLING))
    assert tiny.ids_of(pieces) == tiny.ids_of(whole)
    assert [s.draft.tokens for s in pieces] == [s.draft.tokens for s in whole]
