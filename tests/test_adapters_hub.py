"""Adapters on the Hub: what is uploaded, what is fetched, the model card, and one sentence for every failure."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, errors

from specstream import cli
from specstream.adapters import hub as sharing
from specstream.adapters import readme, weights
from specstream.adapters.card import AdapterError, Card, HeadCard, read_card, write_card
from specstream.adapters.find import bundled
from specstream.model.introspection import dissect
from tests import tiny

CARD = Card(
    base="smollm2-135m",
    base_shape={"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152},
    task="e2e",
    mode="shared",
    gamma=4,
    layers=6,
    start_rank=0,
    lora_rank=16,
    lora_scale=2.0,
    data="hub:tuetschek/e2e_nlg_cleaned, 6,599 rows",
    licence="CC BY-SA 4.0",
    command="python -m specstream train --task e2e --data 'a b.jsonl' --out DIR",
    date="2026-01-31",
    training={"base": {"origin": "Hugging Face Hub", "revision": "abc123"}},
    metrics={"tokens_per_step": 3.81234, "hits": [0.75, 0.5], "quality": {"mean": 61.5, "interval": [60, 63]}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A real adapter of a tiny model, with the other files that training leaves."""
    out = tmp_path / "adapter"
    anatomy, adapter = tiny.model_with_adapter("llama")
    weights.save(
        adapter,
        out,
        replace(CARD, base_shape=weights.base_shape(anatomy), gamma=3, layers=2, start_rank=4, lora_rank=2),
    )
    for secret in ("checkpoint/optimizer.bin", "answers.jsonl", ".env", "log.txt"):
        (out / secret).parent.mkdir(exist_ok=True)
        (out / secret).write_text("secret")
    return out


class Hub:
    """A Hub that records calls."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}  # name: private
        self.files: dict[str, bytes] = {}
        self.error: Exception | None = None

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if self.error:
            raise self.error
        assert exist_ok
        self.repos.setdefault(name, private)
        return f"https://huggingface.co/{name}"

    def model_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.repos[name])

    def create_commit(self, name: str, *, operations: list[Any], commit_message: str) -> None:
        assert "e2e" in commit_message and name in self.repos
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(sharing, "hub_reachable", lambda: True)
    return fake


def http_error(kind: Any, status: int) -> Exception:
    """The library's exception for a Hub response with this status."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    error: Exception = kind(f"{status} Client Error\nmore", response=response)
    return error


def message(work: Any, *args: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        work(*args)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


# ---- push ------------------------------------------------------------------------------------------------------------


def test_only_the_adapters_own_files_are_pushed(hub: Hub, folder: Path) -> None:
    assert sharing.push(folder, "me/streams") == "https://huggingface.co/me/streams"
    assert set(hub.files) == {"adapter.safetensors", "card.json", "README.md"}
    assert hub.files["adapter.safetensors"] == (folder / "adapter.safetensors").read_bytes()
    assert b"secret" not in b"".join(hub.files.values())
    assert hub.repos == {"me/streams": False}


def test_heads_are_pushed_with_their_adapter(hub: Hub, folder: Path) -> None:
    card = read_card(folder)
    write_card(folder, replace(card, heads={"medusa": HeadCard("medusa", count=3)}))
    assert "medusa.safetensors is missing" in message(sharing.push, folder, "me/streams")
    (folder / "medusa.safetensors").write_bytes(b"heads")
    (folder / "exit.safetensors").write_bytes(b"not in the card")
    sharing.push(folder, "me/streams")
    assert set(hub.files) == {"adapter.safetensors", "medusa.safetensors", "card.json", "README.md"}
    assert hub.files["medusa.safetensors"] == b"heads" and b"3 Medusa heads" in hub.files["README.md"]


def test_a_missing_readme_is_made_for_the_hub(hub: Hub, folder: Path) -> None:
    sharing.push(folder, "hub:me/streams", private=True)
    assert b'adapter="hub:me/streams"' in hub.files["README.md"] and not (folder / "README.md").exists()
    assert hub.repos == {"me/streams": True}
    (folder / "README.md").write_text("my own words")
    sharing.push(folder, "me/streams", private=True)
    assert hub.files["README.md"] == b"my own words"


def test_nothing_private_goes_into_a_public_repository(hub: Hub, folder: Path) -> None:
    hub.repos["me/streams"] = False
    assert "is public" in message(sharing.push, folder, "me/streams", True)
    assert hub.files == {}


def test_what_cannot_be_pushed(hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "card.json is missing" in message(sharing.push, tmp_path, "me/streams")
    assert "OWNER/NAME" in message(sharing.push, folder, "streams")
    assert "without a revision" in message(sharing.push, folder, "me/streams@v1")
    hub.error = http_error(errors.HfHubHTTPError, 403)
    assert "can't write to me/streams" in message(sharing.push, folder, "me/streams")
    hub.error = OSError("connection reset\nagain")
    assert "failed (connection reset)" in message(sharing.push, folder, "me/streams")
    monkeypatch.setattr(sharing, "hub_reachable", lambda: False)
    assert "can't be reached" in message(sharing.push, folder, "me/streams")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "not logged in" in message(sharing.push, folder, "me/streams")
    (folder / "adapter.safetensors").unlink()
    assert "adapter.safetensors is missing" in message(sharing.push, folder, "me/streams")
    assert hub.files == {}


# ---- fetch -----------------------------------------------------------------------------------------------------------


def download(monkeypatch: pytest.MonkeyPatch, result: Path | Exception) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append({"name": name} | options)
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_fetch_gives_a_folder_that_loads(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = download(monkeypatch, folder)
    for name in ("me/streams", "hub:me/streams"):
        assert sharing.fetch(name) == folder
    assert weights.load(sharing.fetch("me/streams@v1"), dissect(tiny.tiny("llama"))).card.gamma == 3
    assert [a["revision"] for a in asked] == [None, None, "v1"]
    assert all(a["name"] == "me/streams" and not a["local_files_only"] for a in asked)
    own = {"adapter.safetensors", "medusa.safetensors", "exit.safetensors", "card.json", "README.md"}
    assert set(asked[0]["allow_patterns"]) == own


def test_fetch_without_a_network_takes_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = download(monkeypatch, folder)  # the environment of all tests keeps the Hub out
    assert sharing.fetch("me/streams") == folder and asked[0]["local_files_only"]


FAILURES = {
    "unknown": (http_error(errors.RepositoryNotFoundError, 404), "There is no public adapter me/streams"),
    "gated": (http_error(errors.GatedRepoError, 403), "is gated"),
    "revision": (http_error(errors.RevisionNotFoundError, 404), "has no revision v1"),
    "broken off": (OSError("disk full"), "failed (disk full)"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    error, words = FAILURES[name]
    download(monkeypatch, error)
    assert words in message(sharing.fetch, "me/streams@v1")


def test_offline_and_not_in_the_cache() -> None:
    """The real library, kept off the network by the environment of all tests."""
    assert "can't be reached" in message(sharing.fetch, "nobody/nothing-like-this")


def test_what_is_no_adapter(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("streams", "a/b/c", "../x", "a b/c", ""):
        assert "OWNER/NAME" in message(sharing.fetch, name)
    download(monkeypatch, folder)
    (folder / "card.json").write_text("{")
    assert "damaged" in message(sharing.fetch, "me/streams")
    (folder / "card.json").unlink()
    assert "me/streams on the Hugging Face Hub is not an adapter" in message(sharing.fetch, "me/streams")


def test_the_hubs_cache_is_listed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache as the library lays it out: one repository with an adapter, one with something else."""
    cache = tmp_path / "cache"
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan(cache))
    assert sharing.fetched() == {}
    for name, files in (("streams", ("adapter.safetensors", "card.json")), ("model", ("card.json",))):
        snapshot = cache / f"models--me--{name}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        for file in files:
            shutil.copy(folder / file, snapshot / file)
    found = cache / "models--me--streams" / "snapshots" / "abc"
    assert sharing.fetched() == {"hub:me/streams": found}
    (found / "card.json").write_text("{")
    assert sharing.fetched() == {}


# ---- model card ------------------------------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_reads() -> None:
    data = ModelCard(readme.text(CARD)).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and data.license == "cc-by-sa-4.0"
    assert data.datasets == ["tuetschek/e2e_nlg_cleaned"] and data.library_name == "specstream"
    assert {"speculative-decoding", "e2e", "shared"} <= set(data.tags)


def test_the_card_says_what_was_done(tmp_path: Path) -> None:
    words = readme.write(tmp_path, CARD).read_text(encoding="utf-8")
    assert CARD.command in words and CARD.date in words and "| base revision | abc123 |" in words
    assert "| tokens per step | 3.812 |" in words and "| quality | mean 61.5, interval 60, 63 |" in words
    assert 'specstream.load("smollm2-135m", adapter="FOLDER")' in words


def test_the_card_shows_every_stage_and_how_it_went() -> None:
    looks = [{"step": s, "seconds": 60.0 * s, "losses": [1.0], "tokens_per_step": 2 + s / 10} for s in (1, 2)]
    first = {"command": "the first stage", "date": "2026-01-01", "progress": {"history": looks[:1]}}
    card = replace(CARD, exit_rank=8, training={"earlier": [first], "progress": {"history": looks[1:]}})
    words = readme.text(card)
    assert words.index("the first stage") < words.index(CARD.command)
    assert "| 1 | 1 | 1 | 2.10 |\n| 2 | 2 | 2 | 2.20 |" in words
    assert "then each stream, then the early exit |" in words
    assert "## Validations" not in readme.text(CARD)


def test_a_base_that_is_a_folder_and_a_licence_of_ones_own() -> None:
    card = replace(CARD, base="/some/folder", licence="Mine | only", data="FILE.jsonl in the form of a/b", metrics={})
    words = readme.text(card)
    data = ModelCard(words).data
    assert data.base_model is None and data.license == "other" and data.datasets is None
    assert "| licence of the data | Mine \\| only |" in words and "## Metrics" not in words


@pytest.mark.parametrize("mode", readme.MODES)
def test_every_mode_has_its_words(mode: str) -> None:
    words = readme.text(replace(CARD, mode=mode, gamma=0 if mode == "plain" else 4))
    assert f"| mode | {mode}: {readme.MODES[mode]} |" in words
    assert ("| streams | 4, in the top 6 layers |" in words) == (mode != "plain")


def test_bundled_adapters_have_cards_that_can_be_written() -> None:
    for folder in bundled("smollm2-135m").values():
        assert ModelCard(readme.text(read_card(folder))).data.base_model


# ---- command line ----------------------------------------------------------------------------------------------------


def run(args: list[str]) -> int:
    try:
        cli.main(["adapters", *args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_commands(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(["push", str(folder), "me/streams", "--private"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/me/streams\n" and hub.repos == {"me/streams": True}
    download(monkeypatch, folder)
    assert run(["pull", "me/streams"]) == 0
    assert "--adapter hub:me/streams" in capsys.readouterr().out
    monkeypatch.setattr(sharing, "fetched", lambda: {"hub:me/streams": folder})
    assert run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("e2e ") and "smollm2-135m" in line for line in lines)
    assert any(line.startswith("hub:me/streams ") and "CC BY-SA 4.0" in line for line in lines)
    assert run(["pull", "streams"]) != 0 and capsys.readouterr().err.startswith("error: ")
