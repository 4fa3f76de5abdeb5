"""Self-test at load, models that can't verify trees, text as it streams, adapters on disk, parameters."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.integrations import sdpa_attention

from specstream import cli
from specstream.adapters import heads, local, weights
from specstream.adapters.card import CARD, WEIGHTS, AdapterError, Card, read_card, write_card
from specstream.adapters.find import find_adapter
from specstream.bench import baselines
from specstream.decoding.detokenize import TextStream
from specstream.decoding.drafters.standard import StandardDrafter
from specstream.decoding.loop import decode
from specstream.decoding.sampling import Picker
from specstream.divergence import difference
from specstream.engine import _float32, load
from specstream.events import Finished, Reason, Started, Step, from_dict, to_dict
from specstream.hub.catalogue import resolve
from specstream.hub.download import ModelError
from specstream.model import cpu_linear
from specstream.model.hardware import computes_bfloat16
from specstream.model.introspection import UnsupportedModel, context_of, dissect
from specstream.model.pretrained import load_model
from specstream.params import METHODS, MOST_NODES, NODES, LevelTree, PromptLookup, Sampling, Standard, Streaming, method
from specstream.session import run_session
from specstream.stats import speedup, summarize
from specstream.target import self_test
from specstream.target.model_target import ModelTarget, PlainTarget, Variant
from specstream.testing import toy
from tests import tiny
from tests.tiny import save


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_selftest_passes(family: str) -> None:
    anatomy, adapter = tiny.model_with_adapter(family)
    assert self_test.failure(anatomy, None) is None
    assert self_test.failure(anatomy, adapter) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_selftest_catches_a_wrong_mask_and_wrong_positions(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = dissect(tiny.tiny(family))
    with monkeypatch.context() as patch:
        patch.setattr(
            "specstream.target.model_target.tree_mask",
            lambda rows, prefix: torch.ones(1, len(rows), prefix + len(rows)) > 0,
        )
        assert "failed the tree self-test" in str(self_test.failure(anatomy, None))
    with monkeypatch.context() as patch:
        patch.setattr("specstream.events.Draft.depths", lambda draft: tuple(range(1, len(draft) + 1)))
        assert "failed the tree self-test" in str(self_test.failure(anatomy, None))


def test_selftest_catches_wrong_deferred_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")
    monkeypatch.setattr(
        "specstream.target.model_target.ahead", lambda positions, gamma, context: positions.repeat_interleave(gamma, 1)
    )
    assert "failed the tree self-test" in str(self_test.failure(anatomy, adapter))


SMALL = {"vocab_size": tiny.VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
REFUSED = {
    "bloom": "takes no position ids (as those with ALiBi), which a draft tree needs",
    "falcon": "takes no position ids (as those with ALiBi), which a draft tree needs",
    "mamba": "has recurrent layers, which can't undo a rejected draft",
}
REFUSED_TOO = {
    "mpt": ({"d_model": 64, "n_layers": 2, "n_heads": 4}, "ALiBi"),
    "rwkv": ({"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64}, "recurrent layers"),
    "lfm2": (tiny.LLAMA | {"layer_types": ["conv", "full_attention"] * 2}, "recurrent layers"),
    "llama4_text": (tiny.LLAMA | {"intermediate_size_mlp": 96, "head_dim": 16}, "the type chunked_attention"),
    "openai-gpt": (SMALL | {"n_embd": 64, "n_layer": 2, "n_head": 4}, "keeps no keys and values"),
}


@pytest.mark.parametrize("family", tiny.PLAIN_ONLY)
def test_models_that_cannot_verify_trees_say_so_and_still_decode(family: str, tmp_path: Path) -> None:
    model = tiny.tiny(family)
    save(model, tmp_path)
    engine = load(str(tmp_path), adapter="none", device="cpu", dtype="float32")
    (note,) = engine.info.notes
    assert REFUSED[family] in note and note.endswith(": standard decoding only.")
    assert set(engine.info.unavailable) == set(METHODS) - {"standard"} and set(engine.info.unavailable.values()) == {
        note
    }
    sampling = Sampling(max_new_tokens=12)
    ids = tiny.prompt(9)
    run = engine.new_run(list(ids), Standard(), replace(sampling, ignore_eos=True))
    assert tiny.ids_of(tiny.finish(run)) == tiny.generate_ids(model, ids, sampling)


XLNET = SMALL | {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96}
NOT_CAUSAL = {
    "xlnet": (XLNET, "its tokens depend on later ones, so it is not a causal language model: choose another"),
    "bert": (tiny.LLAMA, "its tokens depend on later ones"),
    "cpmant": (tiny.LLAMA | {"dim_head": 16, "dim_ff": 96}, r"it fails in a test of six tokens \(IndexError\)"),
}


@pytest.mark.parametrize("family", NOT_CAUSAL)
def test_a_model_that_can_not_even_decode_in_the_standard_way_is_refused(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    values, words = NOT_CAUSAL[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    save(model, tmp_path)
    with pytest.raises(ModelError, match=f"^The model in {tmp_path} can't be used: {words}"):
        load(str(tmp_path), adapter="none", device="cpu", dtype="float32")


@pytest.mark.parametrize("family", REFUSED_TOO)
def test_a_model_that_is_refused_is_told_why(family: str) -> None:
    values, words = REFUSED_TOO[family]
    with pytest.raises(UnsupportedModel, match=words):
        dissect(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)))


def test_an_encoder_decoder_is_told_why() -> None:
    config = AutoConfig.for_model("t5", vocab_size=120, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4)
    with pytest.raises(UnsupportedModel, match="Encoder-decoder models are not supported: choose a causal language"):
        dissect(AutoModelForSeq2SeqLM.from_config(config))


class Bytes(toy.ByteTokenizer):
    pass


@given(st.text(max_size=30), st.lists(st.text("ab🦊é", min_size=1, max_size=3), max_size=2))
@example("🦊éé", ["é", "🦊éé"])
@example("ab", ["b", "ab"])
def test_streamed_text_is_the_text_up_to_the_stop_that_is_complete_first(text: str, stop: list[str]) -> None:
    stream = TextStream(Bytes(), stop)
    out, stopped = "", False
    for byte in text.encode():
        new, stopped = stream.push(byte)
        out += new
        if stopped:
            break
    if not stopped:
        out += stream.flush()
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]  # one may begin earlier and end later
    cut = min(found, default=(0, len(text)))[1]
    assert out == text[:cut]
    assert stopped == (cut < len(text))


def test_unfinished_characters_wait_and_literal_replacement_marks_pass() -> None:
    stream = TextStream(Bytes())
    fox = "🦊".encode()
    assert [stream.push(b)[0] for b in fox] == ["", "", "", "🦊"]
    mark = "\ufffd".encode()
    assert "".join(stream.push(b)[0] for b in mark + b"a") == "\ufffda"
    stream.push(fox[0])
    assert stream.flush() == "\ufffd"


def saved_adapter(folder: Path, family: str = "llama") -> Card:
    anatomy = dissect(tiny.tiny(family))
    adapter = tiny.random_adapter(anatomy)
    weights.save(adapter, folder, adapter.card)
    return adapter.card


def test_adapter_round_trip_in_16_bit(tmp_path: Path) -> None:
    card = saved_adapter(tmp_path)
    anatomy = dissect(tiny.tiny("llama"))
    adapter = weights.load(tmp_path, anatomy)
    assert adapter.card == card
    again = tiny.random_adapter(dissect(tiny.tiny("llama")))
    for ours, theirs in zip(adapter.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def spoil(folder: Path, how: str) -> None:
    weights, card = folder / WEIGHTS, folder / CARD
    data = json.loads(card.read_text())
    if how == "no card":
        card.unlink()
    elif how == "card not JSON":
        card.write_text("{")
    elif how == "card incomplete":
        card.write_text("{}")
    elif how == "unknown mode":
        card.write_text(json.dumps(data | {"mode": "magic"}))
    elif how == "other gamma":
        card.write_text(json.dumps(data | {"gamma": 7}))
    elif how == "gamma is text":
        card.write_text(json.dumps(data | {"gamma": "4"}))
    elif how == "shape is a list":
        card.write_text(json.dumps(data | {"base_shape": [1]}))
    elif how == "too many layers":
        card.write_text(json.dumps(data | {"layers": 9}))
    elif how in CARDS:
        card.write_text(CARDS[how] if isinstance(CARDS[how], str) else json.dumps(data | CARDS[how]))
    elif how in VOCABULARIES:
        card.write_text(json.dumps(data | {"draft_vocabulary": 4}))
        save_file(load_file(weights) | {"vocabulary": torch.tensor(VOCABULARIES[how], dtype=torch.int32)}, weights)
    elif how == "no weights":
        weights.unlink()
    elif how == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:100])
    elif how == "weights not finite":
        save_file({k: v * math.nan for k, v in load_file(weights).items()}, weights)


HEADS = {"kind": "medusa", "count": 2}
CARDS: dict[str, Any] = {
    "a list": "[1]",
    "nested deeply": "[" * 100_000,
    "nested deeply inside": '{"training": ' + '{"a":' * 100_000,
    "no text": "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
    "a number": "3",
    "task is nothing": {"task": None},
    "task is a list": {"task": ["e2e"]},
    "base is a number": {"base": 3},
    "date is an object": {"date": {}},
    "licence is a number": {"licence": 4},
    "command is a list": {"command": ["a"]},
    "data is nothing": {"data": None},
    "draft vocabulary too large": {"draft_vocabulary": 60000},
    "draft vocabulary is true": {"draft_vocabulary": True},
    "scale is NaN": {"lora_scale": math.nan},
    "scale is infinite": {"main_scale": -math.inf},
    "scale is huge": {"lora_scale": 1e300},
    "scale is text": {"lora_scale": "2"},
    "rotation is NaN": {"value_rotation": math.nan},
    "rank is a fraction": {"lora_rank": 2.5},
    "rank is negative": {"start_rank": -1},
    "mode is a list": {"mode": ["shared"]},
    "training is a list": {"training": []},
    "metrics is text": {"metrics": "good"},
    "shape is empty": {"base_shape": {}},
    "shape of texts": {"base_shape": {"model_type": "llama", "num_hidden_layers": "4", "hidden_size": 64}},
    "format is nothing": {"format": None},
    "format is true": {"format": True},
    "heads is a list": {"heads": ["medusa"]},
    "heads without a card": {"heads": {"medusa": 3}},
    "unknown heads": {"heads": {"hydra": HEADS}},
    "heads of many": {"heads": {"medusa": HEADS | {"count": 1000}}},
    "heads of another projection": {"heads": {"medusa": HEADS | {"projection": None}}},
    "heads of too many tokens": {"heads": {"medusa": HEADS | {"draft_vocabulary": 121}}},
    "heads made never": {"heads": {"medusa": HEADS | {"date": 3}}},
}
VOCABULARIES = {"unsorted": [3, 2, 5, 6], "twice": [1, 2, 2, 3], "beyond": [1, 2, 3, 120], "negative": [-1, 2, 3, 4]}
SPOILT = [
    "no card",
    "card not JSON",
    "card incomplete",
    "unknown mode",
    "other gamma",
    "gamma is text",
    "shape is a list",
    "too many layers",
    "no weights",
    "weights cut short",
    "weights not finite",
]


@pytest.mark.parametrize("how", [*SPOILT, *CARDS, *VOCABULARIES])
def test_a_damaged_adapter_gives_one_sentence(how: str, tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(AdapterError) as error:
        anatomy = dissect(tiny.tiny("llama"))
        weights.load(tmp_path, anatomy)
        heads.load(tmp_path, anatomy)
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and len(str(error.value)) < 200
    if how in CARDS:
        assert str(error.value).startswith("The adapter's card is damaged: ")
    if how in VOCABULARIES:
        assert str(error.value).endswith("its draft vocabulary must be sorted, unique and below 120.")


@pytest.mark.parametrize("how", ["card not JSON", *CARDS])
def test_one_broken_folder_leaves_the_other_adapters_alone(how: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    for name in ("good", "broken"):
        saved_adapter(tmp_path / "adapters" / name)
    spoil(tmp_path / "adapters" / "broken", how)
    assert local.mine("tiny")["good"] == find_adapter("good", "tiny") == tmp_path / "adapters" / "good"
    cli.main(["adapters", "list"])
    out = capsys.readouterr()
    assert "good " in out.out and "broken" not in out.out
    assert "error" not in out.err and out.err.count("note: ") <= 1


@pytest.mark.parametrize("base", ["~nobody/x", "\0", "x" * 5000, "../no", "a\nb", ""])
def test_a_base_of_any_name_leaves_the_other_adapters_alone(base: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    for name in ("good", "odd"):
        saved_adapter(tmp_path / "adapters" / name)
    card = tmp_path / "adapters" / "odd" / CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | {"base": base}))
    assert "good" in local.mine("tiny") and set(local.mine()) == {"good", "odd"}
    with pytest.raises(AdapterError, match="There is no adapter"):
        find_adapter(base or " ", "tiny")


def test_an_adapter_is_written_beside_the_old_one_and_swapped(tmp_path: Path, monkeypatch) -> None:
    card = saved_adapter(tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        write_card(tmp_path, replace(card, training={"a": object()}))
    monkeypatch.setattr(weights, "save_file", lambda state, file: file.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weights.save(tiny.random_adapter(dissect(tiny.tiny("llama"))), tmp_path, card)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    opened = (tmp_path / CARD).open()
    write_card(tmp_path, replace(card, date="today"))
    assert opened.read() == before[CARD].decode()  # who reads the old one reads all of it


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("adapter_config.json", "holds a PEFT adapter, which has no streams. Merge it into its base model"),
        ("config.json", "it holds a model. Give it as the model"),
        ("x", "the file card.json is missing"),
    ],
)
def test_a_folder_that_is_no_adapter_is_told_what_it_is(file: str, words: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(AdapterError, match=f"There is no adapter in .*: .*{words}.*\\.$"):
        read_card(tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    saved_adapter(tmp_path, "gpt2")
    with pytest.raises(AdapterError, match="load it onto that model"):
        weights.load(tmp_path, dissect(tiny.tiny("llama")))


@pytest.mark.parametrize(
    "values",
    [{"temperature": math.nan}, {"temperature": -1}, {"top_p": math.inf}, {"max_new_tokens": 0}, {"seed": 1.5},
     {"top_k": "many"}, {"repetition_penalty": True}, {"max_new_tokens": None}],
)  # fmt: skip
def test_bad_settings_give_one_sentence(values: dict) -> None:
    with pytest.raises(ValueError, match="must be a"):
        Sampling(**values)


def test_unknown_method_and_setting() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        method("magic")
    with pytest.raises(ValueError, match="has no setting"):
        method("streaming", colour=1)
    with pytest.raises(ValueError, match="must be one of"):
        method("streaming", tree="oak")


def toy_events(method=None, **sampling):
    return list(toy.load_toy(pace=0).generate("Text:", method or Streaming(), Sampling(max_new_tokens=60, **sampling)))


def test_toy_model_is_exact_and_faster_in_steps() -> None:
    for temperature in (0.0, 0.8):
        streaming, standard = toy_events(temperature=temperature), toy_events(Standard(), temperature=temperature)
        ids = [[t.id for e in events if isinstance(e, Step) for t in e.tokens] for events in (streaming, standard)]
        assert ids[0] == ids[1]
        assert summarize(streaming).tokens_per_step > 1.3
        assert summarize(standard).tokens_per_step == 1


def test_events_round_trip_through_json() -> None:
    for event in toy_events():
        assert from_dict(json.loads(json.dumps(to_dict(event)))) == event


def test_stats_identities() -> None:
    events = toy_events()
    stats = summarize(events)
    steps = [e for e in events if isinstance(e, Step)]
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert stats.tokens == sum(len(s.tokens) for s in steps)
    assert stats.decode_tokens == stats.accepted + sum(t.origin == "target" for s in steps[1:] for t in s.tokens)
    assert stats.tokens_per_step == pytest.approx(stats.decode_tokens / stats.steps)
    assert stats.rows == sum(1 + len(s.draft) for s in steps[1:])
    assert stats.seconds == pytest.approx(sum(s.total_seconds for s in steps))
    assert speedup(stats, stats) == 1
    assert all(0 <= share <= 1 for share in stats.acceptance_by_depth)


def test_session_verdict_and_stop() -> None:
    engine = toy.load_toy(pace=0)
    *items, verdict = run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=40))
    assert verdict.agreement == "identical" and verdict.compared == 40 and verdict.speedup
    assert {lane for lane, _ in items} == {"method", "baseline"}
    seen = []
    *items, verdict = run_session(
        engine, "Text:", Streaming(), Sampling(max_new_tokens=40), should_stop=lambda: len(seen) > 3 or seen.append(1)
    )
    assert verdict.agreement == "unknown" and verdict.speedup is None
    assert items[-1][1] == Finished(Reason.STOPPED, tail=items[-1][1].tail)


class Liar(toy.ToyTarget):
    """A target whose tree passes are wrong, which the verdict must call a mismatch."""

    def verify(self, root, draft):
        return super().verify(root, draft).roll(1 if len(draft) else 0, -1)


def test_a_real_mismatch_is_called_one() -> None:
    engine = toy.load_toy(pace=0)
    engine.make_target = lambda method: Liar(Variant.of(method) if isinstance(method, Streaming) else None, 0)
    *_, verdict = run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=20, ignore_eos=True))
    assert verdict.agreement == "mismatch" and "real mismatch" in verdict.message


@pytest.mark.parametrize("text", ["", "  \n", "x" * 100_000, "y" * 5000])
def test_bad_prompts_give_one_sentence(text: str) -> None:
    with pytest.raises(ValueError) as error:
        next(toy.load_toy(pace=0).generate(text, Streaming(), Sampling()))
    assert "\n" not in str(error.value)


def test_only_tokens_decide_whether_a_prompt_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy.load_toy(pace=0)
    engine.info = replace(engine.info, context=120_000)
    assert len(engine.encode("x" * 119_999)) == 119_999
    with pytest.raises(ValueError, match="has 120,000 tokens; this model's context is 120,000: shorten it"):
        engine.encode("x" * 120_000)
    read: list[int] = []
    monkeypatch.setattr(toy.ByteTokenizer, "__call__", lambda self, text, **_: read.append(len(text)) or few(text))

    def few(text: str) -> SimpleNamespace:  # a token for every eight characters
        return SimpleNamespace(input_ids=[1] * (len(text) // 8))

    with pytest.raises(ValueError, match="has 960,000 tokens or more; this model's context is 120,000: shorten it"):
        engine.encode("x" * 100_000_000)
    assert read == [480_000, 1_920_000, 7_680_000]  # of a hundred million characters
    assert len(engine.encode("x" * 900_000)) == 112_500


@pytest.mark.parametrize("temperature", [1e-40, 1e-300, 5e-324, 1e-7])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    def ids(events: list[Any]) -> list[int]:
        return tiny.ids_of([e for e in events if isinstance(e, Step)])

    greedy, cold = toy_events(), toy_events(temperature=temperature)
    text = "".join(t.text for e in cold if isinstance(e, Step) for t in e.tokens)
    assert text and ids(cold) == ids(greedy)


@pytest.mark.parametrize(
    "values",
    [{"top_p": 0}, {"top_p": 1e-40}, {"min_p": 1}, {"min_p": 1e-40}, {"top_k": 1}, {"temperature": 1e-6},
     {"temperature": 5, "top_p": 0, "min_p": 1}, {"repetition_penalty": 0.5}, {"repetition_penalty": 2}],
)  # fmt: skip
def test_settings_at_their_limits_still_choose_among_the_likeliest(values: dict) -> None:
    logits = torch.tensor([3.0, -50.0, 1000.0, 2.0, -math.inf])
    picker = Picker(Sampling(**{"temperature": 0.7} | values))
    assert {picker.pick(logits, [0] * at) for at in range(1, 20)} == {2}


def test_importing_events_does_not_import_torch() -> None:
    names = ", ".join(f"specstream.{m}" for m in ("events", "stats", "tree", "params", "info"))
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("family", "mode"), [("llama", "shared"), ("opt", "lossless"), ("gpt2", "shared"), ("gemma2", "lossless")]
)
def test_packed_weights_compute_the_same(family: str, mode: str, half: bool) -> None:
    if not cpu_linear.works(half):
        pytest.skip("this build of PyTorch has no packed linear maps")
    ids, sampling = tiny.prompt(21), Sampling(max_new_tokens=24, temperature=0.7)
    anatomy, adapter = tiny.model_with_adapter(family, mode=mode)
    if half:
        for linear in (m for m in anatomy.model.modules() if isinstance(m, torch.nn.Linear)):
            linear.weight.data = linear.weight.data.half().float()
    want = tiny.ids_of(tiny.finish(tiny.streaming_run(anatomy, adapter, ids, sampling)))
    smaller = cpu_linear.pack(anatomy, cpu_linear.FLOAT16 if half else cpu_linear.NATIVE)
    assert isinstance(smaller.head, type(cpu_linear.packed_linear(torch.nn.Linear(8, 16), half)))
    assert not any(isinstance(m, torch.nn.Linear) for m in smaller.model.modules())
    run = tiny.streaming_run(smaller, adapter, ids, sampling)
    assert tiny.ids_of(tiny.finish(run)) == want == tiny.generate_ids(smaller.model, ids, sampling)


needs_bfloat16 = pytest.mark.skipif(
    not (computes_bfloat16("cpu") and cpu_linear.works(dtype=torch.bfloat16)),
    reason="this processor does not compute in bfloat16",
)


@needs_bfloat16
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen3"])
def test_packed_bfloat16_computes_the_same_and_in_float32_with_the_same_weights(family: str) -> None:
    model = tiny.tiny(family).bfloat16()
    ids = torch.tensor([tiny.prompt(21)])
    with torch.inference_mode():
        want, exact = model(ids).logits.float(), copy.deepcopy(model).float()(ids).logits
        cpu_linear.pack(dissect(model))
        assert not any(isinstance(m, torch.nn.Linear) for m in model.modules())
        rounding = (want - exact).abs().max()
        assert 0 < (model(ids).logits.float() - exact).abs().max() < 2 * rounding
        with _float32(model)() as changed:
            assert changed
            torch.testing.assert_close(model(ids).logits, exact, atol=1e-4, rtol=1e-4)
        assert model(ids).logits.dtype == torch.bfloat16


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "head_dim": 16}


@pytest.mark.parametrize(("family", "kept"), [("hunyuan_v1_moe", 1), ("phimoe", 1), ("falcon", 0)])
def test_only_what_computes_like_a_linear_map_is_packed(family: str, kept: int) -> None:
    """A router of Hunyuan's reads its weight, one of Phi's returns more than a product; Falcon's own class is plain."""
    torch.manual_seed(0)
    values = tiny.LLAMA | (EXPERTS if kept else {})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)).eval()
    ids = torch.tensor([tiny.prompt(21)])
    with torch.inference_mode():
        want = model(ids).logits
        cpu_linear.pack(dissect(model))
        torch.testing.assert_close(model(ids).logits, want, atol=1e-4, rtol=1e-4)
    left = sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert left == kept * model.config.num_hidden_layers


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_packed_only_where_the_processor_computes_in_it(native: bool, monkeypatch) -> None:
    monkeypatch.setattr(cpu_linear, "computes_bfloat16", lambda device: native)
    assert cpu_linear.suits(dissect(tiny.tiny("llama").bfloat16())) == (
        native and cpu_linear.works(dtype=torch.bfloat16)
    )
    assert cpu_linear.suits(dissect(tiny.tiny("llama"))) == cpu_linear.works()
    assert not cpu_linear.suits(dissect(tiny.tiny("llama").half()))


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if hasattr(m, "budget")])
def test_a_budget_left_open_is_the_machines_and_a_given_one_stays(name: str) -> None:
    engine = toy.load_toy(pace=0)
    engine.info = replace(engine.info, nodes=9)
    assert engine.settled(method(name)).budget == 9
    assert engine.settled(method(name, budget=3)).budget == 3
    most = MOST_NODES if issubclass(METHODS[name], LevelTree) else NODES
    assert method(name).nodes == method(name).on("cpu").nodes == most


def test_streams_draft_as_many_nodes_as_are_cheap() -> None:
    engine = toy.load_toy(pace=0)
    for nodes in (2, 7):
        engine.info = replace(engine.info, nodes=nodes)
        started, *events = engine.generate(
            "Text: The Mill is a pub. The Mill", Streaming(), Sampling(max_new_tokens=40)
        )
        assert started.settings["method"]["budget"] == nodes
        assert max(len(e.draft) for e in events if isinstance(e, Step)) == nodes


def test_a_lora_is_not_merged_into_packed_weights() -> None:
    anatomy = dissect(tiny.tiny("llama"))
    adapter = tiny.random_adapter(anatomy, mode="lossless")
    cpu_linear.pack(anatomy)
    with pytest.raises(RuntimeError, match="merge a LoRA before packing"):
        adapter.lora.merge(anatomy)


def test_packed_maps_that_read_the_same_rows_are_one_product() -> None:
    anatomy, _ = tiny.model_with_adapter("llama")
    attention, mlp = anatomy.layers[0].self_attn, anatomy.layers[0].mlp
    x, y = torch.randn(2, 1, 5, anatomy.hidden_size)
    names = {"q_proj": attention, "k_proj": attention, "v_proj": attention, "gate_proj": mlp, "up_proj": mlp}
    with torch.inference_mode():
        want = {(n, i): getattr(m, n)(rows) for n, m in names.items() for i, rows in enumerate((x, y))}
        cpu_linear.pack(anatomy)
        assert len({id(getattr(m, n).shared) for n, m in names.items()}) == 2
        for order in (names, reversed(names), [*names, *names]):  # also one called twice, and others not at all
            for name in order:
                for i, rows in enumerate((x, y)):
                    torch.testing.assert_close(getattr(names[name], name)(rows), want[name, i])
        q = attention.q_proj
        q(x)
        x.mul_(2)  # the same tensor with other values
        torch.testing.assert_close(q(x), 2 * want["q_proj", 0])


@pytest.mark.parametrize(("family", "replaced"), [("llama", True), ("qwen3", True), ("gemma2", False)])
def test_norms_become_one_call_only_where_that_gives_the_same(family: str, replaced: bool) -> None:
    model = tiny.tiny(family)
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight)
    x = torch.randn(2, 5, *norms[0].weight.shape)
    with torch.inference_mode():
        want = norms[0](x)
        cpu_linear.pack(dissect(model))
        torch.testing.assert_close(norms[0](x), want)
    assert norms and all(("forward" in vars(norm)) == replaced for norm in norms)


def test_streaming_copies_too_unless_it_is_told_not_to() -> None:
    engine = toy.load_toy(pace=0)
    prompt, sampling = "Text: The Mill is a pub. The Mill", Sampling(max_new_tokens=60)
    started, *events = engine.generate(prompt, Streaming(), sampling)
    assert started.settings["method"] == Streaming(streams="deferred", copies="on").to_dict()
    assert {copy for e in events if isinstance(e, Step) for copy in e.draft.copied} == {True, False}
    never = engine.generate(prompt, Streaming(copies="off"), sampling)
    assert not any(e.draft.copied for e in never if isinstance(e, Step))
    standard = [e for e in engine.generate(prompt, Standard(), sampling) if isinstance(e, Step)]
    assert tiny.ids_of(standard) == tiny.ids_of([e for e in events if isinstance(e, Step)])
    again = [from_dict(json.loads(json.dumps(to_dict(e)))) for e in events]
    assert again == events


def test_shared_keys_are_not_copied_for_every_head_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny.tiny("llama"), tmp_path)
    engine = load(str(tmp_path), adapter="none", device="cpu", dtype="float32")
    copied: list[int] = []
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda states, times: copied.append(times) or states)
    run = engine.new_run(tiny.prompt(12), PromptLookup(), Sampling(max_new_tokens=12))
    assert max(step.rows for step in tiny.finish(run)[1:]) > 1 and not copied


def test_float16_on_a_cpu_is_float32_arithmetic_with_rounded_weights(tmp_path: Path) -> None:
    if not cpu_linear.works(half=True):
        pytest.skip("this build of PyTorch has no packed linear maps in float16")
    save(tiny.tiny("llama"), tmp_path)
    engine = load(str(tmp_path), adapter="none", device="cpu", dtype="float16")
    assert engine.info.dtype == "float16" and engine.info.dtype_reason.endswith("arithmetic in float32")
    stock = baselines.stock(str(tmp_path), "none", "cpu", "float16")
    whole = load_model(resolve(str(tmp_path)), "cpu", torch.float32)[0]
    rounded = stock.model.layers[0].mlp.up_proj.weight
    assert torch.equal(rounded, whole.model.layers[0].mlp.up_proj.weight.half().float())
    assert torch.equal(stock.get_input_embeddings().weight, whole.get_input_embeddings().weight)
    sampling = Sampling(max_new_tokens=24, temperature=0.7, ignore_eos=True)
    want = tiny.generate_ids(stock, tiny.prompt(12), sampling)
    for chosen in (Standard(), PromptLookup()):
        run = engine.new_run(list(tiny.prompt(12)), chosen, sampling)
        assert tiny.ids_of(tiny.finish(run)) == want


def test_float32_check_puts_the_model_back_bit_for_bit() -> None:
    model = tiny.tiny("llama").to(torch.bfloat16)
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.float() / 3  # kept in float32 by some models
    before = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    with _float32(model)() as changed:
        assert changed and all(p.dtype == torch.float32 for p in model.parameters())
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(after[n].dtype == t.dtype and torch.equal(after[n], t) for n, t in before.items())


@pytest.mark.parametrize("chosen", [Streaming(streams="in-pass"), Streaming(streams="deferred", prune=0.001)])
def test_float32_check_repeats_a_step_of_lossless_streams_in_half_precision(chosen: Streaming) -> None:
    model = tiny.tiny("llama").half()
    anatomy = dissect(model)
    plain = tiny.random_adapter(anatomy, mode="lossless", exit_rank=2)
    adapter = weights.Adapter(anatomy, replace(plain.card, draft_vocabulary=40)).eval().half().to(tiny.DEVICE)
    adapter.merge_copies(anatomy, cpu_linear.NATIVE)
    engine = toy.load_toy(pace=0)
    engine.make_target = lambda m: ModelTarget(anatomy, adapter, Variant.of(m) if isinstance(m, Streaming) else None)
    engine.float32 = _float32(model, *adapter.copies())
    ids, picker = tiny.prompt(12), Picker(Sampling())
    steps = tiny.finish(tiny.streaming_run(anatomy, adapter, ids, Sampling(max_new_tokens=9), chosen))
    ours = tiny.ids_of(steps)
    other = [*ours[:6], (ours[6] + 1) % tiny.VOCAB, *ours[7:]]
    events = [Started("streaming", len(ids), {"method": chosen.to_dict()}), *steps]
    verdict = difference(engine, ids, events, ours, other, picker, None)
    assert verdict.position == 6 and "checked in float32" in verdict.message
    assert all(p.dtype == torch.float16 for module in adapter.copies() for p in module.parameters())


class Tied(toy.ToyTarget):
    """Two tokens nearly tie everywhere; a pass over a tree rounds differently from a pass over one row."""

    def verify(self, root, draft):
        return self._tied(super().verify(root, draft), 8e-6 if len(draft) else -8e-6)

    def prefill(self, ids, should_stop=lambda: False):
        return self._tied(super().prefill(ids), 8e-6)

    @staticmethod
    def _tied(logits, by):
        logits = logits.clone()
        logits[:, 65], logits[:, 66] = 20.0 + by, 20.0
        return logits


def test_a_tie_is_called_one() -> None:
    engine = toy.load_toy(pace=0)
    engine.make_target = lambda method: Tied(Variant.of(method) if isinstance(method, Streaming) else None, 0)
    *_, verdict = run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=20, ignore_eos=True))
    assert verdict.agreement == "tie" and "numerical tie" in verdict.message and verdict.position == 1


def refuses_memory() -> None:
    torch.empty(1 << 55)  # on a CPU it is a plain RuntimeError


def refuses_memory_as_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("allocate", [refuses_memory, refuses_memory_as_on_a_gpu])
def test_a_verdict_does_without_float32_where_no_memory_is_left(allocate: Any) -> None:
    engine = toy.load_toy(pace=0)
    engine.make_target = lambda method: Tied(Variant.of(method) if isinstance(method, Streaming) else None, 0)

    @contextmanager
    def float32():
        allocate()
        yield True

    engine.float32 = float32
    *_, verdict = run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=20, ignore_eos=True))
    assert verdict.agreement == "tie" and "(no memory to check it in float32)" in verdict.message


def test_other_failures_of_the_float32_check_are_not_hidden() -> None:
    engine = toy.load_toy(pace=0)
    engine.make_target = lambda method: Tied(Variant.of(method) if isinstance(method, Streaming) else None, 0)

    @contextmanager
    def float32():
        raise RuntimeError("shapes differ")
        yield

    engine.float32 = float32
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=20, ignore_eos=True)))


def test_a_wrong_token_at_a_tie_of_two_others_is_a_mismatch() -> None:
    class Wrong(Tied):
        def verify(self, root, draft):
            logits = super().verify(root, draft)
            if len(draft):
                logits[:, 40] = 30.0
            return logits

    engine = toy.load_toy(pace=0)
    engine.make_target = lambda method: Wrong(Variant.of(method) if isinstance(method, Streaming) else None, 0)
    *_, verdict = run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=20, ignore_eos=True))
    assert verdict.agreement == "mismatch"


def test_numbers_that_are_not_finite_give_one_sentence() -> None:
    class Broken(toy.ToyTarget):
        def verify(self, root, draft):
            return super().verify(root, draft) * math.nan

    engine = toy.load_toy(pace=0)
    engine.make_target = lambda method: Broken(Variant.of(method) if isinstance(method, Streaming) else None, 0)
    with pytest.raises(ValueError, match="choose float32"):
        list(engine.generate("Text:", Streaming(), Sampling()))
    assert not engine.lock.locked()


@pytest.mark.parametrize(("kind", "name", "value", "scale"), [("granite", "logits_scaling", 6.0, 1 / 6),
                                                              ("cohere", "logit_scale", 0.25, 0.25)])  # fmt: skip
def test_a_constant_factor_of_the_logits_is_measured(kind: str, name: str, value: float, scale: float) -> None:
    config = AutoConfig.for_model(kind, **tiny.LLAMA | {name: value})
    anatomy = dissect(AutoModelForCausalLM.from_config(config).eval())
    assert anatomy.scale == pytest.approx(scale, rel=1e-5) and self_test.failure(anatomy, None) is None
    assert "failed the tree self-test" in str(self_test.failure(replace(anatomy, scale=1.0), None))


def test_a_model_that_names_no_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.tiny("llama")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(UnsupportedModel, match="its head could not be found"):
        dissect(model)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_most_logits_are_what_the_head_returns(family: str) -> None:
    assert dissect(tiny.tiny(family).bfloat16()).scale == 1


def test_context_ends_where_rotary_tables_begin_to_change() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    config = AutoConfig.for_model("llama", **tiny.LLAMA | {"rope_parameters": rope})
    assert context_of(config) == 64
    assert context_of(AutoConfig.for_model("llama", **tiny.LLAMA)) == 256
    assert context_of(AutoConfig.for_model("xlnet")) > 10_000  # says -1


def test_a_model_without_a_state_is_shown_the_whole_text() -> None:
    model = tiny.tiny("llama")

    class Stateless(torch.nn.Module):
        config, device = model.config, model.device

        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=model(input_ids=input_ids).logits)

    ids, sampling = tiny.prompt(9), Sampling(max_new_tokens=12)
    run = tiny.new_run(PlainTarget(Stateless()), StandardDrafter(), ids, sampling)
    assert tiny.ids_of(tiny.finish(run)) == tiny.generate_ids(model, ids, sampling)


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_stop_before_the_prompt_pass_of_a_model_that_only_decodes(family: str) -> None:
    target = PlainTarget(tiny.tiny(family))
    run = tiny.new_run(target, StandardDrafter(), tiny.prompt(40), Sampling(max_new_tokens=5))
    target._pass = lambda tokens: pytest.fail("passed")  # type: ignore[method-assign]
    assert list(decode(run, lambda: True)) == [Finished(Reason.STOPPED)]


def test_stop_inside_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specstream.target.model_target.CHUNK", 8)
    anatomy, adapter = tiny.model_with_adapter("llama")
    run = tiny.streaming_run(anatomy, adapter, tiny.prompt(40), Sampling())
    seen: list[int] = []
    assert list(decode(run, lambda: len(seen) > 2 or bool(seen.append(1)))) == [Finished(Reason.STOPPED)]
    assert run.target.cache is None


# ---- what was found out once -----------------------------------------------------------------------------------------


def test_a_self_test_that_was_passed_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "home"))
    save(tiny.tiny("llama"), tmp_path / "model")
    runs: list[str] = []
    real = self_test.failure
    monkeypatch.setattr(self_test, "failure", lambda *of: runs.append("") or real(*of))
    first = load(str(tmp_path / "model"), "none", "cpu").info
    second = load(str(tmp_path / "model"), "none", "cpu").info
    assert len(runs) == 1 and first.exact and second.exact
    load(str(tmp_path / "model"), "none", "cpu", "float32" if first.dtype != "float32" else "float16")
    assert len(runs) == 2  # another number format
    weights = tmp_path / "model" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    load(str(tmp_path / "model"), "none", "cpu")
    assert len(runs) == 3  # other weights


def test_a_self_test_that_failed_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "home"))
    save(tiny.tiny("llama"), tmp_path / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_test, "failure", lambda *_: "It failed.")
        assert "prompt_lookup" in load(str(tmp_path / "model"), "none", "cpu").info.unavailable
    assert load(str(tmp_path / "model"), "none", "cpu").info.exact


@pytest.mark.parametrize("compiler", ["/bin/false", "no-such-compiler"])
def test_without_a_compiler_everything_runs_and_says_so(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPECSTREAM_NO_COMPILER", raising=False)
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "home"))
    save(tiny.tiny("llama"), tmp_path / "model")
    engine = load(str(tmp_path / "model"), "none", "cpu", "float32")
    assert not engine.info.compiled and f"there is no C++ compiler ({compiler};" in engine.info.compiling
    events = list(engine.generate("1 2 3", Standard(), Sampling(max_new_tokens=4)))
    assert isinstance(events[-1], Finished)
