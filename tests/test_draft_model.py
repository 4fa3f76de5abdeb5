"""Draft model: the output stays that of standard decoding, its cache keeps up, sampled drafts keep the distribution."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from torch import Tensor

from specstream import bench, engine
from specstream.bench import baselines
from specstream.cli import main
from specstream.decoding.drafters.draft_model import DraftModelDrafter
from specstream.decoding.interfaces import never
from specstream.decoding.loop import Run
from specstream.events import Agreement, Draft, Fate, Reason, Verdict
from specstream.model.introspection import dissect
from specstream.params import DraftModel, Sampling, Standard
from specstream.session import run_session, token_ids
from specstream.target import draft_model as pairing
from specstream.target.model_target import ModelTarget
from specstream.testing import toy
from tests import tiny
from ui import access_rules
from ui.components import model_panel
from ui.html import render
from ui.jobs.engine_host import Engines

PROMPT = tiny.prompt(12)
EAGER = DraftModel(confidence=0, depth=5, budget=8)


class Counting(ModelTarget):
    """A draft model that counts the rows of its passes."""

    def __init__(self, anatomy: Any) -> None:
        super().__init__(anatomy)
        self.rows: list[int] = []

    def prefill(self, ids: Any, should_stop: Any = never) -> Tensor:
        self.rows.append(len(ids))
        return super().prefill(ids, should_stop)

    def verify(self, root: int, draft: Draft) -> Tensor:
        self.rows.append(1 + len(draft))
        return super().verify(root, draft)


def relative(model: Any, noise: float = 0.05) -> Any:
    """A model that often agrees with ``model``: a copy with noise on its weights."""
    out = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in out.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator).to(weight)
    return out


def draft_run(anatomy: Any, second: Any, sampling: Sampling, params: DraftModel = EAGER, ids: Any = PROMPT) -> Run:
    target = ModelTarget(anatomy)
    run = tiny.new_run(target, None, list(ids), sampling)
    run.drafter = DraftModelDrafter(second, run.ids, params, run.picker, target.vocabulary)
    return run


# ---- the output stays what it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_exact_drafts_equal_generate(family: str) -> None:
    model = tiny.tiny(family)
    anatomy, second = dissect(model), dissect(relative(model))
    fates: Counter[Fate] = Counter()
    for seed, (temperature, drafts) in enumerate(((0.0, "greedy"), (0.7, "greedy"), (1.3, "coupled"))):
        sampling = Sampling(max_new_tokens=24, temperature=temperature, seed=seed, repetition_penalty=1 + 0.2 * seed)
        want = tiny.generate_ids(model, PROMPT, sampling)
        steps = tiny.finish(draft_run(anatomy, Counting(second), sampling, replace(EAGER, drafts=drafts)))
        assert tiny.ids_of(steps) == want
        fates.update(fate for s in steps for fate in s.draft.fate)
    assert min(fates[Fate.ACCEPTED], fates[Fate.REJECTED]) > 10


@pytest.mark.parametrize(("drafts", "temperature"), [("greedy", 0.0), ("coupled", 1.3), ("sampled", 1.3)])
def test_a_model_that_drafts_for_itself_is_always_right(drafts: str, temperature: float) -> None:
    anatomy = dissect(tiny.tiny("llama"))
    second = Counting(anatomy)
    params = DraftModel(confidence=0, depth=4, width=1, drafts=drafts)
    steps = tiny.finish(draft_run(anatomy, second, Sampling(max_new_tokens=26, temperature=temperature), params))
    assert [len(s.tokens) for s in steps] == [1, 5, 5, 5, 5, 5]
    assert {fate for s in steps for fate in s.draft.fate} == {Fate.ACCEPTED}
    assert second.rows == [len(PROMPT), 1, 1, 1, 1] + [2, 1, 1, 1] * 4  # the last draft was never read, nor the bonus


def test_alternatives_stand_beside_the_chain_and_low_confidence_ends_it() -> None:
    anatomy = dissect(tiny.tiny("llama"))
    sampling = Sampling(max_new_tokens=40)
    wide = tiny.finish(draft_run(anatomy, Counting(anatomy), sampling, DraftModel(confidence=0, width=3, budget=9)))
    drafts = [s.draft for s in wide[1:-1]]
    assert {len(d) for d in drafts} == {9} and all(max(d.depths()) <= 4 for d in drafts)
    assert any(d.parents.count(-1) == 3 for d in drafts)
    sure = tiny.finish(draft_run(anatomy, Counting(anatomy), sampling, DraftModel(confidence=1, width=1)))
    assert {len(s.draft) for s in sure[1:-1]} == {1}


def test_settings_beyond_the_draft_models_context_or_vocabulary() -> None:
    """A shorter context ends only the drafts; the number of unused ids beyond the tokenizer's may differ."""
    model = tiny.tiny("llama")
    sampling = Sampling(max_new_tokens=40, temperature=1.5)
    want = tiny.generate_ids(model, PROMPT, sampling)
    short = Counting(dissect(model))
    short.context = len(PROMPT) + 20
    steps = tiny.finish(draft_run(dissect(model), short, sampling))
    assert tiny.ids_of(steps) == want
    length = len(PROMPT)
    for step in steps:
        assert max(step.draft.depths(), default=0) <= max(0, short.context - length)
        length += len(step.tokens)
    assert len(steps[1].draft) and length > short.context + 10
    for size in (tiny.VOCAB - 30, tiny.VOCAB + 30):
        other = copy.deepcopy(model)
        other.resize_token_embeddings(size, mean_resizing=False)
        second = Counting(dissect(other))
        assert second.vocabulary == size
        for drafts in ("greedy", "sampled"):
            params = DraftModel(confidence=0, drafts=drafts)
            got = tiny.ids_of(tiny.finish(draft_run(dissect(model), second, sampling, params)))
            assert got == want if drafts == "greedy" else len(got) == 40


# ---- the cache keeps up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral-window", "opt", "gpt2"])
@pytest.mark.parametrize("drafts", ["greedy", "sampled"])
def test_the_draft_models_cache_holds_what_was_kept(family: str, drafts: str) -> None:
    model = tiny.tiny(family)
    second = Counting(dissect(relative(model, noise=0.2)))
    run = draft_run(
        dissect(model), second, Sampling(max_new_tokens=30, temperature=0.8), DraftModel(confidence=0, drafts=drafts)
    )
    rejections, reading = 0, list[list[int]]()

    def check(run: Run, step: Any) -> None:
        nonlocal rejections
        right = same(run.drafter._read, run.ids)
        assert second.length == len(run.drafter._read)
        unread = 2 if len(step.draft) or not step.index else 3  # the newest token, the last draft; at the end a step
        assert right >= len(run.ids) - unread
        fresh = ModelTarget(second.anatomy)
        fresh.prefill(run.ids[:right])
        for ours, plain in zip(second.cache.layers, fresh.cache.layers, strict=True):
            torch.testing.assert_close(ours.keys[:, :, :right], plain.keys, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(ours.values[:, :, :right], plain.values, atol=2e-5, rtol=1e-4)
        assert len(run.picker.drawn) == (len(step.draft) if drafts == "sampled" else 0)  # what was drawn before is gone
        rejections += any(f is Fate.REJECTED for f in step.draft.fate)
        reading.append(second.rows[:])
        second.rows.clear()

    tiny.finish(run, check)
    assert rejections > 3
    assert reading[0] == [len(PROMPT)] and max(n for rows in reading[1:] for n in rows) <= 2


def same(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# ---- sampled drafts: the same distribution ---------------------------------------------------------------------------

SIZE, RUNS = 4, 1500
TABLES = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 1.5  # of target and draft model


class Markov:
    """A model whose next token depends only on the last one: logits are a row of a table ``[SIZE, SIZE]``."""

    context, vocabulary, stream_rows, pruned = 500, SIZE, 0, frozenset()

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self.length = 0

    def prefill(self, ids: Any, should_stop: Any = None) -> Tensor:
        self.length = len(ids)
        return self._table[ids[-1:]]

    def verify(self, root: int, draft: Any) -> Tensor:
        return self._table[[root, *draft.tokens]]

    def keep(self, rows: Any) -> None:
        self.length += len(rows)

    def rewind(self, length: int) -> None:
        self.length = length

    def synchronize(self) -> None: ...
    def release(self) -> None: ...


def first_tokens(seed: int, temperature: float = 0.9, count: int = 4) -> tuple[int, ...]:
    run = tiny.new_run(Markov(TABLES[0]), None, [0], Sampling(max_new_tokens=count, temperature=temperature, seed=seed))
    params = DraftModel(drafts="sampled", depth=2, confidence=0)
    run.drafter = DraftModelDrafter(Markov(TABLES[1]), run.ids, params, run.picker, SIZE)
    return tuple(tiny.ids_of(tiny.finish(run)))


def test_sampled_drafts_have_the_targets_distribution() -> None:
    """Chi-square over all texts of four tokens: the first without a draft, two drafted at once, a bonus or more."""
    p = (TABLES[0] / 0.9).softmax(-1).double()
    want = torch.einsum("a,ab,bc,cd->abcd", p[0], p, p, p).flatten()
    texts = torch.tensor([first_tokens(seed) for seed in range(RUNS)])
    cells = (texts * torch.tensor([SIZE**3, SIZE**2, SIZE, 1])).sum(-1)
    counts = torch.bincount(cells, minlength=SIZE**4).double()
    rare = want * RUNS < 5  # too rare to count individually
    got = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([want[~rare], want[rare].sum()[None]]) * RUNS
    chi = ((got - expected) ** 2 / expected).sum()
    chance = float(torch.special.gammaincc(torch.tensor((len(got) - 1) / 2.0, dtype=torch.double), chi / 2))
    assert chance > 1e-3


def test_sampled_drafts_say_that_there_is_nothing_to_compare() -> None:
    loaded = toy.load_toy(pace=0)

    def verdict(params: DraftModel, temperature: float) -> Verdict:
        *_, last = run_session(loaded, "Text:", params, Sampling(max_new_tokens=60, temperature=temperature, seed=4))
        assert isinstance(last, Verdict)
        return last

    sampled = verdict(DraftModel(drafts="sampled"), 0.8)
    assert sampled.agreement is Agreement.UNKNOWN and sampled.speedup and "same distribution" in sampled.message
    assert verdict(DraftModel(drafts="sampled"), 0.0).agreement is Agreement.IDENTICAL  # nothing to draw
    assert verdict(DraftModel(), 0.8).agreement is Agreement.IDENTICAL


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and, in ``second``, one of another family with the same tokenizer."""
    path = tmp_path_factory.mktemp("pair")
    model = tiny.tiny("llama")
    tiny.save(model, path / "model")
    tiny.save(relative(model), path / "second")
    return path


TEXT = "5 7 3 6 5 7 3 6 5 7"


def test_a_pair_is_loaded_and_drafts(folder: Path) -> None:
    loaded = engine.load(str(folder / "model"), "none", "cpu", "float32", draft=str(folder / "second"))
    info = loaded.info
    assert "draft_model" not in info.unavailable
    assert info.draft_model == str(folder / "second")
    assert info.draft_parameters == info.parameters and info.draft_bytes == 4 * info.parameters
    sampling = Sampling(max_new_tokens=30, temperature=0.7, seed=2)
    ours = list(loaded.generate(TEXT, EAGER, sampling))
    assert token_ids(ours) == token_ids(list(loaded.generate(TEXT, Standard(), sampling)))
    assert sum(len(e.draft) for e in ours[1:-1]) > 20 and ours[-1].reason is Reason.LENGTH


def test_without_a_draft_model_the_reason_is_said(folder: Path) -> None:
    loaded = engine.load(str(folder / "model"), "none", "cpu", "float32")
    assert loaded.info.draft_model == "none"
    with pytest.raises(engine.MethodUnavailable, match="No draft model is loaded: choose a smaller model"):
        next(loaded.generate(TEXT, DraftModel()))
    assert not any("draft model" in note for note in loaded.info.notes)  # no second model by default


class Words:
    """The properties of a tokenizer that are compared."""

    def __init__(self, words: str, special: str = "") -> None:
        self._words, self._special = words.split(), special

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self._words)}

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        return {i: type("T", (), {"special": word in self._special}) for word, i in self.get_vocab().items()}

    def convert_ids_to_tokens(self, i: int) -> str:
        return self._words[i]


@pytest.mark.parametrize(
    ("drafter", "words"),
    [
        (Words("a b"), r"the token 'c' is missing there and number 2 here"),
        (Words("a b d"), r"the token 'c' is missing there and number 2 here"),
        (Words("b a c"), r"the token 'a' is number 1 there and number 0 here"),
        (Words("a b c e"), r"the token 'e' is number 3 there and missing here"),
        (Words("a b c", "b"), r"the token 'b' is a special token for one of them only"),
    ],
)
def test_another_tokenizer_is_refused_with_the_first_difference(drafter: Words, words: str) -> None:
    with pytest.raises(
        pairing.DraftModelError, match=f"small has a different tokenizer from the model's .{words}.: choose"
    ):
        pairing.check_tokenizers("small", drafter, Words("a b c"))
    pairing.check_tokenizers("small", Words("a b c"), Words("a b c"))


def test_a_model_that_can_not_take_drafts_back_is_refused(folder: Path, tmp_path: Path) -> None:
    tiny.save(tiny.tiny("mamba"), tmp_path / "mamba")
    with pytest.raises(pairing.DraftModelError, match="can't be the draft model: choose another one"):
        engine.load(str(folder / "model"), "none", "cpu", "float32", draft=str(tmp_path / "mamba"))


@pytest.mark.parametrize(
    ("named", "words"), [("mamba-model/of nobody", "There is no model"), ("SELF/none", "There is no model")]
)
def test_a_draft_model_that_is_not_there(folder: Path, named: str, words: str, capsys: Any) -> None:
    named = named.replace("SELF", str(folder))
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(folder / "model"), "--draft-model", named, "--prompt", "5"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


# ---- command line and benchmark --------------------------------------------------------------------------------------


def test_one_command_measures_it_beside_the_librarys_own(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SPECSTREAM_DB", str(tmp_path / "runs.db"))
    data, out = tmp_path / "rows.jsonl", tmp_path / "bench.json"
    data.write_text(json.dumps({"prompt": TEXT}) + "\n")
    words = f"bench --model {folder / 'model'} --adapter none --draft-model {folder / 'second'} --dtype float32"
    words += (
        f" --methods draft_model,hf-assistant --data {data} --task chat --repeats 1 --max-new-tokens 20 --json {out}"
    )
    main(words.split())
    rows = json.loads(out.read_text())["rows"]
    assert [r["method"] for r in rows] == ["standard", "draft_model", "hf-assistant"]
    assert [r["identical"] for r in rows] == [1, 1, 1]
    assert rows[1]["extra_parameters"] == rows[2]["extra_parameters"] > 1000 > rows[0]["extra_parameters"]
    assert rows[1]["tokens_per_step"] > 1.2 and rows[2]["settings"] == {"assistant": str(folder / "second")}


def test_a_benchmark_does_not_compare_what_need_not_be_the_same() -> None:
    loaded = toy.load_toy(pace=0)
    contenders = [bench.Ours(loaded, DraftModel(drafts=drafts)) for drafts in ("greedy", "sampled")]
    sampling = Sampling(max_new_tokens=60, temperature=0.8, seed=4)
    rows = bench.result_rows(bench.bench(loaded, bench.prompts_as_cases(["Text:"]), contenders, sampling), "e2e")
    assert [(r["identical"], r["compared"], len(r["differences"])) for r in rows] == [(1, 1, 0), (1, 1, 0), (0, 0, 0)]
    assert [line.count(" | 1/1 | ") for line in bench.table(rows)][2:] == [1, 1, 0]


def test_the_reference_takes_the_draft_model_or_another(folder: Path) -> None:
    loaded = engine.load(str(folder / "model"), "none", "cpu", "float32", draft=str(folder / "second"))
    own, other = (
        baselines.references(["hf-assistant"], loaded, "none", named)[0] for named in (None, str(folder / "model"))
    )
    rows = bench.bench(loaded, bench.prompts_as_cases([TEXT]), [own, other], Sampling(max_new_tokens=16))
    assert [r.identical for r in rows] == [1, 1, 1]
    assert [r.contender.settings["assistant"][-6:] for r in rows[1:]] == ["second", "/model"]


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_asks_for_a_draft_model_and_shows_it() -> None:
    choice = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
    with gr.Blocks():
        without, given = (
            model_panel.layout(Engines(c), lambda: None)[0] for c in (choice, choice | {"draft": "my/small-one"})
        )
    assert (without.draft.value, given.draft.value) == ("none", "my/small-one")
    assert given.chosen({part: part.value for part in given.choice}) == choice | {"draft": "my/small-one"}
    info = replace(toy.load_toy().info, draft_model="my/small-one", draft_parameters=2_500_000, draft_bytes=5_000_000)
    assert "my/small-one, 2.5 M parameters, 5 MB" in render.model_card(info)
    assert "Draft model" not in render.model_card(toy.load_toy().info)  # the toy's is part of the program


def test_a_demo_loads_no_second_model() -> None:
    access_rules.DEMO.check_choice("toy", "auto", "auto", "auto", "none")
    with pytest.raises(access_rules.Refused, match="their bundled adapters only"):
        access_rules.DEMO.check_choice("toy", "auto", "auto", "auto", "smollm2-135m")
