"""Memory by method: each in a process that loads only what the method needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.exact_runs import make_tiny
from specstream import bench, engine
from specstream.adapters import weights
from specstream.adapters.card import read_card
from specstream.bench import memory
from specstream.bench.memory import MemoryRequest, NotMeasured
from specstream.model.introspection import dissect
from specstream.params import METHODS, Sampling, method
from specstream.session import token_ids
from tests import tiny
from tests.test_bench import row

METHODS_OF = {"standard": set(), "prompt_lookup": set(), "medusa": {"medusa"}, "early_exit": {"exit"}}


@pytest.fixture(scope="module", params=["shared", "lossless"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an adapter of this mode."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny("llama", folder, request.param)
    return folder


def asked(folder: str, adapter: str, name: str, **changes: Any) -> MemoryRequest:
    sampling = Sampling(max_new_tokens=8).to_dict()
    settings = METHODS[name]().to_dict()
    out = MemoryRequest(folder, adapter, "cpu", "float32", "none", name, settings, sampling, ["5 6 7", "8 9 " * 40])
    return replace(out, **changes)


@pytest.mark.parametrize("name", METHODS_OF)
def test_a_method_gets_only_its_part_of_an_adapter_and_writes_the_same(name: str, model: Path, tmp_path: Path) -> None:
    made = memory.reduced(str(model / "adapter"), str(model), name, tmp_path)
    whole = engine.load(model, model / "adapter", "cpu", "float32")
    part = engine.load(str(model), made, "cpu", "float32")
    assert set(part.info.head_parameters) == {kind and name for kind in METHODS_OF[name]}
    assert "streaming" in part.info.unavailable and name not in part.info.unavailable
    sampling = Sampling(max_new_tokens=16)
    written = [token_ids(list(e.generate("5 6 7 8", method(name), sampling))) for e in (whole, part)]
    assert written[0] == written[1]


def test_streaming_keeps_streams_and_leaves_heads_out(model: Path, tmp_path: Path) -> None:
    part = engine.load(str(model), memory.reduced(str(model / "adapter"), str(model), "streaming", tmp_path), "cpu")
    assert set(part.info.unavailable) == {"medusa", "early_exit", "draft_model"}


def test_nothing_is_left_of_an_adapter_that_only_drafts(model: Path, tmp_path: Path) -> None:
    mode = read_card(model / "adapter").mode
    made = memory.reduced(str(model / "adapter"), str(model), "standard", tmp_path)
    assert (made == "none") == (mode == "lossless")  # its streams are on the untuned base


def test_a_main_lora_is_kept_without_its_streams(tmp_path: Path) -> None:
    anatomy = dissect(tiny.tiny("llama"))
    card = tiny.random_adapter(anatomy, mode="lossless").card
    card = replace(card, main_rank=2, main_scale=0.5)
    adapter = weights.Adapter(anatomy, card)
    assert adapter.main is not None
    for weight in adapter.main.parameters():
        torch.nn.init.normal_(weight)
    weights.save(adapter, tmp_path / "whole", card)
    (tmp_path / "part").mkdir()
    part = weights.load(Path(memory.reduced(str(tmp_path / "whole"), "tiny", "standard", tmp_path / "part")), anatomy)
    assert part.main_lora is not None and part.card.tuning == (2, 0.5)
    want = [w.half().float() for w in adapter.main.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(part.main_lora.parameters(), want, strict=True))


def test_a_process_says_what_it_took(model: Path) -> None:
    out = memory.measured(asked(str(model), str(model / "adapter"), "streaming"))
    assert out.keys() == {"peak_memory", "load_memory"} and min(out.values()) > 50_000_000


def test_a_process_that_fails_is_one_sentence() -> None:
    with pytest.raises(NotMeasured, match="The memory of standard could not be measured: There is no model"):
        memory.measured(asked("no such model!", "none", "standard"))


def test_the_prompts_are_a_short_a_middling_and_a_long_one() -> None:
    assert memory.picked(["aaa", "a", "aaaaa", "aa", "aaaa"]) == ["a", "aaa", "aaaaa"]
    assert memory.picked(["a"]) == ["a"]


def test_the_table_has_the_memory_only_where_it_was_measured() -> None:
    rows = [row(name, [(1, 10, 11, 10), (1, 20, 21, 20)]) for name in ("standard", "streaming")]
    head, *_ = bench.table(bench.result_rows(rows, "e2e"))
    assert "memory" not in head
    rows[1].memory = {"peak_memory": 5_000_000, "load_memory": 7_000_000}
    head, _, plain, ours = bench.table(bench.result_rows(rows, "e2e"))
    assert head.endswith("| memory, MB (loading) |") and plain.endswith("| - |") and ours.endswith("| 5 (7) |")


@pytest.mark.real_model
def test_merged_copies_of_layers_are_in_the_memory_of_streaming_alone() -> None:
    """Eight layers of SmolLM2 again, in bfloat16 or float32."""
    took = {
        name: memory.measured(asked("smollm2-135m", "chat", name, dtype="float32", prompts=["Hello, how are you?"]))
        for name in ("standard", "streaming")
    }
    assert took["streaming"]["peak_memory"] - took["standard"]["peak_memory"] > 80_000_000
