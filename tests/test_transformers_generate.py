"""Our decoding called by transformers' ``generate``: the same tokens, its settings, errors for what can't be done."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LogitsProcessor,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from specstream.adapters import weights
from specstream.integrations.transformers_generate import NotSupported, decoder
from specstream.model import attention
from specstream.model.introspection import dissect
from specstream.params import DraftModel, EarlyExit, Medusa, PromptLookup, Standard, Streaming
from tests import tiny
from tests.test_detokenize import tokenizer
from tests.test_heads import bare, random_heads, saved

IDS = torch.tensor([tiny.prompt(8) * 3], device=tiny.DEVICE)
EAGER = PromptLookup(shortest=1, candidates=4)


def both(model: Any, function: Any, **settings: Any) -> tuple[list[int], list[int]]:
    options = {"attention_mask": torch.ones_like(IDS), "pad_token_id": 0, "max_new_tokens": 24} | settings
    return model.generate(IDS, **options)[0].tolist(), model.generate(
        IDS, custom_generate=function, **options
    )[0].tolist()  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen2", "gemma3", "opt", "gpt2"])
def test_greedy_equals_generate(family: str) -> None:
    model = tiny.tiny(family)
    function = decoder(model, method=EAGER)
    for settings in ({}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}, {"max_new_tokens": 1}):
        theirs, ours = both(model, function, **settings)
        assert ours == theirs
        assert len(ours) == IDS.shape[1] + settings.get("max_new_tokens", 24)


@pytest.mark.parametrize("mode", ["shared", "lossless"])
def test_streams_equal_generate(mode: str, tmp_path: Path) -> None:
    model = tiny.tiny("llama")
    adapter = tiny.random_adapter(dissect(tiny.tiny("llama")), mode=mode)
    weights.save(adapter, tmp_path, adapter.card)
    plain = model.generate(IDS, max_new_tokens=24, pad_token_id=0)[0].tolist()
    function = decoder(model, adapter=tmp_path)
    theirs, ours = both(model, function)
    assert ours == theirs
    assert (theirs == plain) == (mode == "lossless")  # a shared adapter's weights are in the model now


@pytest.mark.parametrize("method", [Medusa(budget=5), EarlyExit(confidence=0)])
def test_heads_without_streams_equal_generate(method: Any, tmp_path: Path) -> None:
    model = tiny.tiny("llama")
    with pytest.raises(NotSupported, match="train them beside|train it beside"):
        decoder(model, method=method)
    parts = dissect(tiny.tiny("llama"))
    beside = random_heads(parts)
    saved(tmp_path, parts, bare(parts), beside.medusa, beside.exit)
    theirs, ours = both(model, decoder(model, adapter=tmp_path, method=method))
    assert ours == theirs and both(model, decoder(model, adapter=tmp_path))[1] == theirs


@pytest.mark.parametrize("drafts", ["greedy", "sampled"])
def test_a_draft_model_drafts(drafts: str) -> None:
    model = tiny.tiny("llama")
    function = decoder(model, method=DraftModel(drafts=drafts, confidence=0), draft_model=tiny.tiny("llama"))
    theirs, ours = both(model, function)
    assert ours == theirs and both(model, decoder(model, draft_model=tiny.tiny("llama")))[1] == theirs
    options = {"do_sample": True, "top_k": 0, "temperature": 2.0, "logits_processor": [Parity()]}
    torch.manual_seed(1)
    _, ours = both(model, function, **options)  # what is drawn for a draft goes through the processors too
    assert alternates(ours) and ours[IDS.shape[1] :] != theirs[IDS.shape[1] :]


class InPlace(LogitsProcessor):
    """Forbids a part of the vocabulary by writing into the scores, as transformers' own loop allows."""

    def __call__(self, input_ids, scores):
        scores[:, 20:60] = -torch.inf
        return scores


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 1}])
def test_a_processor_may_write_in_place(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.tiny("llama")
    weights.save(adapter := tiny.random_adapter(dissect(tiny.tiny("llama")), mode="lossless"), tmp_path, adapter.card)
    for function in (decoder(model, method=EAGER), decoder(model, adapter=tmp_path)):
        theirs, ours = both(model, function, logits_processor=[InPlace()], **settings)
        assert ours == theirs and not {*range(20, 60)} & {*ours[IDS.shape[1] :]}
    second = decoder(model, method=DraftModel(drafts="sampled", confidence=0), draft_model=tiny.tiny("llama"))
    _, ours = both(model, second, logits_processor=[InPlace()], do_sample=True)
    assert not {*range(20, 60)} & {*ours[IDS.shape[1] :]}


def long(limit: int) -> Any:
    """A model with a longer context than the limit of our own runs."""
    config = AutoConfig.for_model("llama", **tiny.LLAMA | {"max_position_embeddings": limit, "num_hidden_layers": 1})
    model = AutoModelForCausalLM.from_config(config).eval().to(tiny.DEVICE)
    model.generation_config.eos_token_id = None
    return model


def test_as_many_tokens_as_were_asked_for() -> None:
    model = long(5000)
    options = {"max_new_tokens": 4200, "pad_token_id": 0}
    assert model.generate(IDS, custom_generate=decoder(model, method=EAGER), **options).shape[1] == IDS.shape[1] + 4200


def test_a_text_that_reaches_the_context_ends_there_with_a_warning() -> None:
    model = tiny.tiny("llama")  # a context of 256
    function = decoder(model, method=EAGER)
    with pytest.warns(UserWarning, match="ends at 256 tokens, the model's context, before the requested 324"):
        theirs, ours = both(model, function, max_new_tokens=300)
    assert ours == theirs[:256]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(both(model, function, max_new_tokens=256 - IDS.shape[1])[1]) == 256  # all requested tokens
    full = torch.tensor([tiny.prompt(256)], device=tiny.DEVICE)
    with pytest.raises(NotSupported, match="has 256 tokens; this model's context is 256: shorten it"):
        model.generate(full, custom_generate=function, max_new_tokens=4, pad_token_id=0)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3", "gpt2"])
def test_in_bfloat16_drafts_change_no_token(family: str) -> None:
    model = tiny.tiny(family).bfloat16()
    plain, drafting = (decoder(model, method=method) for method in (Standard(), EAGER))
    for seed in range(4):
        ids = torch.tensor([tiny.prompt(9, seed) * 3], device=tiny.DEVICE)
        options = {"max_new_tokens": 40, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        want = model.generate(ids, custom_generate=plain, **options)
        assert torch.equal(model.generate(ids, custom_generate=drafting, **options), want)


class Watcher:
    """Records which attention a model decodes with; ``fails`` raises at the second call."""

    def __init__(self, model: Any, fails: bool) -> None:
        self.model, self.fails = model, fails
        self.seen: list[str] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append(self.model.config._attn_implementation)
        if self.fails and len(self.seen) > 1:
            raise RuntimeError("broken off")

    def end(self) -> None:
        pass


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_the_model_attends_by_ours_in_a_run_only(before: str, fails: bool) -> None:
    model = tiny.tiny("llama")
    model.set_attn_implementation(before)
    with torch.no_grad():
        logits = model(IDS).logits
    watcher = Watcher(model, fails)
    function = decoder(model, method=EAGER, streamer=watcher)
    assert model.config._attn_implementation == before
    with pytest.raises(RuntimeError, match="broken off") if fails else nullcontext():
        model.generate(IDS, custom_generate=function, max_new_tokens=9, pad_token_id=0)
    assert set(watcher.seen[1:]) == {attention.NAME}
    assert model.config._attn_implementation == before
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, logits)


def test_end_of_text_and_criteria_end_where_they_do_in_generate() -> None:
    model = tiny.tiny("llama")
    function = decoder(model, method=EAGER)
    free, _ = both(model, function)
    for at in (1, 5, 11):
        theirs, ours = both(model, function, eos_token_id=[free[IDS.shape[1] + at], 119])
        assert ours == theirs and len(ours) <= IDS.shape[1] + at + 1

    class Seen(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([bool((input_ids[0, IDS.shape[1] :] == free[IDS.shape[1] + 7]).any())])

    theirs, ours = both(model, function, stopping_criteria=StoppingCriteriaList([Seen()]))
    assert ours == theirs and len(ours) <= IDS.shape[1] + 8
    _, ours = both(model, function, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0.0)]))
    assert len(ours) == IDS.shape[1] + 1


def test_stop_strings_are_a_criterion() -> None:
    """transformers keeps the tokenizer that ``stop_strings`` needs from functions, but takes the criterion itself."""
    model = tiny.tiny("llama")
    words = tokenizer("byte-level")
    function = decoder(model, method=EAGER)
    free, _ = both(model, function)
    for at in [i for i in range(1, 24) if words.decode(free[IDS.shape[1] + i]).isascii()][:2]:
        stop = words.decode(free[IDS.shape[1] + at])
        want = model.generate(IDS, max_new_tokens=24, pad_token_id=0, stop_strings=[stop], tokenizer=words)[0].tolist()
        theirs, ours = both(model, function, stopping_criteria=[StopStringCriteria(words, [stop])])
        assert ours == theirs == want and len(ours) <= IDS.shape[1] + at + 1


class Parity(LogitsProcessor):
    """Allows tokens of the other parity than the last one's."""

    def __call__(self, input_ids, scores):
        last = int(input_ids[0, -1])
        return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == last % 2, -torch.inf)


def alternates(ids: list[int]) -> bool:
    """Whether the whole text obeys ``Parity``."""
    return all(a % 2 != b % 2 for a, b in zip(ids[IDS.shape[1] - 1 :], ids[IDS.shape[1] :], strict=False))


def test_processors_see_the_path_of_a_node() -> None:
    model = tiny.tiny("llama")
    theirs, ours = both(model, decoder(model, method=EAGER), logits_processor=[Parity()])
    assert ours == theirs
    assert alternates(ours)


def test_sampling_repeats_with_the_seed_and_keeps_to_the_settings() -> None:
    model = tiny.tiny("llama")
    function = decoder(model, method=EAGER)

    def sample(seed: int, **more: Any) -> list[int]:
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "pad_token_id": 0} | more
        return model.generate(IDS, custom_generate=function, **options)[0].tolist()

    assert sample(1) == sample(1) != sample(2)
    greedy = model.generate(IDS, max_new_tokens=20, pad_token_id=0)[0].tolist()
    assert sample(5, top_k=1) == sample(6, top_p=1e-6) == sample(7, min_p=1.0) == greedy


def test_sampling_has_the_distribution_of_generate() -> None:
    model = tiny.tiny("llama")
    function = decoder(model, method=EAGER)
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 4, "temperature": 2.0, "max_new_tokens": 1, "pad_token_id": 0}
    with torch.no_grad():
        top = model(IDS).logits[0, -1].topk(4)
    drawn = [int(model.generate(IDS, custom_generate=function, **options)[0, -1]) for _ in range(200)]
    for token, share in zip(top.indices.tolist(), (top.values / 2).softmax(-1).tolist(), strict=True):
        assert abs(drawn.count(token) / 200 - share) < 0.15


def test_a_streamer_gets_the_prompt_and_every_token_once() -> None:
    class Notes:
        def __init__(self) -> None:
            self.got: list[int] = []
            self.ended = 0

        def put(self, value: torch.Tensor) -> None:
            self.got += value.flatten().tolist()

        def end(self) -> None:
            self.ended += 1

    model, notes = tiny.tiny("llama"), Notes()
    out = model.generate(
        IDS, custom_generate=decoder(model, method=EAGER, streamer=notes), max_new_tokens=9, pad_token_id=0
    )
    assert notes.got == out[0].tolist() and notes.ended == 1


def test_a_dict_where_generate_gives_one() -> None:
    model = tiny.tiny("llama")
    function = decoder(model)
    out = model.generate(IDS, custom_generate=function, max_new_tokens=4, pad_token_id=0, return_dict_in_generate=True)
    assert out.sequences.shape == (1, IDS.shape[1] + 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 3}, "not beam search"),
        ({"num_return_sequences": 2, "do_sample": True}, "one sequence"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        (
            {
                "attention_mask": torch.cat([torch.zeros(1, 1), torch.ones(1, IDS.shape[1] - 1)], 1)
                .long()
                .to(IDS.device)
            },
            "Padding",
        ),
        ({"prompt_lookup_num_tokens": 5}, "not assisted"),
        ({"position_ids": torch.arange(IDS.shape[1], device=IDS.device)[None] + 7}, "leave position_ids out"),
        ({"guidance_scale": 1.5}, "drafted tokens"),
        ({"cache_implementation": "static"}, "cache"),
    ],
)
def test_what_can_not_be_done_is_said(settings: dict[str, Any], words: str) -> None:
    model = tiny.tiny("llama")
    with pytest.raises(NotSupported, match=words):
        model.generate(IDS, custom_generate=decoder(model), max_new_tokens=4, pad_token_id=0, **settings)


def test_a_prompt_that_is_not_token_ids_is_refused() -> None:
    model = tiny.tiny("llama")
    for prompt in ({"input_ids": IDS[:, :0]}, {"inputs_embeds": model.get_input_embeddings()(IDS)}):
        with pytest.raises(NotSupported, match="Give the prompt as input_ids, with one token at least"):
            model.generate(**prompt, custom_generate=decoder(model), max_new_tokens=4, pad_token_id=0)


def test_dropout_is_named_as_the_reason() -> None:
    model = tiny.tiny("gpt2").train()
    with pytest.raises(NotSupported, match=r"failed the tree self-test.* training mode.*: call model\.eval\(\) first"):
        decoder(model)
    theirs, ours = both(model, decoder(model.eval()))
    assert ours == theirs


def test_models_and_methods_that_do_not_fit() -> None:
    model = tiny.tiny("llama")
    with pytest.raises(NotSupported, match="no trained streams"):
        decoder(model, method=Streaming())
    with pytest.raises(NotSupported, match="needs a second model: give it as draft_model"):
        decoder(model, method=DraftModel())
    with pytest.raises(NotSupported, match="another model"):
        tiny.tiny("llama").generate(IDS, custom_generate=decoder(model), max_new_tokens=4)
    with pytest.raises(NotSupported, match="one sequence"):
        model.generate(IDS.repeat(2, 1), custom_generate=decoder(model), max_new_tokens=4, pad_token_id=0)
    for family, words in (("bloom", "ALiBi"), ("falcon", "ALiBi"), ("mamba", "recurrent layers")):
        with pytest.raises(NotSupported, match=words):
            decoder(tiny.tiny(family))
