"""Training: the objective against a slow reference, gradients, resume, and the off-by-one test."""

from __future__ import annotations

import ast
import json
import random
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from specstream.adapters import weights
from specstream.adapters.card import AdapterError, Card
from specstream.adapters.weights import Adapter, base_shape
from specstream.data.tasks import task
from specstream.model.introspection import dissect
from specstream.params import Sampling, Streaming
from specstream.training import answers, command, self_distillation
from specstream.training.batches import IGNORE, DataError, Example, batches, collate, draft_vocabulary, read_examples
from specstream.training.config import Config
from specstream.training.frozen_cache import FrozenStates
from specstream.training.loss import StreamModel, objective, sums_of
from specstream.training.self_distillation import answer_all, own_prompts
from specstream.training.trainer import Trainer
from tests import tiny
from tests.launching import in_two_processes


def fresh(mode: str = "shared", gamma: int = 3, family: str = "llama", lora: int = 4, pairs: int = 0):
    anatomy = dissect(tiny.tiny(family))
    anatomy.model.requires_grad_(False)
    torch.manual_seed(3)
    ranks = {"start_rank": 4, "lora_rank": lora, "pair_rank": pairs}
    card = Card("tiny", base_shape(anatomy), "e2e", mode, gamma, 2, lora_scale=2.0, **ranks)
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
            assert batch.stream_rows().tolist() == [[at]]
            main, streams, _ = StreamModel(anatomy, adapter)._states(batch)
            logits = torch.cat([anatomy.head_logits(main[0]), anatomy.logits(streams[0, 0])])
            for j in range(1 + gamma):
                if at + 1 + j < len(ids):
                    if j and adapter.pairs:
                        logits[j] += follows(anatomy, adapter, j, ids[at + j])
                    sums[j] += F.cross_entropy(logits[j], torch.tensor(ids[at + 1 + j]))
                    counts[j] += 1
    return sums / counts


def follows(anatomy, adapter, stream: int, above: int) -> torch.Tensor:
    """What the pair map adds to the logits of stream 1 to gamma after the token ``above``, one token at a time."""
    table, pairs = anatomy.model.get_input_embeddings().weight, adapter.pairs
    x = table[above] / table[above].norm() @ pairs.before
    return torch.stack([pairs.weight[stream - 1] * x @ (y / y.norm() @ pairs.after) for y in table])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral-window"])
@pytest.mark.parametrize("pairs", [0, 5])
@pytest.mark.parametrize("mode,tuned", [("shared", "all"), ("shared", "top"), ("lossless", "all")])
def test_batched_loss_equals_the_slow_reference(family: str, mode: str, tuned: str, pairs: int) -> None:
    anatomy, adapter = fresh(mode, family=family, pairs=pairs)
    batch = collate(EXAMPLES, 3, 0)
    model = StreamModel(anatomy, adapter, tuned, cache=1).eval()
    sums = model(batch).detach()
    with torch.no_grad():
        want = reference_losses(anatomy, adapter, EXAMPLES, 3)
    torch.testing.assert_close(sums[0] / sums[2], want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.counts(batch), sums[2].long())
    sums = model.train()(batch)
    weighed = objective(sums[0], model.counts(batch), 0.1, 3)
    assert weighed.item() == pytest.approx(float(want[0] * (mode == "shared") + 0.1 * want[1:].sum()), rel=1e-4)


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
            for got, want in zip(together[:2], alone[:2], strict=True):
                torch.testing.assert_close(got[i, : len(e.response)], want[0], atol=1e-5, rtol=1e-4)


class Spy:
    """Counts how often the lowest layer of a model computes anything."""

    def __init__(self, anatomy) -> None:
        self.passes = 0
        next(iter(anatomy.linears(0).values())).register_forward_hook(self.saw)

    def saw(self, *_) -> None:
        self.passes += 1


@pytest.mark.parametrize("mode,tuned", [("shared", "top"), ("lossless", "all")])
def test_states_below_what_is_trained_are_computed_once(mode: str, tuned: str) -> None:
    anatomy, adapter = fresh(mode)
    below = Spy(anatomy)
    kept, anew = (StreamModel(anatomy, adapter, tuned, cache) for cache in (1.0, 0.0))
    batch = collate(EXAMPLES, 3, 0)
    first = kept(batch)
    assert below.passes == len(EXAMPLES)
    with torch.no_grad():  # the layers with streams change, and another batch has other padding
        for weight in adapter.streams.parameters():
            weight.add_(0.1)
    again = kept(collate(EXAMPLES[:2], 3, 0))
    assert below.passes == len(EXAMPLES)
    want = anew(collate(EXAMPLES[:2], 3, 0))
    assert below.passes == len(EXAMPLES) + 2
    assert torch.equal(again, want) and not torch.equal(first[:, 1:], again[:, 1:])
    little = StreamModel(anatomy, adapter, tuned, cache=1e-6)  # room for one of them
    assert torch.equal(little(batch), anew(batch)) and torch.equal(little(batch), anew(batch))


def test_states_of_a_batch_computed_together_are_those_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: padded rows in one pass."""
    anatomy, adapter = fresh("lossless")
    below = Spy(anatomy)
    batch = collate(EXAMPLES, 3, 0)
    want = FrozenStates(StreamModel(anatomy, adapter)._run_below, 1.0).of(batch)
    monkeypatch.setattr("specstream.training.frozen_cache.batches_passes", lambda device: True)
    states = FrozenStates(StreamModel(anatomy, adapter)._run_below, 1.0)
    before = below.passes
    torch.testing.assert_close(states.of(batch), want)
    assert len({len(e) for e in EXAMPLES}) > 1 and below.passes == before + 1
    assert torch.equal(states.of(batch), states.of(batch)) and below.passes == before + 1


@pytest.mark.parametrize("mode,tuned", [("shared", "all"), ("shared", "top"), ("lossless", "all")])
def test_gradients_flow_only_where_they_should(mode: str, tuned: str) -> None:
    anatomy, adapter = fresh(mode, pairs=5)
    before = {n: p.clone() for n, p in anatomy.model.named_parameters()}
    model = StreamModel(anatomy, adapter, tuned)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = collate(EXAMPLES, 3, 0)
    objective(model(batch)[0], model.counts(batch), 0.5, 3).backward()
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in anatomy.model.named_parameters())
    assert all(p.grad is None for p in anatomy.model.parameters())
    silent = {n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.any()}
    # In the last layer only the rows that predict matter, so nothing there is silent either.
    below = {f"lora.{w}.{k}" for w in "ab" for k in adapter.lora.a if int(k.split("/")[0]) < len(anatomy.layers) - 2}
    assert silent == (below if tuned == "top" else set()) and bool(below) == (mode == "shared")
    assert (adapter.lora.first == 0) == (mode == "shared")


def test_nothing_but_the_pair_map_is_trained_where_asked() -> None:
    anatomy, adapter = fresh("lossless", pairs=5)
    model = StreamModel(anatomy, adapter, "none")
    batch = collate(EXAMPLES, 3, 0)
    objective(model(batch)[0], model.counts(batch), 0.5, 3).backward()
    moved = {n for n, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"pairs.before", "pairs.after", "pairs.weight"}
    with pytest.raises(ValueError, match="--pair-rank"):
        Config(tuned_layers="none", pair_rank=0)


def test_the_pair_map_learns_what_follows_what(tmp_path: Path) -> None:
    """Random streams can't predict texts in which every token has one successor; the pair map beside them can."""
    after = torch.randperm(tiny.VOCAB - 3, generator=torch.Generator().manual_seed(0)).tolist()

    def text(first: int) -> Example:
        ids = [first]
        while len(ids) < 12:
            ids.append(after[ids[-1]])
        return Example(tuple(i + 3 for i in ids[:4]), tuple(i + 3 for i in ids[4:]))

    data = [text(i) for i in range(60)]
    settings = {"mode": "lossless", "tuned_layers": "none", "pair_rank": 32, "lr": 0.01, "alpha": 1.0, "batch": 12}
    trained = trainer(tmp_path, epochs=30, **settings)
    before = {n: p.clone() for n, p in trained.adapter.named_parameters()}
    losses, hits = (trained.validate(data)[n][1:] for n in ("losses", "hits"))
    trained.train(data, [], lambda event: None)
    found = trained.validate(data)
    assert all(hit < 0.1 for hit in hits) and all(hit > 0.9 for hit in found["hits"][1:])
    assert all(now < then / 3 for now, then in zip(found["losses"][1:], losses, strict=True))
    moved = {n for n, p in trained.adapter.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"pairs.before", "pairs.after", "pairs.weight"}


class Letters:
    """A tokenizer with one token per letter, optionally with a chat template."""

    eos_token_id, bos_token = 2, None

    def __init__(self, chat: bool = False) -> None:
        self.chat_template = "yes" if chat else None

    def __call__(self, text: str, **_):
        return SimpleNamespace(input_ids=[3 + ord(c) % 50 for c in text])

    def decode(self, ids, **_):
        return "".join(chr(65 + i % 26) for i in ids)

    def apply_chat_template(self, messages, **_):
        return f"user: {messages[0]['content']} end\nassistant:"


def trainer(out: Path, main: int = 0, ids: torch.Tensor | None = None, **settings) -> Trainer:
    anatomy = dissect(tiny.tiny("llama"))
    config = Config(
        **{"batch": 2, "layers": 2, "start_rank": 8, "lora_rank": 8, "save_every": 1e9, "warmup": 0.0, "probes": 0,
           "draft_vocabulary": 0, "pair_rank": 0, "precision": "float32"} | settings
    )  # fmt: skip
    card = Card("tiny", base_shape(anatomy), "e2e", config.mode, config.gamma, config.layers, config.start_rank,
                config.lora_rank, config.lora_scale, config.exit_rank, config.draft_vocabulary,
                pair_rank=config.pair_rank, main_rank=main, main_scale=config.lora_scale if main else 0.0)  # fmt: skip
    return Trainer(anatomy, Letters(), card, config, out, ids)


DATA = [example(5, 4, s) for s in range(7)]


@pytest.mark.parametrize("settings", [{}, {"tuned_layers": "top"}, {"mode": "lossless"}, {"pair_rank": 4}])
def test_resume_equals_an_uninterrupted_run(tmp_path: Path, settings: dict[str, str]) -> None:
    whole = trainer(tmp_path / "whole", epochs=3, **settings)
    whole.train(DATA, [], lambda event: None)

    class Interrupted(Exception):
        pass

    def stop(event) -> None:
        if event["step"] == 6:
            part.save_checkpoint()
            raise Interrupted

    part = trainer(tmp_path / "part", epochs=3, **settings)
    with pytest.raises(Interrupted):
        part.train(DATA, [], stop)
    resumed = trainer(tmp_path / "part", epochs=3, **settings)
    assert resumed.resume() and resumed.progress.step == 6
    resumed.train(DATA, [], lambda event: None)
    assert resumed.progress.step == whole.progress.step == 12
    for a, b in zip(whole.adapter.parameters(), resumed.adapter.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path) -> None:
    """Gradient accumulation changes nothing, though the parts have different numbers of tokens."""
    data = [example(3 + s, 2 + s % 3, s) for s in range(8)]
    weights = []
    for accumulate in (1, 2, 4):
        part = trainer(tmp_path / str(accumulate), epochs=2, batch=4, accumulate=accumulate)
        part.train(data, [], lambda event: None)
        weights.append(torch.cat([p.detach().flatten() for p in part.adapter.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights[0], weights[2], atol=1e-5, rtol=1e-4)


TWO_PROCESSES = """
import atexit, os, sys
from pathlib import Path
from torch import distributed
connected = Path(sys.argv[2] + os.environ["RANK"])
atexit.register(lambda: connected.write_text(str(distributed.is_initialized())))  # the first comes last
from tests.test_training import DATA, trainer
curve = []
part = trainer(Path(sys.argv[1]), epochs=2, batch=2)
part.train(DATA[:6], [], lambda event: curve.append(event["losses"]))
assert part.accelerator.num_processes == 2
if part.accelerator.is_main_process:
    Path(sys.argv[2]).write_text(repr(curve))
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    one: list[list[float]] = []
    trainer(tmp_path / "one", epochs=2, batch=2).train(DATA[:6], [], lambda event: one.append(event["losses"]))
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    in_two_processes(script, str(tmp_path / "two"), str(tmp_path / "curve"))
    assert [(tmp_path / f"curve{rank}").read_text() for rank in range(2)] == ["False", "False"]  # left in good order
    two = ast.literal_eval((tmp_path / "curve").read_text())
    assert len(one) == len(two) == 6
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), atol=1e-4, rtol=1e-4)


def test_the_chunked_loss_is_the_loss() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 30, bias=False)
    states = torch.randn(700, 8, requires_grad=True)  # more than two chunks
    targets = torch.randint(30, (700,)).index_fill(0, torch.tensor([3, 5]), IGNORE)
    for inputs in (
        (states,),
        (states, torch.randn(700, 3, requires_grad=True), torch.randn(30, 3, requires_grad=True)),
    ):
        for tensor in inputs:
            tensor.grad = None
        sums = sums_of(head, states, targets, inputs[1:])
        (3 * sums[0]).backward()
        plain = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        logits = head(plain[0]) + (plain[1] @ plain[2].T if len(plain) > 1 else 0)
        want = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        (3 * want).backward()
        torch.testing.assert_close(sums[0], want, atol=1e-2, rtol=1e-5)
        for ours, theirs in zip(inputs, plain, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-4)
        assert sums[2] == 698
        assert sums[1] == (logits.argmax(-1) == targets).sum()


def test_a_share_of_the_rows_carries_streams() -> None:
    whole, half = (collate(EXAMPLES, 2, 0, share, random.Random(0)) for share in (1.0, 0.5))
    assert whole.stream_rows().shape == (3, 8) and half.stream_rows().shape == (3, 3)
    assert torch.equal(whole.targets, half.targets)
    for b, e in enumerate(EXAMPLES):
        tokens = e.prompt + e.response
        for row, targets in zip(half.stream_rows()[b].tolist(), half.stream_targets()[b].tolist(), strict=True):
            assert len(e.prompt) - 1 <= row < len(tokens) - 1
            assert targets == [tokens[row + 1 + j] if row + 1 + j < len(tokens) else IGNORE for j in (1, 2)]


def test_the_draft_vocabulary_holds_the_frequent_then_the_low_ids() -> None:
    data = [Example((9, 9, 4), (7, 7, 5)), Example((8,), (7, 6))]
    assert draft_vocabulary(data, 3, 10).tolist() == [5, 6, 7]
    assert draft_vocabulary(data, 8, 10).tolist() == [0, 1, 4, 5, 6, 7, 8, 9]


def test_losses_and_drafts_keep_to_the_draft_vocabulary(tmp_path: Path) -> None:
    anatomy, _ = fresh()
    card = Card("tiny", base_shape(anatomy), "e2e", "shared", 2, 2, 4, 4, 2.0, exit_rank=2, draft_vocabulary=20)
    ids = torch.tensor(sorted({t for e in EXAMPLES for t in e.response})[:20])
    adapter = Adapter(anatomy, replace(card, draft_vocabulary=len(ids)), ids)
    states = torch.randn(5, anatomy.hidden_size)
    whole = adapter.logits(anatomy, states)
    assert torch.equal(whole.isfinite().sum(-1), torch.full((5,), len(ids)))
    torch.testing.assert_close(whole[:, ids], anatomy.logits(states)[:, ids])
    known = set(ids.tolist()[1:])
    adapter = Adapter(anatomy, replace(card, draft_vocabulary=len(known)), torch.tensor(sorted(known)))
    batch = collate(EXAMPLES, 2, 0)
    sums = StreamModel(anatomy, adapter).eval()(batch)
    assert sums[2].tolist() == StreamModel(anatomy, adapter).counts(batch).tolist()
    assert sums[2, 0] == 17 and sums[2, 3] == sum(t in known for e in EXAMPLES for t in e.response)
    assert sums[2, 1] == sum(t in known for e in EXAMPLES for t in e.response[1:])
    weights.save(adapter, tmp_path, adapter.card)
    again = weights.load(tmp_path, anatomy)
    assert torch.equal(again.vocabulary, adapter.vocabulary)
    torch.testing.assert_close(again.logits(anatomy, states), adapter.logits(anatomy, states))


def test_the_early_exit_trains_nothing_but_itself() -> None:
    anatomy, _ = fresh()
    adapter = Adapter(anatomy, Card("tiny", base_shape(anatomy), "e2e", "shared", 2, 2, 4, 4, 2.0, exit_rank=3))
    StreamModel(anatomy, adapter)(collate(EXAMPLES, 2, 0))[0, -1].backward()
    moved = {n for n, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"streams.exit_up"}  # the inner factor follows once this one has left zero


def test_the_best_validation_is_kept_and_decoding_is_measured(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=12, validate_every=4, probes=2)
    seen: list[dict] = []
    card = run.train(DATA, DATA[:3], seen.append)
    found = [e for e in seen if e["kind"] == "validation"]
    assert [e["step"] for e in found] == list(range(4, 49, 4))
    best = max(found, key=lambda e: e["tokens_per_step"])
    assert card.metrics["tokens_per_step"] == best["tokens_per_step"] >= 1
    assert card.training["progress"]["best_step"] == best["step"]


def test_an_adapter_whose_prompts_end_at_once_is_kept_by_its_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specstream.training.trainer.tokens_per_step", lambda *given: float("nan"))
    run = trainer(tmp_path, epochs=4, validate_every=4, probes=2)
    card = run.train(DATA, DATA[:3], lambda event: None)
    assert "tokens_per_step" not in card.metrics and len(card.metrics["losses"]) > 1


def test_plain_mode_trains_lora_alone(tmp_path: Path) -> None:
    """The reference for the quality of shared mode: the same LoRA, first batch and loss of the main stream."""
    losses = {}
    for mode in ("shared", "plain"):
        events: list[dict] = []
        run = trainer(tmp_path / mode, mode=mode, epochs=2)
        card = run.train(DATA, DATA[:2], events.append)
        losses[mode] = [e["losses"] for e in events]
    assert card.gamma == 0 and not any("streams" in n for n, _ in run.adapter.named_parameters())
    assert all(len(row) == 1 for row in losses["plain"])
    assert losses["plain"][0][0] == pytest.approx(losses["shared"][0][0], rel=1e-5)
    anatomy = dissect(tiny.tiny("llama"))
    assert weights.load(tmp_path / "plain", anatomy).lora is not None


def test_training_begins_with_another_adapter(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first", epochs=1)
    first.train(DATA, [], lambda event: None)
    second = trainer(tmp_path / "second", epochs=1, exit_rank=2, pair_rank=4)
    second.start_from(tmp_path / "first")
    assert not second.adapter.pairs.after.any()  # new: it changes nothing yet
    key = next(iter(first.adapter.lora.b))
    torch.testing.assert_close(second.adapter.lora.b[key], first.adapter.lora.b[key], atol=1e-3, rtol=1e-2)
    with pytest.raises(AdapterError, match="other streams or ranks"):
        trainer(tmp_path / "third", epochs=1, start_rank=4).start_from(tmp_path / "first")


def test_a_pair_map_leaves_all_else_of_an_adapter_as_it_is(tmp_path: Path) -> None:
    settings = {"mode": "lossless", "draft_vocabulary": 20, "epochs": 1}
    first = trainer(tmp_path / "first", ids=torch.arange(20, 40), **settings)
    first.train(DATA, [], lambda event: None)
    second = trainer(tmp_path / "second", ids=torch.arange(50, 70), tuned_layers="none", pair_rank=4, **settings)
    second.start_from(tmp_path / "first")
    second.train([example(5, 8, 1)], [], lambda event: None)
    before, after = (weights.load(tmp_path / n, first.anatomy).state_dict() for n in ("first", "second"))
    assert set(after) - set(before) == {"pairs.before", "pairs.after", "pairs.weight"}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert "vocabulary" in before
    head = second.adapter._head.weight
    assert torch.equal(head, second.anatomy.head.weight[20:40])


def test_a_pair_map_gets_further_streams_and_begins_anew_at_another_rank(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first", epochs=1, pair_rank=6, lr=0.05)
    first.train(DATA, [], lambda event: None)
    had = weights.load(tmp_path / "first", first.anatomy).pairs
    more = trainer(tmp_path / "more", pair_rank=6, gamma=6)
    more.start_from(tmp_path / "first")
    assert torch.equal(more.adapter.pairs.after, had.after) and had.after.any()
    assert more.adapter.pairs.weight.tolist() == [*had.weight.tolist(), *had.weight.tolist()[-1:] * 2]
    wider = trainer(tmp_path / "wider", pair_rank=9)
    wider.start_from(tmp_path / "first")
    assert wider.adapter.pairs.before.shape[1] == 9 and not wider.adapter.pairs.after.any()


def test_a_further_stage_may_have_fewer_layers_and_more_streams(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first", mode="lossless", layers=2, epochs=1, lr=0.05)
    first.train(DATA, [], lambda event: None)
    second = trainer(tmp_path / "second", mode="lossless", layers=1, gamma=first.config.gamma + 2, epochs=1)
    second.start_from(tmp_path / "first")
    close = {"atol": 1e-3, "rtol": 1e-2}  # adapters are saved in 16 bits
    torch.testing.assert_close(
        second.adapter.streams.embedding, first.adapter.streams.embedding[[*range(first.config.gamma), -1, -1]], **close
    )
    top = [key for key in first.adapter.lora.b if key in second.adapter.lora.b]
    assert 0 < len(top) < len(first.adapter.lora.b)
    for key in top:
        torch.testing.assert_close(second.adapter.lora.b[key], first.adapter.lora.b[key], **close)
    wide = trainer(tmp_path / "wide", mode="lossless", layers=2, start_rank=first.config.start_rank + 2, epochs=1)
    wide.start_from(tmp_path / "first")
    rows = torch.randn(1, 3, wide.anatomy.hidden_size)
    torch.testing.assert_close(wide.adapter.streams.start(rows), first.adapter.streams.start(rows), **close)
    with pytest.raises(AdapterError, match="other streams or ranks"):
        trainer(tmp_path / "third", mode="lossless", layers=1, gamma=1, epochs=1).start_from(tmp_path / "first")


def test_a_further_stage_may_have_more_layers(tmp_path: Path) -> None:
    """LoRA on the layers that carry streams for the first time adds nothing at first."""
    first = trainer(tmp_path / "first", mode="lossless", layers=1, epochs=1, lr=0.05)
    first.train(DATA, [], lambda event: None)
    second = trainer(tmp_path / "second", mode="lossless", layers=2, epochs=1)
    second.start_from(tmp_path / "first")
    before, after = first.adapter.lora.b, second.adapter.lora.b
    assert set(before) < set(after)
    for key, weight in after.items():
        want = before[key] if key in before else torch.zeros_like(weight)
        torch.testing.assert_close(weight, want, atol=1e-3, rtol=1e-2)  # adapters are saved in 16 bits


@pytest.mark.parametrize("mode", ["plain", "shared"])
def test_lossless_streams_leave_a_tuned_model_as_it_is(mode: str, tmp_path: Path) -> None:
    """Streams are trained on a fine-tuned model, in two stages and resumed; its texts don't change by a token."""
    trainer(tmp_path / "tuned", mode=mode, epochs=6, lr=0.05).train(DATA, [], lambda event: None)
    settings = {"mode": "lossless", "main": 8, "lora_rank": 4, "lr": 0.01}
    losses = {}
    for name, start in (("streams", "tuned"), ("further", "streams")):
        run = trainer(tmp_path / name, epochs=2, **settings)
        run.start_from(tmp_path / start)
        assert run.weights < sum(p.numel() for p in run.adapter.parameters())
        losses[name] = run.train(DATA, DATA[:3], lambda event: None).metrics["losses"]
    assert losses["further"][0] == losses["streams"][0] and losses["further"][1] < losses["streams"][1]
    run = trainer(tmp_path / "further", epochs=3, **settings)
    assert run.resume()
    assert run.train(DATA, DATA[:3], lambda event: None).metrics["losses"][0] == losses["streams"][0]

    sampling, prompt = Sampling(max_new_tokens=24, temperature=0.7), tiny.prompt(9)
    texts = []
    for name in ("tuned", "further"):
        anatomy = dissect(tiny.tiny("llama"))
        adapter = weights.load(tmp_path / name, anatomy)
        adapter.merge_main(anatomy)
        assert adapter.main_lora is None
        texts.append(tiny.generate_ids(anatomy.model, prompt, sampling))
    assert texts[0] == texts[1] != tiny.generate_ids(tiny.tiny("llama"), prompt, sampling)
    assert tiny.ids_of(tiny.finish(tiny.streaming_run(anatomy, adapter, prompt, sampling))) == texts[0]


def test_own_answers_are_those_of_standard_decoding_and_are_kept(tmp_path: Path) -> None:
    anatomy = dissect(tiny.tiny("llama"))
    file, tokenizer = tmp_path / "answers.jsonl", Letters(chat=True)
    prompts = ["one", "a longer one", "two"]
    made: list[tuple[int, int]] = []

    def answer(temperatures):
        return answer_all(anatomy, tokenizer, prompts, file, 9, temperatures, nullcontext, lambda *n: made.append(n))

    examples = answer((0.0, 1.0))
    assert len(examples) == 6 and made[-1] == (6, 6)
    for e, prompt in zip(examples[:3], prompts, strict=True):
        assert list(e.prompt) == tokenizer(prompt).input_ids
        ids = list(e.prompt)
        for token in e.response:
            assert int(anatomy.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    made.clear()
    assert answer((0.0, 1.0)) == examples and made == []
    assert answer((0.0,)) == examples[:3]


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_answers_are_written_in_the_precision_of_the_training(
    precision: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "one"}) + "\n")
    anatomy, used = dissect(tiny.tiny("llama")), []

    def answer(writer: Any, *rest: Any) -> list[Example]:
        used.append(writer.dtype)
        return answer_all(writer, *rest)

    monkeypatch.setattr(answers, "answer_all", answer)
    request = command.TrainingRequest("tiny", "chat", str(data), None, tmp_path, targets="self", max_answer=5)
    watch = command._Watch(None, lambda: 0)
    tokenizer = Letters(chat=True)
    examples, _ = command._examples(request, Config(precision=precision), task("chat"), anatomy, tokenizer, watch)
    assert used == [dtype] and anatomy.dtype == torch.float32 and examples[0].response


def test_own_prompts_are_user_turns(tmp_path: Path) -> None:
    anatomy, file = dissect(tiny.tiny("llama")), tmp_path / "own-prompts.jsonl"
    with pytest.raises(DataError, match="chat template"):
        own_prompts(anatomy, Letters(), 2, file, lambda n: None)
    texts = own_prompts(anatomy, Letters(chat=True), 3, file, lambda n: None)
    assert len(texts) == len(set(texts)) == 3 and all(len(t) > 8 for t in texts)


def test_own_prompts_are_stored_by_the_batch_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy, file, numbers = dissect(tiny.tiny("llama")), tmp_path / "own-prompts.jsonl", []

    def batches(*_: Any) -> Any:
        def batch(number: int) -> list[str]:
            numbers.append(number)
            if numbers == [0, 1, 2]:
                raise KeyboardInterrupt
            return ["the same in every batch", "The  same in every batch", f"number {number}"]

        return batch

    monkeypatch.setattr(self_distillation, "_prompt_batches", batches)
    write = partial(own_prompts, anatomy, Letters(chat=True), 4, file, lambda n: None)
    with pytest.raises(KeyboardInterrupt):
        write()
    file.write_text(file.read_text() + '{"prompt": "cut o')
    texts = ["the same in every batch", "number 0", "number 1", "number 2"]
    assert write() == texts and numbers == [0, 1, 2, 2]
    assert write() == texts and numbers == [0, 1, 2, 2], "they are there"


def test_an_adapter_overfitted_on_one_text_is_accepted_whole(tmp_path: Path) -> None:
    """The off-by-one test: gamma tokens are accepted at every step when the streams know the text by heart."""
    gamma = 3
    text = example(4, 25, 9)
    assert len(set(text.response)) > 15
    trained = trainer(tmp_path, gamma=gamma, batch=1, epochs=250, lr=5e-3, lora_rank=16, start_rank=16, alpha=1.0)
    card = trained.train([text], [], lambda event: None)
    anatomy = dissect(tiny.tiny("llama"))
    adapter = weights.load(tmp_path, anatomy)
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


GOOD = {"meaning_representation": "name[X]", "human_reference": "X is here."}
BAD_FILES = {
    "": "no rows",
    json.dumps(GOOD) + "\n{": "line 2: not valid JSON",
    "[1]": "line 1: expected an object",
    json.dumps({"human_reference": "a"}): "line 1: the column 'meaning_representation'",
    json.dumps(GOOD | {"human_reference": ""}): "line 1: the column 'human_reference'",
    json.dumps(GOOD | {"human_reference": 5}): "line 1: the column 'human_reference'",
    json.dumps(GOOD | {"human_reference": "x" * 600}): "no examples of at most 512 tokens",
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_bad_data_names_the_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=BAD_FILES[content]):
        read_examples(str(file), task("e2e"), Letters(), 512)


def test_unreadable_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_examples(str(tmp_path / "missing.jsonl"), task("e2e"), Letters(), 512)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_examples(str(tmp_path / "binary"), task("e2e"), Letters(), 512)


def test_the_card_names_a_file_of_ones_own_and_claims_no_licence_for_it(tmp_path: Path) -> None:
    def card(data: str) -> Card:
        request = command.TrainingRequest("tiny", "e2e", data, None, tmp_path)
        return command._card(request, dissect(tiny.tiny("llama")), task("e2e"), Config(draft_vocabulary=0))

    own, public = card(str(tmp_path / "mine.jsonl")), card(command.default_data("e2e"))
    assert (own.data, own.licence) == ("mine.jsonl", "yours, not stated")
    assert (public.data, public.licence) == (f"hub:{task('e2e').hub}", task("e2e").licence)
