"""Training heads: what they learn, that nothing else changes, checkpoints, and the resulting folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from specstream import cli, engine
from specstream.adapters import heads, weights
from specstream.adapters.card import WEIGHTS, Card, HeadCard, read_card
from specstream.adapters.weights import Adapter, base_shape
from specstream.decoding.drafters.early_exit import EarlyExitDrafter
from specstream.decoding.drafters.medusa import MedusaDrafter
from specstream.model.introspection import Anatomy, dissect
from specstream.params import EarlyExit, Medusa, Sampling, Standard, Streaming
from specstream.session import token_ids
from specstream.target.model_target import ModelTarget
from specstream.training import probe
from specstream.training.batches import DataError, collate
from specstream.training.config import Config
from specstream.training.heads import check_out, head_model
from specstream.training.trainer import Trainer
from tests import tiny
from tests.test_training import DATA, EXAMPLES, Letters, example
from tests.trainings import rows, save_model

SHAPES = {
    "medusa": HeadCard("medusa", count=2),
    "own": HeadCard("medusa", count=2, projection="own"),
    "exit": HeadCard("exit", layers=2, rank=16),
}


def started(folder: Path) -> Path:
    """The folder of a trained adapter with streams."""
    anatomy = dissect(tiny.tiny("llama"))
    card = Card("tiny", base_shape(anatomy), "e2e", "shared", 2, 2, start_rank=4, lora_rank=4, lora_scale=2.0)
    torch.manual_seed(3)
    adapter = Adapter(anatomy, card)
    for weight in adapter.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    weights.save(adapter, folder, card)
    return folder


def model_of(kind: str, start: Path | None, vocabulary: torch.Tensor | None = None, cache: float = 1.0):
    """A head model on a tiny base, with the adapter's LoRA merged as the command does it."""
    anatomy = dissect(tiny.tiny("llama"))
    if start is None:
        card = Card("tiny", base_shape(anatomy), "e2e", "plain", 0, 2, start_rank=0, lora_rank=0, lora_scale=1.0)
    else:
        adapter = weights.load(start, anatomy)
        adapter.lora.merge(anatomy)
        card = adapter.card
    shape = SHAPES[kind]
    shape = replace(shape, draft_vocabulary=0 if vocabulary is None else len(vocabulary))
    return anatomy, head_model(anatomy, card, start, shape, vocabulary, Config(cache=cache))


def trainer_of(kind: str, out: Path, start: Path | None = None, **settings) -> Trainer:
    anatomy, model = model_of(kind, start)
    config = Config(
        **{"mode": "exit" if kind == "exit" else "medusa", "batch": 2, "save_every": 1e9, "warmup": 0.0, "probes": 0,
           "draft_vocabulary": 0, "precision": "float32", "lr": 1e-2} | settings
    )  # fmt: skip
    return Trainer(anatomy, Letters(), model.described({}, {}, ""), config, out, None, model)


def losses_by_hand(anatomy: Anatomy, model, kind: str) -> torch.Tensor:
    """Every position alone, from the model's hidden states without a batch."""
    sums, counts = torch.zeros(1 + model.drafting), torch.zeros(1 + model.drafting)
    for e in EXAMPLES:
        ids = e.prompt + e.response
        out = anatomy.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        final = anatomy.decoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        for at in range(len(e.prompt) - 1, len(ids) - 1):
            if kind == "exit":
                drafted = [(1, model.heads.logits(anatomy, out.hidden_states[2][0, at]), at + 1)]
            else:
                every = model.heads.spread(anatomy, model.heads.row_scores(anatomy, final[at]))
                drafted = [(j, every[j - 1], at + 1 + j) for j in (1, 2)]
            for column, logits, place in [(0, out.logits[0, at], at + 1), *drafted]:
                if place < len(ids):
                    sums[column] += F.cross_entropy(logits, torch.tensor(ids[place]))
                    counts[column] += 1
    return sums / counts


@pytest.mark.parametrize("kind", SHAPES)
def test_losses_are_those_of_every_position_alone(kind: str) -> None:
    anatomy, model = model_of(kind, None)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    batch = collate(EXAMPLES, model.ahead, 0)
    with torch.no_grad():
        sums = model.eval()(batch)
        torch.testing.assert_close(sums[0] / sums[2], losses_by_hand(anatomy, model, kind), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sums[2].long(), model.counts(batch))
        trained = model.train()(batch)
    assert trained[:, 0].tolist() == [0, 0, 0]  # the main stream is not trained
    torch.testing.assert_close(trained[:, 1:], sums[:, 1:])


@pytest.mark.parametrize("kind", SHAPES)
def test_training_changes_the_heads_and_nothing_else(kind: str, tmp_path: Path) -> None:
    start = started(tmp_path / "start")
    run = trainer_of(kind, tmp_path / "out", start, epochs=12)
    before = {n: p.clone() for n, p in run.anatomy.model.state_dict().items()}
    old = [p.detach().clone() for p in run.adapter.parameters()]
    events: list[dict] = []
    card = run.train(DATA, [], events.append)
    assert all(torch.equal(p, before[n]) for n, p in run.anatomy.model.state_dict().items())
    assert not any(torch.equal(p, o) for p, o in zip(run.adapter.parameters(), old, strict=True))
    first, last = events[0]["losses"], events[-1]["losses"]
    assert all(b < 0.8 * a for a, b in zip(first[1:], last[1:], strict=True))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (start / WEIGHTS).read_bytes()
    assert replace(card, heads={}) == read_card(start)
    head = card.heads[SHAPES[kind].kind]
    assert head.shape() == SHAPES[kind].shape() and head.training["progress"]["step"] == 48 and head.date


def test_targets_outside_the_draft_vocabulary_count_for_nothing() -> None:
    ids = torch.tensor(sorted({t for e in EXAMPLES for t in e.response})[:9])
    for kind in SHAPES:
        anatomy, model = model_of(kind, None, ids)
        batch = collate(EXAMPLES, model.ahead, 0)
        sums = model.eval()(batch)
        assert sums[2].tolist() == model.counts(batch).tolist() and 0 < sums[2, 1] < sums[2, 0]


def test_both_kinds_lie_in_one_folder_and_resume_is_exact(tmp_path: Path) -> None:
    start = started(tmp_path / "start")
    whole = trainer_of("medusa", tmp_path / "whole", start, epochs=3)
    whole.train(DATA, [], lambda event: None)
    out = tmp_path / "out"
    part = trainer_of("medusa", out, start, epochs=3)
    part.train(DATA, [], lambda event: None, should_stop=lambda: part.progress.step == 6)
    assert part.progress.step == 6
    trainer_of("exit", out, start, epochs=1).train(DATA, [], lambda event: None)
    resumed = trainer_of("medusa", out, out, epochs=3)  # the folder is an adapter that the heads are for
    assert resumed.resume() and resumed.progress.step == 6
    card = resumed.train(DATA, [], lambda event: None)
    for a, b in zip(whole.adapter.parameters(), resumed.adapter.parameters(), strict=True):
        assert torch.equal(a, b)
    assert set(card.heads) == {"medusa", "exit"}
    anatomy = dissect(tiny.tiny("llama"))
    assert heads.load(out, anatomy).parameters().keys() == {"medusa", "early_exit"}
    assert (out / "checkpoint-medusa").is_dir() and not (out / "checkpoint").exists()


def test_a_checkpoint_of_other_heads_is_refused(tmp_path: Path) -> None:
    start = started(tmp_path / "start")
    trainer_of("medusa", tmp_path / "out", start, epochs=1).train(DATA, [], lambda event: None)
    with pytest.raises(DataError, match="has other projection"):
        trainer_of("own", tmp_path / "out", start, epochs=1).resume()
    with pytest.raises(DataError, match="has other adapter"):
        trainer_of("medusa", tmp_path / "out", None, epochs=1).resume()


def test_a_folder_with_another_adapter_is_left_alone(tmp_path: Path) -> None:
    start, other = started(tmp_path / "start"), tmp_path / "other"
    check_out(tmp_path / "new", start)
    check_out(start, start)
    anatomy = dissect(tiny.tiny("llama", seed=1))
    weights.save(tiny.random_adapter(anatomy), other, read_card(start))
    for given in (start, None):
        with pytest.raises(DataError, match="holds another adapter"):
            check_out(other, given)


def test_from_the_command_line_to_one_engine_with_every_method(tmp_path: Path, capsys, monkeypatch) -> None:
    """Streams, then both kinds of heads beside them, then standard decoding: one folder, one text."""
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "home"))
    model, data = str(save_model(tmp_path / "model")), tmp_path / "rows.jsonl"
    data.write_text(rows(12))
    streams, out = tmp_path / "streams", tmp_path / "heads"

    def train(*words: str) -> str:
        common = ["--model", model, "--task", "sql", "--data", str(data), "--device", "cpu", "--precision", "float32"]
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *common, "--layers", "2", "--epochs", "2", "--draft-vocabulary", "60", *words])
            raise SystemExit(0)
        found = capsys.readouterr()
        return found.out if not ended.value.code else found.err

    train("--mode", "shared", "--gamma", "2", "--out", str(streams))
    beside = ["--start", str(streams), "--out", str(out), "--dev", str(data), "--probes", "1"]
    words = train("--mode", "medusa", "--gamma", "3", *beside)
    assert "Heads saved in" in words and "Tokens per step" in words and "--method medusa" in words
    default = str(Config().draft_vocabulary)  # larger than that of the model: then all of its tokens
    assert "--method early_exit" in train("--mode", "exit", *beside, "--draft-vocabulary", default)
    assert "holds another adapter" in train("--mode", "exit", "--out", str(streams))
    assert "no checkpoint" in train("--mode", "exit", "--start", str(streams), "--out", str(tmp_path / "x"), "--resume")
    assert "after layer 1 to 3" in train("--mode", "exit", *beside, "--layers", "4")
    loaded = engine.load(model, str(out), "cpu", "float32")
    h = loaded.make_target(Standard()).anatomy.hidden_size
    assert loaded.info.head_parameters == {"medusa": 3 * (h * h + h), "early_exit": 2 * h * h}
    assert {"standard", "streaming", "medusa", "early_exit"}.isdisjoint(loaded.info.unavailable)
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=16, temperature=temperature, seed=3, ignore_eos=True)
        texts = {}
        for method in (Standard(), Streaming(budget=5), Medusa(budget=5), EarlyExit(confidence=0)):
            texts[method.name] = token_ids(list(loaded.generate("7 8 9", method, sampling)))
        assert len(texts["standard"]) == 16 and all(ids == texts["standard"] for ids in texts.values())
    assert engine.load(model, str(streams), "cpu", "float32").info.unavailable.keys() >= {"medusa", "early_exit"}


@pytest.mark.parametrize("kind", ["medusa", "exit"])
def test_heads_that_know_a_text_by_heart_are_accepted_whole(kind: str, tmp_path: Path, monkeypatch) -> None:
    """The off-by-one test: no loss on one text means a whole draft is accepted at every step. On the bare base, whose
    folder then holds heads alone. The text is what the model itself writes."""
    anatomy = dissect(tiny.tiny("llama"))
    prompt = tiny.prompt(6, 3)
    answer = tiny.generate_ids(anatomy.model, prompt, Sampling(max_new_tokens=25))
    assert len(set(answer)) > 8
    monkeypatch.setattr(probe, "TOKENS", len(answer))
    text = replace(example(1, 1, 0), prompt=tuple(prompt), response=tuple(answer))
    run = trainer_of(kind, tmp_path, None, batch=1, epochs=150, probes=1, validate_every=150)
    card = run.train([text], [text], lambda event: None)
    beside = heads.load(tmp_path, anatomy)
    target = ModelTarget(anatomy, heads=beside)
    running = tiny.new_run(target, None, prompt, Sampling(max_new_tokens=25))
    depth = 2 if kind == "medusa" else 4
    running.drafter = (
        MedusaDrafter(target, Medusa(width=1, budget=2, copies="off"), running.ids)
        if kind == "medusa"
        else EarlyExitDrafter(target, running.ids, EarlyExit(width=1, confidence=0))
    )
    steps = tiny.finish(running)
    assert tiny.ids_of(steps) == answer
    assert [len(s.tokens) for s in steps[1:-1]] == [depth + 1] * (len(steps) - 2)
    assert card.heads[kind].metrics["tokens_per_step"] > 2.5
