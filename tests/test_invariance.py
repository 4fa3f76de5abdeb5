"""The table of operations: exact ones are reported as exact, and others never are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from specstream import cli
from specstream.bench import invariance
from specstream.bench.invariance import Finding, by_places, by_rows
from specstream.model import attention

BY_ROWS = {
    "depends on the number of rows": lambda x: x + len(x),
    "depends on the place": lambda x: x + torch.arange(len(x))[:, None],
    "depends on the other rows": lambda x: x - x.mean(0),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariance, "PRODUCTS", ((48, 64),))
    monkeypatch.setattr(invariance, "SAMPLES", 2)


@pytest.mark.parametrize("name", BY_ROWS)
def test_what_depends_on_other_rows_is_seen(name: str) -> None:
    assert by_rows(BY_ROWS[name], torch.randn(64, 5), (2, 7)).different > 0


def test_what_depends_on_the_row_alone_is_exact() -> None:
    seen = by_rows(lambda x: x * x.sum(-1, keepdim=True), torch.randn(64, 5), (1, 7, 64))
    assert seen.different == 0 and seen.compared == 5 * (64 + 63 + 64)


def test_what_depends_on_unseen_keys_or_their_number_is_seen() -> None:
    inputs = invariance._inputs(torch.float32, "cpu", 0)

    def ignores_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return v.sum(2)

    def counts_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return torch.full((4, 4), mask.shape[-1])

    def highest(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return v[:, :, mask[0, 0, 0] == 0].amax(2)

    assert by_places(ignores_the_mask, inputs).different > 0
    assert by_places(counts_keys, inputs).different > 0
    assert by_places(highest, inputs).different == 0


def found(words: str) -> list[Finding]:
    everything = [*invariance._linears("cpu"), *invariance._row_by_row("cpu"), *invariance._attentions("cpu")]
    return [invariance._found(o) for o in everything if words in o.name]


def test_an_operation_that_is_not_exact_is_never_called_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    own = functional.rms_norm
    assert all(f.exact for f in found("RMS norm"))
    monkeypatch.setattr(functional, "rms_norm", lambda x, *args: own(x, *args) * (1 + len(x) % 2))
    assert not any(f.exact for f in found("RMS norm"))


def test_stock_attention_in_place_of_ours_is_not_called_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(f.exact for f in found("our attention, float32"))

    def stock(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        return functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2), None

    monkeypatch.setattr(attention, "attend", stock)
    seen = found("our attention, float32")
    assert len(seen) == 2 and not all(f.exact for f in seen)
    assert "our attention, float32" in invariance.verdict(seen)


def test_what_a_build_lacks_is_said_and_not_called_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(invariance, "_onednn", absent)
    seen = found("oneDNN float32 matmul, 1 row")[:1]
    assert seen[0].exact is None
    assert "not here" in list(invariance.table(seen))[-1]


def test_the_command_prints_the_table_and_writes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    seen = [Finding("a sum", "layers", 1000, 0), Finding("another", "", 2000, 3), Finding("a third", "layers", 10, 1)]
    monkeypatch.setattr(invariance, "findings", lambda device: iter(seen))
    cli.main(["invariance", "--device", "cpu", "--json", str(tmp_path / "table.json")])
    lines = capsys.readouterr().out.splitlines()
    assert "threads" in lines[0] and "cpu" in lines[0]
    assert "| a sum | yes | 1,000 | 0 | layers |" in lines and "| another | **no** | 2,000 | 3 | not used |" in lines
    assert lines[-1] == f"{invariance.UNLIKE} a third."
    written = json.loads((tmp_path / "table.json").read_text())
    assert [o["exact"] for o in written["operations"]] == [True, False, False]
