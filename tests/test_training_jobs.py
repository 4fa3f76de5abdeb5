"""Training runs as separate processes: started, found again, stopped, resumed, dead; checking a file."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specstream.adapters import local
from specstream.adapters.card import AdapterError
from specstream.adapters.find import find_adapter
from specstream.data.checks import check_file
from specstream.data.datasets import DataError
from specstream.data.tasks import task
from specstream.training import jobs
from specstream.training.jobs import Busy, Plan, Record, Registry, RegistryError, State, Training

pytestmark = pytest.mark.timeout(120)
ROW = {"question": "How many?", "context": "CREATE TABLE t (n INT)", "answer": "SELECT count(*) FROM t"}
# A process that behaves like a training run: it writes what ``WORDS`` contains, then waits to be stopped.
WORKER = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1]
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
def tell(**event):
    with open(sys.argv[sys.argv.index("--progress") + 1], "a") as out:
        out.write(json.dumps(event | {"time": time.time()}) + "\\n")
def stop(*_):
    (folder / "checkpoint").mkdir(exist_ok=True)
    tell(kind="end", stopped=True)
    sys.exit()
if words == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif words != "die":
    signal.signal(signal.SIGTERM, stop)
tell(kind="begin", step=0, seconds=0, rows=9, held_out=1)
tell(kind="step", step=1, seconds=1, fraction=0.5, losses=[1.0, 2.0], memory=5)
if words == "finish":
    tell(kind="end", stopped=False)
elif words == "fail":
    sys.exit("some note\\nerror: The loss is not a finite number any more.")
elif words == "vanish":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path / "home"))
    return local.adapters_folder()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    return file


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what processes do that are started from now on."""
    return lambda words: monkeypatch.setattr(jobs, "PROGRAM", (sys.executable, "-c", WORKER, words))


def plan(data: Path | str, name: str = "my-sql", **given) -> Plan:
    return Plan(name, "smollm2-135m", "sql", "shared", str(data), 5.0, "me", **given)


def until(trainings: Registry, name: str, *states: State) -> Training:
    """The training once it is in one of the states, and has made a step."""
    for _ in range(2400):
        found = trainings.get(name)
        if found and found.state in states and found.progress.step:
            return found
        time.sleep(0.05)
    raise AssertionError(trainings.get(name))


def test_a_training_runs_to_its_end(data, behave) -> None:
    behave("finish")
    trainings = Registry()
    assert trainings.all() == [] and trainings.get("my-sql") is None and trainings.active() is None
    begun = trainings.start(plan(data))
    assert begun.progress.words == "Starting" and begun.state in (State.RUNNING, State.FINISHED)
    done = until(trainings, "my-sql", State.FINISHED)
    assert done.progress.rows == 9 and not done.active and not done.resumable
    assert done.plan == plan("mine.jsonl") and (done.folder / "data" / "mine.jsonl").read_text() == data.read_text()
    assert trainings.like("HuggingFaceTB/SmolLM2-135M-Instruct", "shared") == done
    assert [t.name for t in Registry().all()] == ["my-sql"]


def test_one_at_a_time_and_no_name_twice(data, behave) -> None:
    behave("wait")
    trainings = Registry()
    trainings.start(plan(data))
    assert until(trainings, "my-sql", State.RUNNING) and trainings.active().name == "my-sql"
    with pytest.raises(Busy, match=r"A training run is under way \(my-sql\)"):
        trainings.start(plan(data, "another"))
    with pytest.raises(RegistryError, match="stop it first"):
        trainings.delete("my-sql")
    trainings.stop("my-sql")
    until(trainings, "my-sql", State.STOPPED)
    with pytest.raises(RegistryError, match="There is already an adapter my-sql"):
        trainings.start(plan(data))
    assert trainings.free_name("my-sql") == "my-sql-2" and trainings.free_name("new") == "new"
    trainings.delete("my-sql")
    assert trainings.all() == [] and trainings.free_name("my-sql") == "my-sql"


def test_a_program_that_starts_later_finds_it_running_stops_it_and_goes_on(data, behave) -> None:
    behave("wait")
    Registry().start(plan(data))
    later = Registry()
    assert until(later, "my-sql", State.RUNNING).progress.fraction == 0.5
    with pytest.raises(Busy):
        later.resume("my-sql")
    later.stop("my-sql")
    assert until(later, "my-sql", State.STOPPED).resumable
    behave("finish")
    later.resume("my-sql")
    until(later, "my-sql", State.FINISHED)
    with pytest.raises(RegistryError, match="nothing to continue in"):
        later.resume("my-sql")


def test_going_on_asks_for_the_checkpoint_only_where_there_is_one(data, behave, monkeypatch) -> None:
    behave("vanish")
    trainings = Registry()
    trainings.start(plan(data))
    until(trainings, "my-sql", State.DIED)
    asked: list[list[str]] = []
    popen = jobs.subprocess.Popen
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda args, **given: asked.append(args) or popen(args, **given))
    for _ in range(2):
        trainings.resume("my-sql")
        until(trainings, "my-sql", State.DIED)
        (trainings.root / "my-sql" / "checkpoint").mkdir(exist_ok=True)
    assert ["--resume" in args for args in asked] == [False, True]


def test_a_dead_training_says_why(data, behave) -> None:
    trainings = Registry()
    behave("fail")
    trainings.start(plan(data, "failed"))
    assert until(trainings, "failed", State.DIED).reason == "The loss is not a finite number any more."
    behave("vanish")
    trainings.start(plan(data, "killed"))
    assert "without a message" in until(trainings, "killed", State.DIED).reason
    assert trainings.get("failed").resumable and trainings.get("killed").resumable


def test_a_training_that_was_killed_while_no_program_looked_has_died(data, behave) -> None:
    behave("wait")
    first = Registry()
    first.start(plan(data))
    until(first, "my-sql", State.RUNNING)
    pid = Record.read(first.root / "my-sql").pid
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert until(Registry(), "my-sql", State.DIED)


def test_the_number_of_a_dead_process_may_belong_to_another(data, behave) -> None:
    behave("vanish")
    Registry().start(plan(data))
    until(Registry(), "my-sql", State.DIED)
    folder = local.adapters_folder() / "my-sql"
    replace(Record.read(folder), pid=os.getpid()).write(folder)  # this process: alive, but not a training run
    assert Registry().get("my-sql").state is State.DIED
    Registry().stop("my-sql")  # and it is not stopped


def test_one_that_does_not_listen_is_ended_after_the_grace_time(data, behave, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "GRACE", 0.5)
    behave("deaf")
    trainings = Registry()
    trainings.start(plan(data))
    until(trainings, "my-sql", State.RUNNING)
    trainings.stop("my-sql")
    trainings.stop("my-sql")  # asking twice is asking once
    assert trainings.get("my-sql").state is State.STOPPING
    dead = until(trainings, "my-sql", State.DIED)
    assert "killed" in dead.reason and dead.resumable  # not "saved", which it was not
    assert Registry().get("my-sql").reason == dead.reason


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"plan": {}}', '{"plan": null, "pid": "x"}'])
def test_a_damaged_record_is_told_and_hides_nothing_else(content, data, behave) -> None:
    behave("finish")
    trainings = Registry()
    trainings.start(plan(data, "good"))
    until(trainings, "good", State.FINISHED)
    trainings.start(plan(data, "bad"))
    until(trainings, "bad", State.FINISHED)
    (trainings.root / "bad" / "training.json").write_text(content)
    states = {t.name: t.state for t in trainings.all()}
    assert states == {"good": State.FINISHED, "bad": State.DAMAGED}
    assert "damaged" in trainings.get("bad").reason and not trainings.get("bad").resumable
    with pytest.raises(RegistryError):
        trainings.stop("bad")
    trainings.delete("bad")
    assert [t.name for t in trainings.all()] == ["good"]


def test_a_folder_that_can_not_be_written_is_a_sentence(data, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="SPECSTREAM_HOME"):
        Registry(tmp_path / "file").start(plan(data))
    with pytest.raises(RegistryError, match="can't be read or written"):
        Registry(tmp_path / "new").start(plan(tmp_path / "missing.jsonl"))
    assert Registry(tmp_path / "new").all() == [] and not (tmp_path / "new" / "my-sql").exists()


def test_two_programs_begin_one_training(data, behave) -> None:
    behave("wait")
    begun: list[Training | Busy] = []

    def begin(name: str) -> None:
        try:
            begun.append(Registry().start(plan(data, name)))
        except Busy as busy:
            begun.append(busy)

    threads = [threading.Thread(target=begin, args=(f"number-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, Training) for one in begun) == 1 and len(begun) == 4
    trainings = Registry()
    name = trainings.active().name
    until(trainings, name, State.RUNNING)
    trainings.stop(name)
    until(trainings, name, State.STOPPED)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 61, "ü"])
def test_names_that_are_no_folder_are_refused(name, data) -> None:
    with pytest.raises(RegistryError, match="can't be the name"):
        plan(data, name)


def test_the_command_line_is_one_that_train_takes(tmp_path) -> None:
    from specstream.cli import find_command

    asked = plan("hub:b-mc2/sql-create-context", options={"gamma": 2, "hold_out": 3, "targets": "self"})
    words = asked.command(tmp_path)
    context = find_command("train").make_context("train", words[1:])
    values = context.params
    assert (values["data"], values["gamma"], values["hold_out"], values["targets"]) == (asked.data, 2, 3, "self")
    assert (values["minutes"], values["out"], values["progress"]) == (5.0, tmp_path, tmp_path / "progress.jsonl")


# ---- your own adapters -----------------------------------------------------------------------------------------------


def put(home: Path, name: str, base: object, weights: bool = True) -> Path:
    folder = home / name
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"base": base}))
    if weights:
        (folder / "adapter.safetensors").write_bytes(b"")
    return folder


def test_my_adapters_are_found_by_name_for_their_model(home, tmp_path) -> None:
    assert local.mine() == {}
    ours = put(home, "ours", "smollm2-135m")
    put(home, "of-a-folder", str(tmp_path))
    put(home, "without-weights", "smollm2-135m", weights=False)
    put(home, "damaged", 7)
    (home / "a file").write_text("")
    assert set(local.mine()) == {"ours", "of-a-folder"}
    assert local.mine("HuggingFaceTB/SmolLM2-135M-Instruct") == {"ours": ours}
    assert set(local.mine(f"{tmp_path}/../{tmp_path.name}")) == {"of-a-folder"}
    assert find_adapter("ours", "smollm2-135m") == ours
    with pytest.raises(AdapterError, match="ours"):
        find_adapter("ours", "gpt2")


# ---- the check of a file ---------------------------------------------------------------------------------------------


def test_every_bad_row_is_named_by_its_line(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps(ROW), "", "{", "[1]", json.dumps(ROW | {"answer": ""}), json.dumps(ROW | {"context": 5})]
    file.write_text("\n".join([*rows, json.dumps(ROW | {"question": "Who?"}), "[" * 100_000]))
    found = check_file(file, task("sql"), answers=True)
    assert (found.rows, found.prompts, found.bad) == (2, 2, 5)
    assert found.problems[0].startswith("Line 3: not valid JSON (")
    assert found.problems[1:4] == (
        "Line 4: expected an object with columns.",
        "Line 5: the column 'answer' is missing or empty.",
        "Line 6: the column 'context' must be a text.",
    )
    assert check_file(file, task("sql"), answers=False).bad == 4  # the model answers itself: line 5 can be used
    many = tmp_path / "many.jsonl"
    many.write_text("{\n" * 50)
    assert check_file(many, task("sql"), answers=True).bad == 50
    assert len(check_file(many, task("sql"), answers=True).problems) == 5


def test_a_tenth_is_held_out(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    for count, held_out in ((9, 0), (25, 2), (1000, 32)):
        file.write_text("".join(json.dumps(ROW | {"question": f"{i}?"}) + "\n" for i in range(count)))
        assert check_file(file, task("sql"), answers=True).held_out == held_out
    file.write_text((json.dumps(ROW) + "\n") * 100)
    assert check_file(file, task("sql"), answers=True).held_out == 0  # one prompt, 100 times


def test_what_is_no_text_file_is_told(tmp_path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        check_file(tmp_path / "binary", task("sql"), answers=True)
    with pytest.raises(DataError, match="upload it again"):
        check_file(tmp_path / "missing", task("sql"), answers=True)
