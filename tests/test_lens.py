"""The stream lens: it shows what the streams actually drafted, has no side effects, and escapes texts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from specstream.engine import RunLock
from specstream.model import attention, cpu_linear
from specstream.params import Sampling, Streaming
from specstream.target import lens
from specstream.target.model_target import ModelTarget, Variant
from specstream.testing.toy import load_toy
from tests import tiny
from ui.components import lens as component
from ui.html import lens as html
from ui.jobs import lens as job
from ui.state import recording

SAMPLING = Sampling(max_new_tokens=12)


@pytest.mark.parametrize(("family", "mode"), [("llama", "shared"), ("gemma2", "lossless")])
def test_the_last_layer_is_what_the_streams_draft_and_runs_are_untouched(family: str, mode: str) -> None:
    anatomy, adapter = tiny.model_with_adapter(family, mode=mode)
    assert attention.install(anatomy.model)
    params = Streaming(streams="deferred", depth=3)
    before = tiny.finish(tiny.streaming_run(anatomy, adapter, tiny.prompt(9), SAMPLING, params))
    ids = [*tiny.prompt(9), *tiny.ids_of(before)[:4]]
    seen = lens.watch(ModelTarget(anatomy, adapter, Variant(deferred=True)), ids)
    target = ModelTarget(anatomy, adapter, Variant(deferred=True))
    target.prefill(ids[:-1])
    drafted = target.stream_logits(0)
    assert torch.equal(seen.logits[-1], drafted) and seen.logits.shape == (3, 3, tiny.VOCAB)
    assert not torch.equal(seen.logits[0], seen.logits[-1])
    assert seen.shares is not None and seen.shares.shape == (3, len(ids) - 1)
    assert bool((seen.shares >= 0).all()) and bool((seen.shares.sum(-1) < 1).all())  # the rest is for the streams
    after = tiny.finish(tiny.streaming_run(anatomy, adapter, tiny.prompt(9), SAMPLING, params))
    assert [s.tokens for s in after] == [s.tokens for s in before]
    assert AttentionInterface()[attention.NAME] is attention.attend


def test_streams_that_run_alone_in_layers_of_their_own_are_watched_too() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama", mode="lossless")
    adapter.merge_copies(anatomy, cpu_linear.NATIVE)
    assert adapter.merged and attention.install(anatomy.model)
    target = ModelTarget(anatomy, adapter, Variant(deferred=True))
    seen = lens.watch(target, tiny.prompt(9))
    target.prefill(tiny.prompt(9)[:-1])
    assert torch.equal(seen.logits[-1], target.stream_logits(0)) and seen.shares is not None


def test_a_model_that_attends_otherwise_tells_no_places() -> None:
    anatomy, adapter = tiny.model_with_adapter("llama")
    anatomy.model.set_attn_implementation("eager")
    target = ModelTarget(anatomy, adapter, Variant(deferred=True))
    assert lens.watch(target, tiny.prompt(9)).shares is None
    engine: Any = SimpleNamespace(
        info=replace(load_toy(pace=0).info, layers=4), lock=RunLock(), make_target=lambda _: target, show=str,
        settled=lambda method: method,
    )  # fmt: skip
    found = lens.look(engine, tiny.prompt(9))
    assert found["layers"] == [2, 3, 4] and [s["looked"] for s in found["streams"]] == [[], [], []]


def test_a_model_without_streams_and_a_text_too_short_or_too_long_are_refused() -> None:
    engine = load_toy(pace=0)
    with pytest.raises(ValueError, match="nothing before"):
        lens.look(engine, [1])
    with pytest.raises(ValueError, match="has 4,097 tokens; this model's context is 4,096: shorten the text"):
        lens.look(engine, [1] * (engine.info.context + 1))
    assert lens.look(engine, [1] * engine.info.context)["streams"]
    engine.info = replace(engine.info, unavailable={"streaming": "No streams are loaded."})
    with pytest.raises(ValueError, match="No streams are loaded"):
        lens.look(engine, [1, 2])


def test_another_model_does_not_answer_for_the_one_that_ran() -> None:
    engine, view = load_toy(pace=0), recording.load().view()
    assert view.origin is not None
    with pytest.raises(job.OtherModel, match="smollm2-135m with adapter e2e"):
        job.same_model(engine.info, view.origin)


def test_what_came_true_is_marked_and_markup_is_text() -> None:
    belief = [["<b>", 0.5], [" x\n", 0.25], ["\x00", 0.1]]
    look = {
        "layers": [3, 4],
        "text": ["<i>", "a"],
        "streams": [{"beliefs": [belief, belief], "looked": [[1, "a", 0.4]]}],
    }
    page = html.panel(look, 2, "<u>", ["<b>"])
    assert "<b>" not in page and "<i>" not in page and "<u>" not in page and "\x00" not in page
    assert page.count("✓ 50%") == 2 and "✓ 25%" not in page and "␣x⏎" in page
    assert (
        "after layer 4" in page
        and "when it began" in page
        and "a 40%" in page.replace("<code>", "").replace("</code>", "")
    )


def test_a_step_is_looked_at_from_where_it_began() -> None:
    view = recording.load().view()
    index = component.telling(view)
    step = view.steps[index]
    assert any(token.depth for token in step.tokens) and len(step.draft) > len(step.tokens) - 1
    before = component.place(view, index).before
    assert len(before) == sum(len(s.tokens) for s in view.steps[:index])
    assert before[-1] == view.steps[index - 1].tokens[-1].id
