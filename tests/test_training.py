"""Training: the objective against a slow reference, gradients, resume, and the off-by-one test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from specstream import adapters
from specstream.adapters import Adapter, Card, base_shape
from specstream.anatomy import dissect
from specstream.params import Sampling, Streaming
from specstream.tasks import task
from specstream.training.data import IGNORE, DataError, Example, batches, collate, read_examples
from specstream.training.objective import StreamModel, objective
from specstream.training.trainer import Config, Trainer
from tests import tiny


def fresh(mode: str = "shared", gamma: int = 3, family: str = "llama", lora: int = 4):
    anatomy = dissect(tiny.tiny(family))
    anatomy.model.requires_grad_(False)
    torch.manual_seed(3)
    card = Card("tiny", base_shape(anatomy), "e2e", mode, gamma, 2, start_rank=4, lora_rank=lora, lora_scale=2.0)
    adapter = Adapter(anatomy, card)
    for weight in adapter.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return anatomy, adapter


def example(prompt: int, response: int, seed: int) -> Example:
    ids = tiny.prompt(prompt + response, seed)
    return Example(tuple(ids[:prompt]), tuple(ids[prompt:]))


EXAMPLES = [example(7, 6, 1), example(4, 3, 2), example(9, 8, 3)]


def reference_losses(anatomy, adapter, examples: list[Example], gamma: int) -> torch.Tensor:
    """Equations 1-3 and 5 the slow, obvious way: every position alone, its streams as the only extra rows."""
    sums, counts = torch.zeros(1 + gamma), torch.zeros(1 + gamma)
    for e in examples:
        ids = e.prompt + e.response
        for at in range(len(e.prompt) - 1, len(ids) - 1):
            batch = collate([Example(ids[: at + 1], (0,))], gamma, 0)
            assert batch.nodes.tolist() == [[at]]
            # The rows after ``at`` are cut off, so nothing can leak from the future.
            batch = replace(
                batch,
                ids=batch.ids[:, : at + 1],
                positions=batch.positions[:, : at + 1],
                mask=batch.mask[:, : at + 1, : at + 1],
            )
            main, streams = StreamModel(anatomy, adapter)._states(batch)
            logits = torch.cat([anatomy.head_logits(main[0]), anatomy.logits(streams[0, 0])])
            for j in range(1 + gamma):
                if at + 1 + j < len(ids):
                    sums[j] += F.cross_entropy(logits[j], torch.tensor(ids[at + 1 + j]))
                    counts[j] += 1
    return sums / counts


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral-window"])
@pytest.mark.parametrize("mode", ["shared", "lossless"])
def test_batched_loss_equals_the_slow_reference(family: str, mode: str) -> None:
    anatomy, adapter = fresh(mode, family=family)
    losses, _ = StreamModel(anatomy, adapter)(collate(EXAMPLES, 3, 0))
    with torch.no_grad():
        want = reference_losses(anatomy, adapter, EXAMPLES, 3)
    torch.testing.assert_close(losses.detach(), want, atol=1e-4, rtol=1e-4)
    weighed = objective(losses, 0.1, mode)
    assert weighed.item() == pytest.approx(float((losses[0] * (mode == "shared") + 0.1 * losses[1:].sum()).detach()))


def test_targets_stop_at_the_end() -> None:
    batch = collate([Example((1, 2), (3, 4, 5))], gamma=2, pad=0)
    assert batch.targets.tolist() == [[[3, 4, 5], [4, 5, IGNORE], [5, IGNORE, IGNORE]]]
    assert batch.nodes.tolist() == [[1, 2, 3]]


def test_padding_and_batching_change_nothing() -> None:
    anatomy, adapter = fresh()
    model = StreamModel(anatomy, adapter)
    with torch.no_grad():
        together = model._states(collate(EXAMPLES, 3, 0))
        for i, e in enumerate(EXAMPLES):
            alone = model._states(collate([e], 3, 0))
            for got, want in zip(together, alone, strict=True):
                torch.testing.assert_close(got[i, : len(e.response)], want[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["shared", "lossless"])
def test_gradients_flow_only_where_they_should(mode: str) -> None:
    anatomy, adapter = fresh(mode)
    before = {n: p.clone() for n, p in anatomy.model.named_parameters()}
    model = StreamModel(anatomy, adapter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, _ = model(collate(EXAMPLES, 3, 0))
    objective(losses, 0.5, mode).backward()
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in anatomy.model.named_parameters())
    assert all(p.grad is None for p in anatomy.model.parameters())
    silent = {n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.any()}
    # In the last layer only the rows that predict matter, so nothing there is silent either.
    assert not silent
    assert (adapter.lora.first == 0) == (mode == "shared")


def trainer(out: Path, **settings) -> Trainer:
    anatomy = dissect(tiny.tiny("llama"))
    config = Config(
        **{"batch": 2, "layers": 2, "start_rank": 8, "lora_rank": 8, "save_every": 1e9, "warmup": 0.0} | settings
    )
    card = Card("tiny", base_shape(anatomy), "e2e", config.mode, config.gamma, config.layers, config.start_rank,
                config.lora_rank, config.lora_scale)  # fmt: skip
    return Trainer(anatomy, SimpleNamespace(eos_token_id=2), card, config, out)


DATA = [example(5, 4, s) for s in range(7)]


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", epochs=3)
    whole.train(DATA, [], lambda event: None)

    class Interrupted(Exception):
        pass

    def stop(event) -> None:
        if event["step"] == 6:
            part.save_checkpoint()
            raise Interrupted

    part = trainer(tmp_path / "part", epochs=3)
    with pytest.raises(Interrupted):
        part.train(DATA, [], stop)
    resumed = trainer(tmp_path / "part", epochs=3)
    assert resumed.resume() and resumed.progress.step == 6
    resumed.train(DATA, [], lambda event: None)
    assert resumed.progress.step == whole.progress.step == 12
    for a, b in zip(whole.adapter.parameters(), resumed.adapter.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_an_adapter_overfitted_on_one_text_is_accepted_whole(tmp_path: Path) -> None:
    """The off-by-one test: gamma tokens are accepted at every step when the streams know the text by heart."""
    gamma = 3
    text = example(4, 25, 9)
    assert len(set(text.response)) > 15
    trained = trainer(tmp_path, gamma=gamma, batch=1, epochs=250, lr=5e-3, lora_rank=16, start_rank=16, alpha=1.0)
    card = trained.train([text], [], lambda event: None)
    anatomy = dissect(tiny.tiny("llama"))
    adapter = adapters.load(tmp_path, anatomy)
    adapter.lora.merge(anatomy)
    assert card.training["progress"]["step"] == 250
    sampling = Sampling(max_new_tokens=len(text.response))
    for params in (Streaming(width=1, budget=gamma), Streaming(tree="full", width=2)):
        steps = tiny.finish(tiny.streaming_run(anatomy, adapter, list(text.prompt), sampling, params))
        assert tuple(tiny.ids_of(steps)) == text.response
        assert [len(s.tokens) for s in steps[1:]] == [gamma + 1] * ((len(text.response) - 1) // (gamma + 1))


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    assert batches(DATA, 2, 0, 1) == batches(DATA, 2, 0, 1)
    assert batches(DATA, 2, 0, 1) != batches(DATA, 2, 0, 2)
    assert sorted(e.prompt for b in batches(DATA, 2, 0, 1) for e in b) == sorted(e.prompt for e in DATA)


class Letters:
    eos_token_id = 2

    def __call__(self, text: str, **_):
        return SimpleNamespace(input_ids=[3 + ord(c) % 100 for c in text])


GOOD = {"meaning_representation": "name[X]", "human_reference": "X is here."}
BAD_FILES = {
    "": "no examples",
    json.dumps(GOOD) + "\n{": "line 2: not valid JSON",
    "[1]": "line 1: expected an object",
    json.dumps({"human_reference": "a"}): "line 1: the column 'meaning_representation'",
    json.dumps(GOOD | {"human_reference": ""}): "line 1: the column 'human_reference'",
    json.dumps(GOOD | {"human_reference": 5}): "line 1: the column 'human_reference'",
    json.dumps(GOOD | {"human_reference": "x" * 600}): "line 1: 6.. tokens, longer than the limit",
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_bad_data_names_the_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=BAD_FILES[content]):
        read_examples(file, task("e2e"), Letters(), 512)


def test_unreadable_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_examples(tmp_path / "missing.jsonl", task("e2e"), Letters(), 512)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_examples(tmp_path / "binary", task("e2e"), Letters(), 512)
