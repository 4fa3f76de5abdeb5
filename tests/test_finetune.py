"""The Fine-tune tab without a browser: what it requests, refuses, shows and restores."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from specstream.hub.catalogue import layer_count
from specstream.training.config import Config
from specstream.training.jobs import Registry, State
from tests.trainings import put_training, rows, save_model
from ui import app
from ui.access_rules import DEMO
from ui.charts import runs
from ui.html import training as trainview
from ui.jobs.engine_host import Engines
from ui.tabs import finetune, finetune_form
from ui.tabs.finetune import FineTune
from ui.tabs.finetune_form import OWN, PUBLIC

CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


@pytest.fixture(scope="module")
def tab() -> FineTune:
    with gr.Blocks():
        return finetune.layout(Engines(CHOICE))


@pytest.fixture
def values(tab: FineTune, tmp_path: Path) -> Callable[..., dict[Any, Any]]:
    """The form's defaults, with an uploaded file of 60 rows, and changes by name."""
    file = tmp_path / "mine.jsonl"
    file.write_text(rows(60))

    def filled(**changes: Any) -> dict[Any, Any]:
        form = tab.form
        found = {part: part.value for part in form.inputs}
        found |= {form.task: "sql", form.source: OWN, form.file: str(file), form.owner: "me"}
        named = {**form.settings, **{n: getattr(form, n) for n in ("model", "task", "source", "file", "mode", "name")}}
        named |= {"answers": form.answers, "start": form.start, "top": form.top, "good": form.good}
        return found | {named[name]: value for name, value in changes.items()}

    return filled


def test_the_form_makes_a_plan(tab: FineTune, values, registry) -> None:
    plan = tab.form.plan(values(gamma=3, batch=4, minutes=7), registry)
    assert (plan.name, plan.model, plan.task, plan.mode, plan.minutes) == ("my-sql", "smollm2-135m", "sql", "shared", 7)
    assert (
        plan.options == {"gamma": 3, "batch": 4, "validate_every": 50, "probes": 4, "hold_out": 6}
        and plan.owner == "me"
    )
    public = tab.form.plan(values(source=PUBLIC, task="e2e", name=" first "), registry)
    assert (public.name, public.data) == ("first", "hub:tuetschek/e2e_nlg_cleaned")
    assert public.options["hold_out"] == 32 and "targets" not in public.options


def test_lossless_and_chat_learn_from_the_models_own_answers(tab: FineTune, values, registry, tmp_path: Path) -> None:
    plan = tab.form.plan(values(mode="lossless", answers=40), registry)
    assert plan.mode == "lossless" and plan.options["targets"] == "self"
    assert (plan.options["limit"], plan.options["hold_out"]) == (40, 4)
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps({"prompt": f"Who is {i}?"}) + "\n" for i in range(20)))
    assert tab.form.plan(values(task="chat", file=str(chat)), registry).options["targets"] == "self"


def test_heads_are_trained_for_an_adapter_with_settings_of_their_own(tab: FineTune, values, registry) -> None:
    plan = tab.form.plan(values(mode="medusa", start="sql", gamma=3, lora_rank=8, layers=99, top=True), registry)
    assert (plan.name, plan.mode, plan.options["start"], plan.options["gamma"]) == ("my-sql-medusa", "medusa", "sql", 3)
    assert not {"lora_rank", "layers", "tuned_layers", "targets"} & set(plan.options)
    bare = tab.form.plan(values(mode="exit", layers=4, answers=30), registry)
    assert bare.options["targets"] == "self" and bare.options["layers"] == 4 and "start" not in bare.options
    assert plan.command(registry.root)[:1] == ["train"] and "--start" in plan.command(registry.root)


def test_the_form_shows_what_means_something_in_a_mode(tab: FineTune, values) -> None:
    shown = finetune_form.shown(tab.form, "exit")
    assert {n for n, part in tab.form.settings.items() if part in shown and not shown[part]["visible"]} == {
        "gamma", "lora_rank", "start_rank", "pair_rank", "alpha",
    }  # fmt: skip
    assert "first layers" in shown[tab.form.settings["layers"]]["info"]
    start = finetune_form.begun_with(tab.form, values(mode="medusa"))[tab.form.start]
    assert start["visible"] and start["value"] == "sql" and {"none", "e2e"} < {name for _, name in start["choices"]}
    assert finetune_form.begun_with(tab.form, values())[tab.form.start]["visible"] is False
    assert finetune_form.needs_answers(tab.form, values(mode="medusa", start="sql"))
    assert not finetune_form.needs_answers(tab.form, values(mode="medusa", start="none"))


def test_the_top_layers_alone_are_a_choice_of_the_shared_mode(tab: FineTune, values, registry) -> None:
    assert tab.form.plan(values(top=True), registry).options["tuned_layers"] == "top"
    assert "tuned_layers" not in tab.form.plan(values(top=True, mode="lossless"), registry).options


def test_layers_are_counted_without_the_weights(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"never read")
    known = json.loads((tmp_path / "model" / "config.json").read_text())
    assert layer_count(str(tmp_path / "model")) == known["num_hidden_layers"] > 0
    assert layer_count("smollm2-360m") == 32 and layer_count("nobody/has-this") == 0


def test_the_words_of_the_settings_are_those_of_the_page(tab: FineTune) -> None:
    shown = {name: part.get_config()["info"] for name, part in tab.form.settings.items()}
    assert shown["gamma"] == finetune_form.WORDS["gamma"] and set(finetune_form.WORDS) < set(shown)
    assert not [words for words in shown.values() if "exit:" in words or "Medusa" in words]


def test_a_folder_is_named_by_its_whole_path(tab: FineTune, values, registry, tmp_path: Path, monkeypatch) -> None:
    save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert tab.form.plan(values(model="model", layers=2), registry).model == str(tmp_path / "model")


REFUSED = {
    "no file": ({"file": None}, "Choose a JSONL file"),
    "no base": ({"model": "  "}, "Choose a base model"),
    "toy": ({"model": "toy"}, "The toy model can't be trained"),
    "no minutes": ({"minutes": 0}, "Minutes must be above 0"),
    "minutes emptied": ({"minutes": None}, "Minutes must be a number"),
    "gamma": ({"gamma": 99}, "Gamma must be a whole number from 1 to 16"),
    "answers": ({"mode": "lossless", "answers": 0}, "Prompts to answer must be"),
    "no model": ({"model": "no/such/model"}, "There is no model"),
    "name": ({"name": "../x"}, "can't be the name of an adapter"),
    "chat": ({"task": "chat", "source": PUBLIC}, "Chat has no public dataset: upload a file"),
    "layers": ({"layers": 31}, "smollm2-135m has 30 layers: choose 1 to 30 for Layers, not 31"),
    "layers of an exit": ({"mode": "exit", "layers": 30}, "choose 1 to 29 for Layers"),
    "adapter": ({"mode": "medusa", "start": "no-such"}, "no-such"),
    "other task": ({"task": "e2e"}, "60 of 60 rows can't be used"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_trained_is_refused_in_a_sentence(what: str, tab: FineTune, values, registry) -> None:
    changes, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        tab.form.plan(values(**changes), registry)
    assert registry.all() == []


def test_without_the_library_public_data_is_refused_at_once(tab: FineTune, values, registry, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install datasets.*or upload a file of your own"):
        tab.form.plan(values(source=PUBLIC), registry)


def test_the_hint_names_bad_rows_and_counts_good_ones(tab: FineTune, values, registry, tmp_path: Path) -> None:
    good = tab.form.expected(values(), registry)[tab.form.hint]
    assert "60 rows can be used. 6 of their prompts are held out" in good and "GB are free" in good
    assert "The weights alone take 0.54 GB" in good
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows(3) + '{"question": "<b>"}\n' * 9)
    told = tab.form.expected(values(file=str(bad)), registry)
    words = told[tab.form.hint]
    assert told[tab.form.good]["visible"] and told[tab.form.good]["label"] == "Train on the 3 good rows"
    assert "9 of 12 rows can&#x27;t be used." in words
    assert "Line 4: the column &#x27;context&#x27; is missing or empty." in words and "4 more rows" in words
    few = tmp_path / "few.jsonl"
    few.write_text(rows(1))
    told = tab.form.expected(values(file=str(few)), registry)
    assert "1 row can be used. They are too few to hold some out" in told[tab.form.hint]


def test_the_good_rows_of_a_file_can_be_trained_on_alone(tab: FineTune, values, registry, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(rows(3) + '{"question": "<b>"}\n' * 2 + "no JSON\n" + rows(1))
    with pytest.raises(ValueError, match="3 of 7 rows can't be used"):
        tab.form.plan(values(file=str(mixed)), registry)
    chosen = values(file=str(mixed), good=True)
    assert "4 rows can be used" in (told := tab.form.expected(chosen, registry)[tab.form.hint])
    assert "3 bad rows left out" in told
    kept = Path(tab.form.plan(chosen, registry).data)
    assert kept.read_text() == rows(3) + rows(1) and mixed.exists()
    mixed.write_text("no JSON\n")
    with pytest.raises(ValueError, match="1 of 1 row can't be used"):
        tab.form.plan(chosen, registry)


def test_the_phase_of_a_training_is_marked_and_its_result_is_said(registry) -> None:
    put_training(registry.root, "one")
    found = registry.get("one")
    html = trainview.phases(found)
    assert html.count("aria-current=step") == 1 and "Try it on held-out rows" in html
    words, _ = trainview.status(found)
    assert ("a pass brings" in words) == (found.state is State.FINISHED and found.progress.best is not None)


def test_what_to_expect_comes_from_the_last_training_of_the_model(registry) -> None:
    none = " ".join(trainview.expectation(registry, "smollm2-135m", Config(minutes=10), "e2e"))
    assert "seen once the training runs" in none
    put_training(registry.root, "earlier")
    hub_id = "HuggingFaceTB/SmolLM2-135M-Instruct"
    words = " ".join(trainview.expectation(registry, hub_id, Config(minutes=10, batch=4), "e2e"))
    assert "(earlier) made 60 steps of 8 rows a minute: about 600 in this time. It took up to 2.10 GB" in words


def shown(
    tab: FineTune, registry: Registry, name: str | None = None, seen: Any = None, mine: bool = True, by="minutes"
):
    """The values sent, by the name of the component."""
    updates = tab.shown(registry, name, by, seen, lambda training: mine)
    names = {id(part): field for field, part in vars(tab).items()}
    return {names[id(part)]: value for part, value in updates.items()}


def test_nothing_trained_yet(tab: FineTune, registry) -> None:
    found = shown(tab, registry)
    assert trainview.NONE_YET in found["status"] and found["group"] == gr.update(visible=False)
    assert found["train"]["interactive"] and not found["stop"]["interactive"]


def test_a_finished_training_can_be_used(tab: FineTune, registry) -> None:
    put_training(registry.root, "my-sql")
    found = shown(tab, registry)
    assert "Finished: 20 steps in 20 seconds." in found["status"]
    assert found["listing"]["value"] == "my-sql" and found["listing"]["choices"] == [("my-sql: finished", "my-sql")]
    assert found["use"]["interactive"] and found["zip"]["interactive"] and found["delete"]["interactive"]
    assert not found["go_on"]["interactive"]
    for words in ("900 rows, 32 held out", "2.10 GB", "2.00", "0.3 of 5 minutes used"):
        assert words in found["tiles"]
    assert "CC BY 4.0" in found["facts"] and found["card"] == "# Streams for questions"
    assert [len(trace.x) for trace in found["losses"].data] == [20, 4] * 5
    assert found["gains"].data[0].y[-1] == 2.0 and found["gains"].data[0].x[-1] == pytest.approx(20 / 60)


def test_what_has_not_changed_is_not_sent_again(tab: FineTune, registry) -> None:
    folder = put_training(registry.root, "my-sql")
    seen = shown(tab, registry)["seen"]
    again = shown(tab, registry, "my-sql", seen)
    assert set(again) == {"train", "stop", "timer", "group", "seen"}
    steps = shown(tab, registry, "my-sql", seen, by="steps")
    assert "use" not in steps and steps["losses"].data[0].x[-1] == 20
    with (folder / "progress.jsonl").open("a") as out:
        out.write(
            json.dumps({"kind": "validation", "step": 20, "seconds": 20, "losses": [1.0] * 5, "time": 9e9}) + "\n"
        )
    assert {"tiles", "losses", "gains"} <= set(shown(tab, registry, "my-sql", seen))
    (folder / "adapter.safetensors").unlink()
    assert not shown(tab, registry, "my-sql", seen)["use"]["interactive"]


def test_the_early_exit_is_no_stream(registry) -> None:
    folder = put_training(registry.root, "my-sql")
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    more = (e | ({"losses": [*e["losses"], 50.0]} if "losses" in e else {}) for e in lines)
    (folder / "progress.jsonl").write_text("".join(json.dumps(e) + "\n" for e in more))
    training = registry.get("my-sql")
    assert training
    figure = runs.losses(training.progress, "steps", *trainview.streams(training))
    assert [t.name for t in figure.data if t.mode == "lines"][-2:] == ["stream 4", "early exit"]
    assert dict((n, v) for n, v, _ in trainview.numbers(training))["Loss of the streams"] == "4.80"


def test_a_lossless_training_has_no_loss_of_the_model_itself(tab: FineTune, registry) -> None:
    put_training(registry.root, "as-it-is", mode="lossless")
    names = {trace.name for trace in shown(tab, registry)["losses"].data}
    assert "the model itself" not in names and {"stream 1", "stream 4"} <= names


def test_a_stopped_training_can_go_on_by_its_owner_only(tab: FineTune, registry) -> None:
    put_training(registry.root, "my-sql", stopped=True)
    assert "Stopped before anything was saved: Resume begins it again" in shown(tab, registry)["status"]
    (registry.root / "my-sql" / "checkpoint").mkdir()
    assert "Stopped at step 20, after 50% of its time: Resume" in shown(tab, registry)["status"]
    assert shown(tab, registry)["go_on"]["interactive"]
    others = shown(tab, registry, mine=False)
    assert not others["go_on"]["interactive"] and not others["delete"]["interactive"] and others["use"]["interactive"]


class UnderWay(Registry):
    """A registry with one active training run."""

    def _alive(self, record: Any, folder: Path) -> bool:
        return folder.name == "going"


def test_others_see_that_a_training_is_under_way(tab: FineTune, tmp_path: Path) -> None:
    registry = UnderWay(tmp_path / "adapters")
    put_training(registry.root, "done")
    folder = put_training(registry.root, "going")
    lines = (folder / "progress.jsonl").read_text().splitlines()
    (folder / "progress.jsonl").write_text("\n".join(lines[:12]) + "\n")  # 10 of 20 steps
    found = shown(tab, registry, "done", mine=False)
    assert "A training run is under way (going): about 12 seconds left." in found["status"]
    assert not found["train"]["interactive"] and not found["stop"]["interactive"] and found["timer"].active
    first = shown(tab, registry)  # nothing was chosen: the active one is shown
    assert first["listing"]["value"] == "going" and first["stop"]["interactive"]
    assert not first["delete"]["interactive"] and first["use"]["interactive"]  # the best so far can be tried already


def test_damaged_and_dead_trainings_are_told(tab: FineTune, registry) -> None:
    dead = put_training(registry.root, "dead")
    lines = (dead / "progress.jsonl").read_text().splitlines()
    (dead / "progress.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    (dead / "output.log").write_text("note: x\nerror: The loss is <b>not finite</b>.\n")
    words = shown(tab, registry, "dead")["status"]
    assert "ended too early. The loss is &lt;b&gt;not finite&lt;/b&gt;. Resume begins it again." in words
    (dead / "checkpoint").mkdir()
    assert "Resume continues from what was saved." in shown(tab, registry, "dead")["status"]
    bad = put_training(registry.root, "bad")
    (bad / "training.json").write_text("{")
    found = shown(tab, registry, "bad")
    assert "damaged. It can only be deleted." in found["status"] and not found["go_on"]["interactive"]


@pytest.mark.parametrize(
    "local, host, headers, key, may",
    [
        (True, "127.0.0.1", {}, "other", True),
        (False, "127.0.0.1", {}, "other", False),  # what a proxy on the same machine looks like
        (False, "127.0.0.1", {}, "me", True),
        (True, "127.0.0.1", {"x-forwarded-for": "8.8.8.8"}, "other", False),
        (True, "192.168.0.7", {}, "other", False),
        (True, "192.168.0.7", {}, "me", True),
        (True, "192.168.0.7", {}, "", False),
    ],
)
def test_who_may_stop_a_training(local: bool, host: str, headers: dict, key: str, may: bool, registry) -> None:
    put_training(registry.root, "mine")
    put_training(registry.root, "nobodys", owner="")
    request: Any = SimpleNamespace(client=SimpleNamespace(host=host), headers=headers)
    training = registry.get("mine")
    assert training and finetune.owns(training, key, request, local) is may
    nobodys = registry.get("nobodys")
    assert nobodys and finetune.owns(nobodys, "", request, local) is (local and host == "127.0.0.1" and not headers)


def test_the_zip_holds_the_adapter_and_nothing_else(registry, tmp_path: Path) -> None:
    folder = put_training(registry.root, "my-sql")
    (folder / "data.jsonl").write_text("secret rows")
    training = registry.get("my-sql")
    assert training
    with zipfile.ZipFile(trainview.pack(training, tmp_path)) as archive:
        assert set(archive.namelist()) == {f"my-sql/{n}" for n in ("adapter.safetensors", "card.json", "README.md")}


def test_long_curves_are_thinned_to_their_end(registry) -> None:
    points = list(range(1001))
    kept = runs.thinned(points, 300)  # type: ignore[arg-type]
    assert len(kept) <= 300 and kept[-1] == 1000
    assert runs.thinned([], 300) == [] and runs.thinned(points[:5], 300) == points[:5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "1 second"), (59, "59 seconds"), (61, "1 minute"), (3000, "50 minutes"), (7500, "2:05 hours")],
)
def test_durations_are_read_at_a_glance(seconds: float, words: str) -> None:
    assert trainview.duration(seconds) == words


def test_a_demo_has_no_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    tabs = [
        {
            block.label
            for block in app.build(Engines(CHOICE, rules=rules), None).blocks.values()
            if isinstance(block, gr.Tab)
        }
        for rules in (DEMO, Engines(CHOICE).rules)
    ]
    assert "Fine-tune" not in tabs[0] and "Fine-tune" in tabs[1]
