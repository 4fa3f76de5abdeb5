"""Conversations: their prompts, the panel above the prompt box, each turn in the log."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from specstream.data.chat import Chat
from specstream.data.tasks import TASKS
from specstream.decoding.encode import chat_prompt
from specstream.events import Draft, Finished, Lane, Origin, Reason, Step, Token
from specstream.params import Sampling, Streaming
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from ui.components import chat, task_hint
from ui.jobs.engine_host import Engines
from ui.jobs.runs import RunJob, RunRequest
from ui.state import history
from ui.state.feed import Feed
from ui.state.view import View
from ui.tabs import playground

CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
BEFORE = Chat("c1", "Be short.", (("Hello?", "Hi."), ("Who are you?", "A toy.")))


@pytest.fixture(scope="module")
def engines() -> Engines:
    engines = Engines(CHOICE, lambda progress, **choice: load_toy(0))
    engines.load()
    assert list(engines.watch(0.01))[-1].info
    return engines


def test_a_conversation_becomes_messages_in_their_order() -> None:
    roles = [message["role"] for message in BEFORE.messages("And now?")]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in BEFORE.messages("And now?")][-3:] == ["Who are you?", "A toy.", "And now?"]
    assert replace(BEFORE, system=" ").messages("x")[0] == {"role": "user", "content": "Hello?"}
    assert BEFORE.add("a", "b").turns[-1] == ("a", "b")
    assert BEFORE.characters == len("Be short.Hello?Hi.Who are you?A toy.")


def test_a_conversation_survives_json_and_damage_is_a_new_one() -> None:
    assert Chat.from_json(BEFORE.to_json()) == BEFORE
    for damaged in (
        None,
        "",
        "{",
        "[]",
        '{"id": 1, "system": "", "turns": []}',
        '{"id": "", "system": "", "turns": [1]}',
        "[" * 100_000,
    ):
        assert Chat.from_json(damaged) == Chat()
    with pytest.raises(ValueError, match="start a new one"):
        Chat.from_dict({"id": "", "system": "", "turns": [["only one"]]})


def test_the_prompt_holds_the_whole_conversation_in_the_models_template() -> None:
    engine = load_toy(0)
    assert engine.prompt("chat", "And now?", BEFORE) == (
        "system: Be short.\nuser: Hello?\nassistant: Hi.\nuser: Who are you?\nassistant: A toy.\nuser: And now?\nText:"
    )
    assert engine.prompt("raw", "And now?", BEFORE) == "And now?"


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.asked])
def test_every_task_that_asks_uses_the_models_template(name: str) -> None:
    assert load_toy(0).prompt(name, "Sort a list.") == "user: Sort a list.\nText:"


def test_a_template_that_refuses_is_one_sentence() -> None:
    def refuse(messages: list[dict[str, str]], **_: Any) -> str:
        if messages[0]["role"] == "system":
            raise RuntimeError("System role not supported")
        return "fine"

    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=refuse)
    assert chat_prompt(tokenizer, "Hi") == "fine"
    with pytest.raises(ValueError, match="System role not supported.*leave the system prompt empty"):
        chat_prompt(tokenizer, "Hi", BEFORE)


def finished(engines: Engines, runlog: Any, message: str, before: Chat) -> View:
    ask = RunRequest(message, "chat", Streaming(), Sampling(max_new_tokens=40), False, before)
    view = View(Feed("live"))
    for batch in RunJob(engines, runlog, ask, "me").batches():
        for item in batch:
            view.add(item)
    return view


def test_each_turn_is_a_run_of_its_own_that_can_be_replayed(engines: Engines, tmp_path: Path) -> None:
    runlog = RunLog(tmp_path / "runs.db")
    talk = Chat("c1", "Be short.")
    views = []
    for message in ("Where is the pub?", "And the café?"):
        views.append(finished(engines, runlog, message, talk))
        talk = talk.add(message, views[-1].text)
    assert runlog.count(visitor="me") == 2
    first, second = (runlog.run(view.log_id) for view in views)
    assert first["settings"]["chat"] == {"id": "c1", "system": "Be short.", "turns": []}
    assert second["settings"]["chat"]["turns"] == [["Where is the pub?", views[0].text]]
    assert second["prompt"] == "And the café?" and second["output"] == views[1].text
    assert history.view(runlog, second).text == views[1].text
    shown = dict(history.facts(second))
    assert "You: Where is the pub?" in shown["Said before"] and shown["System prompt"] == "Be short."
    assert "turns" not in shown["Settings"]


def test_a_page_loaded_again_learns_of_the_turn_that_ended_meanwhile() -> None:
    kept = Chat("c1", "", (("a", "b"),))
    row = {"settings": {"chat": kept.to_dict()}, "prompt": "c", "output": "d", "status": "finished"}
    assert chat.newer(kept, row).turns == (("a", "b"), ("c", "d"))
    assert chat.newer(kept.add("c", "d"), row) == kept.add("c", "d")  # known already
    assert chat.newer(Chat(), row) == Chat()  # a new conversation was begun
    assert chat.newer(kept, row | {"settings": {}}) == kept and chat.newer(kept, row | {"output": None}) == kept
    assert chat.newer(kept, row | {"status": "stopped"}) == kept  # the answer was interrupted


def test_the_form_asks_with_the_conversation_only_where_the_model_can_chat(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    values = {part: part.value for part in tab.inputs}
    values |= {tab.task: "chat", tab.prompt: "Hi", tab.chat.kept: BEFORE.to_json(), tab.chat.system: "New rules"}
    info = engines.state.info
    assert info and info.chat
    assert tab.ask(values, info).chat == replace(BEFORE, system="New rules")
    assert tab.ask(values, replace(info, chat=False)).chat is None and tab.ask(values, None).chat is None
    assert tab.ask(values | {tab.task: "raw"}, info).chat is None
    new = tab.ask(values | {tab.chat.kept: ""}, info).chat
    assert new and new.id and not new.turns


def answer(text: str, reason: Reason = Reason.EOS) -> View:
    """The view of a run that wrote this, its words guessed at depth 1."""
    view = View(Feed("live"))
    tokens = tuple(Token(1, word, Origin.DRAFT, 1, 0) for word in re.findall(r"\s*\S+", text))
    if tokens:
        view.add((Lane.METHOD, Step(0, Draft(), tokens, {"verify": 0.1}, 1)))
    view.add((Lane.METHOD, Finished(reason)))
    return view


def test_a_failed_turn_puts_the_message_back(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    ask = RunRequest("Hi", "chat", Streaming(), Sampling(), False, BEFORE)
    assert tab.sent(ask)[tab.prompt] == ""
    failed, answered = tab.answered(ask, answer("")), tab.answered(ask, answer("Hello."))
    assert failed[tab.prompt] == "Hi" and Chat.from_json(failed[tab.chat.kept]) == BEFORE
    assert tab.prompt not in answered and Chat.from_json(answered[tab.chat.kept]).turns[-1] == ("Hi", "Hello.")
    assert tab.sent(replace(ask, chat=None)) == {} == tab.answered(replace(ask, chat=None), answer("x"))


def test_an_answer_that_was_broken_off_is_no_turn(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    ask = RunRequest("Hi", "chat", Streaming(), Sampling(), False, BEFORE)
    stopped = tab.answered(ask, answer("Well, I", Reason.STOPPED))
    shown = stopped[tab.chat.turns]
    assert "stopped: not part of the conversation" in shown and "Well," in shown and shown.count("ss-tok") == 2
    assert not stopped[tab.chat.again]["visible"]  # the turn before is not the last that is seen
    assert stopped[tab.prompt] == "Hi" and Chat.from_json(stopped[tab.chat.kept]) == BEFORE
    for reason, whole in ((Reason.STOPPED, False), (Reason.ERROR, False), (Reason.LENGTH, True), (Reason.EOS, True)):
        view = View(Feed("live"))
        view.add((Lane.METHOD, Finished(reason)))
        assert view.whole is whole
    assert not View(Feed("live")).whole  # stopped without waiting for the current step


def test_an_answer_is_coloured_where_it_stands_and_can_be_asked_for_again(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    ask = RunRequest("Hi", "chat", Streaming(), Sampling(), False, BEFORE)
    under_way = tab.answering(ask, answer("<b>Well</b>"))[tab.chat.turns]
    assert 'class="ss-tok d1"' in under_way and "<b>" not in under_way
    done = tab.answered(ask, answer("Well then."))
    assert done[tab.chat.turns].count("ss-tok d1") == 2 and done[tab.chat.again]["visible"]
    spaced = Chat("c", "", (("Hi", " Well then. \n"),))
    plain, colours = (tab.chat.show(spaced, steps)[tab.chat.turns] for steps in ((), answer(" Well then. \n").steps))
    assert re.sub("<[^>]+>", "", colours) == re.sub("<[^>]+>", "", plain) == "YouHiModelWell then."
    message, shown = tab.chat.back(done[tab.chat.kept])
    assert message == "Hi" and Chat.from_json(shown[tab.chat.kept]) == BEFORE
    message, shown = tab.chat.back("")
    assert message == "" and tab.chat.kept not in shown


def test_markup_in_a_conversation_stays_text(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    shown = tab.chat.asked(Chat("c", "", (("<b>me</b>", "<img src=x>"),)), "<i>now</i>")[tab.chat.turns]
    assert "<b>" not in shown and "<img" not in shown and "<i>" not in shown and "&lt;img src=x&gt;" in shown


def test_a_hint_where_the_adapter_is_for_another_task(engines: Engines) -> None:
    info = engines.state.info
    assert info and info.task == "e2e" and info.tuned
    assert task_hint.mismatch("e2e", info) == task_hint.mismatch("raw", replace(info, tuned=False)) == ""
    assert "tuned for “Restaurant" in task_hint.mismatch("raw", info)
    assert "Restaurant" in task_hint.mismatch("sql", info) and "writes differently" in task_hint.mismatch("sql", info)
    assert "writes differently" not in task_hint.mismatch("sql", replace(info, tuned=False))
    assert "no trained streams" in task_hint.mismatch("sql", replace(info, task=""))
    with gr.Blocks():
        hint = task_hint.layout()
    has, lacks = hint.updates("sql", replace(info, model="smollm2-135m")), hint.updates("sql", info)
    assert has[hint.load]["visible"] and not lacks[hint.load]["visible"] and lacks[hint.group]["visible"]
    assert not hint.updates("e2e", info)[hint.group]["visible"]


def test_bundled_adapters_are_offered_by_their_task() -> None:
    assert {"e2e", "sql", "chat"} <= set(task_hint.bundled("smollm2-135m"))
    assert json.loads((task_hint.bundled("smollm2-135m")["sql"] / "card.json").read_text())["task"] == "sql"
