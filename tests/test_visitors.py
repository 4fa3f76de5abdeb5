"""Several visitors: the queue for the model, the rules of a demo, freeing memory."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from specstream.adapters.card import CARD, WEIGHTS
from specstream.adapters.find import find_adapter
from specstream.events import Finished, Lane
from specstream.params import Sampling, Streaming
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from specstream.training.jobs import Registry
from ui import access_rules, app, launch
from ui.access_rules import DEMO, OPEN, Refused
from ui.components import model_panel
from ui.html import training as trainview
from ui.jobs.engine_host import Engines, State
from ui.jobs.measurements import Benchmark, Measurement, MeasurementRequest, Tuning
from ui.jobs.model_queue import Line, Stopped
from ui.jobs.runs import RunJob, RunRequest
from ui.state import history
from ui.state.messages import Notice
from ui.tabs import benchmark, finetune, finetune_form, playground

pytestmark = pytest.mark.timeout(120)
CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}


def loaded(pace: float = 0.0, **options: Any) -> Engines:
    engines = Engines(CHOICE, lambda progress, **choice: load_toy(pace), **options)
    engines.load()
    assert list(engines.watch(0.01))[-1].info
    return engines


def ask(tokens: int = 20, prompt: str = "name[The Salted Fig]", **sampling: Any) -> RunRequest:
    return RunRequest(prompt, "e2e", Streaming(), Sampling(max_new_tokens=tokens, **sampling), False)


def words(run: RunJob) -> list[str]:
    """The texts of a run's status line, to its end."""
    return [item.text for batch in run.batches() for item in batch if isinstance(item, Notice)]


# ---- the line --------------------------------------------------------------------------------------------------------


class Waiter:
    """A thread in the queue, which holds its turn until ``go`` is set."""

    def __init__(self, line: Line, served: list[Waiter]) -> None:
        self.stop, self.go, self.told, self.gave_up = threading.Event(), threading.Event(), [], False
        self._line, self._served, self._place = line, served, line.join("run")
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            with self._line.turn(self._place, self.stop, lambda ahead, purpose: self.told.append(ahead)):
                self._served.append(self)
                self.go.wait(30)
        except Stopped:
            self.gave_up = True


def until(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_comes_first_is_served_first_and_all_know_their_place() -> None:
    line, served = Line(), []  # type: ignore[var-annotated]
    waiters = [Waiter(line, served) for _ in range(5)]
    until(lambda: [w.told[-1:] for w in waiters[1:]] == [[1], [2], [3], [4]])
    for number, waiter in enumerate(waiters, 1):
        waiter.go.set()
        waiter.thread.join(30)
        until(lambda still=waiters[number + 1 :]: [w.told[-1] for w in still] == list(range(1, len(still) + 1)))
    assert served == waiters
    assert [w.told for w in waiters] == [[], [1], [2, 1], [3, 2, 1], [4, 3, 2, 1]]


def test_who_stops_while_waiting_leaves_the_line_and_the_others_move_up() -> None:
    line, served = Line(), []  # type: ignore[var-annotated]
    first, second, third = (Waiter(line, served) for _ in range(3))
    until(lambda: third.told == [2])
    second.stop.set()
    until(lambda: second.gave_up and third.told == [2, 1])
    first.go.set()
    third.go.set()
    third.thread.join(30)
    assert served == [first, third]


def test_an_error_in_a_turn_gives_the_turn_back() -> None:
    line = Line()
    with pytest.raises(OSError), line.turn(line.join("run"), threading.Event(), lambda ahead, purpose: None):
        raise OSError
    with line.turn(line.join("run"), threading.Event(), lambda ahead, purpose: pytest.fail("nobody is ahead")):
        pass


def test_runs_are_told_their_place_as_it_changes() -> None:
    engines = loaded(pace=0.02)
    going = RunJob(engines, None, ask(4000, ignore_eos=True))
    batches = going.batches()
    next(batches)
    until(lambda: any(isinstance(item, tuple) for item in going.items))
    second, third = RunJob(engines, None, ask(4000, ignore_eos=True)), RunJob(engines, None, ask(5))
    watched = [second.batches(), third.batches()]
    assert next(watched[0]) == [Notice("Waiting for the model: 1 ahead of you")]
    assert next(watched[1]) == [Notice("Waiting for the model: 2 ahead of you")]
    second.stop.set()
    until(lambda: third.items[-1] == Notice("Waiting for the model: 1 ahead of you"))
    going.stop.set()
    rest = [item for batch in watched[1] for item in batch]
    assert any(isinstance(i, tuple) and i[0] is Lane.METHOD and isinstance(i[1], Finished) for i in rest)
    assert Notice("Stopped before it began") in [item for batch in watched[0] for item in batch]


# ---- the rules of a demo ---------------------------------------------------------------------------------------------


def test_a_space_is_a_demo_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert access_rules.chosen() is OPEN and access_rules.chosen(True) is DEMO and launch.address() == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "someone/something")
    assert access_rules.chosen() is DEMO and access_rules.chosen(False) is OPEN and launch.address() == "0.0.0.0"


def test_a_demo_refuses_long_runs_in_one_sentence() -> None:
    engines = loaded(rules=DEMO)
    assert DEMO.most_tokens and DEMO.longest_prompt
    assert "at most 256 new tokens" in words(RunJob(engines, None, ask(DEMO.most_tokens + 1)))[-1]
    assert "3,001 characters" in words(RunJob(engines, None, ask(prompt="x" * (DEMO.longest_prompt + 1))))[-1]
    assert words(RunJob(engines, None, ask(5)))[-1] == "Running"
    assert words(RunJob(loaded(), None, ask(DEMO.most_tokens + 1, prompt="x" * 3500)))[-1] == "Running"


def order(**changes: Any) -> MeasurementRequest:
    return MeasurementRequest("e2e", ("name[The Mill]",), (Streaming(),), Sampling(max_new_tokens=4), **changes)


@pytest.mark.parametrize(
    "kind, forged, said",
    [
        (Benchmark, {"repeats": 20}, "each run at most 2 times"),
        (Benchmark, {"references": ("hf-greedy",)}, "Speculative Streaming's own methods only"),
        (Benchmark, {"file": Path("/etc/hostname")}, "takes no files"),
        (Tuning, {"file": Path("/etc/hostname")}, "takes no files"),
        (Tuning, {"repeats": 3}, "each run at most 2 times"),
    ],
)
def test_a_demo_refuses_what_its_form_does_not_offer(
    kind: type[Measurement], forged: dict[str, Any], said: str
) -> None:
    job = kind(loaded(rules=DEMO), None, order(**forged))
    told = [item for batch in job.batches() for item in batch]
    assert len(told) == 1 and isinstance(told[0], Notice) and told[0].failed and said in told[0].text
    kind(loaded(), None, order(**forged)).check()  # on one's own machine everything goes


def test_a_demo_reads_no_uploaded_results(tmp_path: Path) -> None:
    result = tmp_path / "mine.json"
    result.write_text("{}")
    with gr.Blocks():
        tab = benchmark.layout(loaded(rules=DEMO))
    values = {tab.form.key: "me", tab.form.zone: "", tab.form.earlier: [], tab.upload: [str(result)]}
    earlier = benchmark.Earlier(tab, loaded(rules=DEMO), None, tmp_path)
    with pytest.raises(Refused, match="takes no files"):
        earlier.chosen(values)


SMALL = CHOICE | {"model": "smollm2-135m"}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gpt2"},
        {"model": "toy", "adapter": "e2e"},  # it has none
        {"adapter": "/tmp/mine"},
        {"adapter": "hub:me/mine"},
        {"dtype": "float16"},
    ],
)
def test_a_demo_loads_bundled_models_only(change: dict[str, str]) -> None:
    engines = loaded(rules=DEMO)
    with pytest.raises(Refused, match="This demo loads"):
        engines.load(**SMALL | change)
    assert not engines.state.loading
    engines.load(**SMALL | {"adapter": "e2e"})
    loaded().load(**SMALL | change)  # on one's own machine everything goes


def click(page: gr.Blocks, label: str) -> Any:
    """The event of a button of the page, whose handler a forged request reaches even if the button is hidden."""
    button = next(part for part in page.blocks.values() if isinstance(part, gr.Button) and part.value == label)
    return next(event for event in page.fns.values() if (button._id, "click") in event.targets)


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names under which the host has adapters: one of their own, and a folder in the working directory."""
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "adapters" / "letters", tmp_path / "drafts"):
        folder.mkdir(parents=True)
        (folder / CARD).write_text('{"base": "HuggingFaceTB/SmolLM2-135M-Instruct"}')
        (folder / WEIGHTS).write_bytes(b"")
    names = ["letters", "drafts"]
    assert all(find_adapter(name, "smollm2-135m") for name in names)
    return names


def test_a_demo_refuses_the_private_adapters_of_its_host(private: list[str]) -> None:
    for name in private:
        with pytest.raises(Refused, match="with their bundled adapters only"):
            loaded(rules=DEMO).load(**SMALL | {"adapter": name})
        loaded().load(**SMALL | {"adapter": name})


def test_an_event_forged_with_the_name_of_a_private_adapter_loads_nothing(private: list[str]) -> None:
    engines, asked = loaded(rules=DEMO), []
    engines._loader = lambda progress, **choice: asked.append(choice)
    clicked = click(app.build(engines, None), "Load")
    for name in private:
        forged = {"Model": "smollm2-135m", "Adapter": name}
        form = {part: forged.get(str(part.label), part.value) for part in clicked.inputs}
        assert {"smollm2-135m", name} <= {str(value) for value in form.values()}
        with pytest.warns(UserWarning, match="This demo loads"):  # gradio's, outside of an event
            list(clicked.fn(form))
    assert asked == []


def test_a_demo_lists_no_private_adapters(private: list[str]) -> None:
    state = State(info=replace(load_toy().info, model="smollm2-135m"))
    listed = []
    for rules in (DEMO, OPEN):
        with gr.Blocks():
            panel, _ = model_panel.layout(Engines(CHOICE, rules=rules), lambda: None)
        listed.append([name for _, name in panel.updates(state)[panel.adapter]["choices"]])
    assert "e2e" in listed[0] and "letters" not in listed[0] and "letters" in listed[1]


def test_a_demo_has_no_permission_that_the_rules_name() -> None:
    named = [name for name in dir(OPEN) if name.startswith("may_")]
    assert len(named) == 7 and all(getattr(OPEN, name) for name in named)
    assert not any(getattr(DEMO, name) for name in named)


def test_a_demo_keeps_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    monkeypatch.setattr(history, "export_database", lambda runlog, folder: copied.append(folder) or folder)
    for rules, count in ((DEMO, 0), (OPEN, 1)):
        event = click(app.build(loaded(rules=rules), RunLog(tmp_path / "runs.db")), "Download the database")
        told = event.fn({part: part.value for part in event.inputs})
        assert len(copied) == count and ("not give its log away" in str(told)) is (rules is DEMO)


def test_a_demo_accepts_no_licence_for_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed: list[str] = []
    monkeypatch.setattr(model_panel, "accept_terms", agreed.append)
    for rules, known in ((DEMO, []), (OPEN, ["gemma-3-270m"])):
        told, _ = click(app.build(loaded(rules=rules), None), "I have read the licence, and accept it").fn(
            "gemma-3-270m", "auto", "auto"
        )
        assert agreed == known and ("This demo loads" in told) is (rules is DEMO)


@pytest.mark.parametrize("label", ["Train", "Stop training", "Resume", "Delete it for good", "Download as zip"])
def test_a_demo_trains_nothing_even_where_the_tab_is_built(
    label: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tab is left out of a demo; its handlers do not rely on that."""
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    done: list[str] = []
    training = SimpleNamespace(name="mine", has_adapter=True, plan=SimpleNamespace(owner="me"), active=True)
    for name in ("start", "stop", "resume", "delete"):
        monkeypatch.setattr(Registry, name, lambda self, *about, name=name: done.append(name) or training)
    monkeypatch.setattr(Registry, "get", lambda self, name: training)
    monkeypatch.setattr(Registry, "active", lambda self: training)
    monkeypatch.setattr(finetune.FineTune, "shown", lambda self, *about: {})
    monkeypatch.setattr(finetune_form.Form, "plan", lambda self, *about: None)
    monkeypatch.setattr(trainview, "pack", lambda found, folder: done.append("pack") or folder)
    for rules in (DEMO, OPEN):
        engines = loaded(rules=rules)
        with gr.Blocks() as page, gr.Tabs() as tabs, gr.Tab("Fine-tune") as opened:
            play, tab = playground.layout(engines), finetune.layout(engines)
            finetune.wire(tab, opened, tabs, page, engines, play)
        event = click(page, label)
        stranger: Any = SimpleNamespace(client=None, headers={})
        values = {"Train": [{tab.by: "minutes", tab.form.owner: "me"}, stranger], "Download as zip": ["mine"]}
        asks = values.get(label, ["mine", "minutes", "me", None, stranger])
        warned = pytest.warns(UserWarning, match="This demo trains nothing") if rules is DEMO else nullcontext()
        with warned:  # gradio's, outside of an event
            told = event.fn(*asks)
        assert len(done) == (0 if rules is DEMO else 1), label
        assert ("This demo trains nothing" in str(told)) is (rules is DEMO)
