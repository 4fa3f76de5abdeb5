"""The command line: bad input gives one line on standard error and a non-zero exit status; good input, its JSON."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specstream import __version__, cli
from specstream.adapters import weights
from specstream.cli import options, output
from specstream.events import Lane
from specstream.params import METHODS, Sampling, Streaming
from specstream.runlog import RunLog
from specstream.session import run_session
from specstream.testing import toy
from tests import tiny
from tests.tiny import save

ROW = {
    "meaning_representation": "name[The Salted Fig], area[riverside]",
    "human_reference": "The Salted Fig is by the river.",
}


@pytest.fixture
def toy_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands on the toy model at full speed, with a separate log."""
    monkeypatch.setenv("SPECSTREAM_DB", str(tmp_path / "toy.db"))
    monkeypatch.setattr("specstream.engine.load", lambda *args, **kwargs: toy.load_toy(pace=0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(ROW) + "\n" for _ in range(3)))
    return file


def run(args: list[str]) -> int:
    try:
        cli.main(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def fails(args: list[str], capsys: pytest.CaptureFixture) -> str:
    code = run(args)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(errors) == 1, errors
    return errors[0]


SCRIPTED = ("generate", "--model", "toy", "--prompt", "a")
BAD = {
    "no prompt": (["generate"], "Give either --prompt"),
    "prompt and data": (["generate", "--prompt", "a", "--data", "x.jsonl"], "Give either --prompt"),
    "data without task": (["generate", "--data", "x.jsonl"], "--data needs --task"),
    "empty prompt": (["generate", "--prompt", " "], "prompt is empty"),
    "long prompt": (["generate", "--prompt", "x" * 100_000], "shorten it"),
    "unknown method": (["generate", "--prompt", "a", "--method", "magic"], "Unknown method"),
    "unknown task": (["generate", "--prompt", "a", "--task", "poems"], "Unknown task"),
    "temperature NaN": (["generate", "--prompt", "a", "--temperature", "nan"], "Temperature must be"),
    "temperature words": (["generate", "--prompt", "a", "--temperature", "hot"], "not a valid float"),
    "budget too large": (["generate", "--prompt", "a", "--budget", "1000"], "Tree budget must be"),
    "tree kind": (["generate", "--prompt", "a", "--tree", "oak"], "oak"),
    "missing data": (["generate", "--data", "missing.jsonl", "--task", "e2e"], "can't be read"),
    "output folder": (["generate", "--prompt", "a", "--json", "no/such/folder/x.json"], "does not exist"),
    "unknown command": (["dance"], "No such command"),
    "bench without data": (["bench", "--task", "e2e"], "--data"),
    "bench repeats": (["bench", "--task", "e2e", "--data", "x", "--repeats", "0"], "--repeats"),
    "outside reference on the toy": (
        ["bench", "--task", "e2e", "--data", "DATA", "--methods", "hf"],
        "not a transformers model",
    ),
    "tune without data": (["cost", "--tune"], "--tune needs prompts"),
    "tune standard": (["cost", "--tune", "--task", "e2e", "--data", "DATA", "--method", "standard"], "can't be tuned"),
    "output is the data": (
        ["generate", "--task", "e2e", "--data", "DATA", "--json", "DATA"],
        "--data and --json name the same file, which would be overwritten",
    ),
    "bench output is the data": (["bench", "--task", "e2e", "--data", "DATA", "--json", "DATA"], "the same file"),
    "cost output is the data": (["cost", "--task", "e2e", "--data", "DATA", "--json", "DATA"], "the same file"),
    "evaluate output is the data": (["evaluate", "--task", "e2e", "--data", "DATA", "--json", "DATA"], "the same file"),
    "evaluate output is compared with": (
        ["evaluate", "--task", "e2e", "--data", "DATA", "--json", "RESULT", "--against", "RESULT"],
        "--against and --json name the same file",
    ),
    "training progress is the data": (
        ["train", "--task", "e2e", "--data", "DATA", "--progress", "DATA"],
        "--data and --progress name the same file",
    ),
    "training progress is the answers": (
        ["train", "--task", "e2e", "--answers", "DATA", "--progress", "DATA"],
        "--answers and --progress name the same file",
    ),
    "training temperature NaN": (
        ["train", "--task", "e2e", "--data", "DATA", "--temperatures", "nan"],
        "Temperature must",
    ),
    "answers' temperature": (
        ["answers", "--task", "chat", "--out", "x.jsonl", "--temperatures", "-1"],
        "Temperature must",
    ),
    "prompt of half a character": (["generate", "--prompt", "a \ud800 b"], "is not valid text: character 3 is half"),
    "chat of half a character": (["generate", "--task", "chat", "--prompt", "\udcff"], "is not valid text"),
    "a setting given twice": (
        ["generate", "--prompt", "a", "--method", "streaming:budget=1:budget=2"],
        "gives budget twice",
    ),
    "no methods": (["bench", "--task", "e2e", "--data", "DATA", "--methods", ", ,"], "--methods names no method"),
    "settings of transformers": (["bench", "--task", "e2e", "--data", "DATA", "--methods", "hf:top=3"], "hf takes no"),
    "settings of all": (["bench", "--task", "e2e", "--data", "DATA", "--methods", "all:budget=3"], "all takes no"),
    "bench on a dataset of the Hub": (["bench", "--task", "e2e", "--data", "hub:x"], "reads a file, not hub:x"),
    "cost without end": (["cost", "--seconds", "nan"], "nan is not a number"),
    "tuning without runs": (["cost", "--tune", "--task", "e2e", "--data", "DATA", "--repeats", "0"], "--repeats"),
    "answers into the data": (["answers", "--task", "e2e", "--out", "DATA", "--data", "DATA"], "would be overwritten"),
    "answers into rows": (["answers", "--task", "e2e", "--out", "DATA", "--own-prompts", "3"], "other than answers"),
    "answers into notes": (["answers", "--task", "e2e", "--out", "NOTES", "--own-prompts", "3"], "other than answers"),
    "answers into own prompts": (
        ["answers", "--task", "chat", "--out", "own-prompts.jsonl", "--own-prompts", "3"],
        "would be overwritten",
    ),
    "own prompts into the data": (
        ["answers", "--task", "e2e", "--out", "x.jsonl", "--own-prompts", "3", "--data", "own-prompts.jsonl"],
        "would be overwritten",
    ),
    "the toy with an adapter": (
        [*SCRIPTED, "--adapter", "nosuch"],
        "for which adapter nosuch means nothing",
    ),
    "the toy on a GPU": (
        [*SCRIPTED, "--device", "cuda"],
        "for which device cuda means nothing",
    ),
    "the toy in 16 bits": (
        [*SCRIPTED, "--dtype", "float16"],
        "for which dtype float16 means nothing",
    ),
    "the toy with a model": (
        [*SCRIPTED, "--draft-model", "gpt2"],
        "for which draft model gpt2 means",
    ),
    "the toy is trained": (["train", "--model", "toy", "--task", "e2e", "--data", "DATA"], "a script without weights"),
    "output into a folder": (["generate", "--prompt", "a", "--json", "."], "is a folder"),
    "output below a file": (["generate", "--prompt", "a", "--json", "DATA/x.json"], "is not a folder"),
    "missing log": (["runs", "list", "--db", "no/such.db"], "There is no log"),
    "run of half a character": (["runs", "show", "\udcff"], "There is no run"),
    "log in memory": (["runs", "list", "--db", ":memory:"], "keeps nothing"),
    "unknown run": (["runs", "show", "NOPE"], "There is no run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_line(name, toy_engine, data, capsys) -> None:
    args, words = BAD[name]
    (result := data.with_name("result.json")).write_text('{"task": "e2e", "prompts": [], "method": "x"}')
    before = data.read_text()
    (notes := data.with_name("notes.txt")).write_text("my notes\n")
    files = {"DATA": str(data), "RESULT": str(result), "NOTES": str(notes)}
    given = [functools.reduce(lambda arg, name: arg.replace(name, files[name]), files, a) for a in args]
    assert words in fails(given, capsys)
    assert data.read_text() == before and notes.read_text() == "my notes\n"


UNREAD = {
    "setting": ["generate", "--prompt", "a", "--budget", "-3"],
    "task": ["generate", "--task", "poems", "--data", "DATA"],
    "row": ["bench", "--task", "e2e", "--data", "BROKEN"],
    "folder as data": ["cost", "--task", "e2e", "--data", "FOLDER"],
    "missing data": ["evaluate", "--task", "e2e", "--data", "missing.jsonl"],
    "columns of another task": ["evaluate", "--task", "sql", "--data", "DATA"],
    "no rows": ["generate", "--task", "e2e", "--data", "EMPTY"],
    "training columns": ["train", "--task", "sql", "--data", "DATA", "--out", "FOLDER"],
    "validation columns": ["train", "--task", "e2e", "--data", "DATA", "--dev", "EMPTY", "--out", "FOLDER"],
    "columns to answer": ["answers", "--task", "chat", "--data", "DATA", "--out", "x.jsonl"],
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_wrong_without_a_model_is_said_before_it_is_loaded(name, data, monkeypatch, capsys) -> None:
    monkeypatch.setattr("specstream.engine.load", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    monkeypatch.setattr("specstream.target.loading.fetch", lambda *args: pytest.fail("the model was loaded"))
    (broken := data.with_name("broken.jsonl")).write_text("{\n")
    (empty := data.with_name("empty.jsonl")).touch()
    files = {"DATA": str(data), "BROKEN": str(broken), "EMPTY": str(empty), "FOLDER": str(data.parent)}
    assert "something went wrong" not in fails([files.get(a, a) for a in UNREAD[name]], capsys)


def test_the_same_option_may_be_within_the_limits_of_some_methods_only() -> None:
    options.check_settings({"depth": 16, "drafts": None, "width": 8})
    with pytest.raises(ValueError, match="Width"):
        options.check_settings({"width": 99})


@pytest.mark.parametrize("command", ["bench", "evaluate", "invariance"])
def test_a_result_is_not_lost_if_its_file_can_not_be_written(command, toy_engine, data, monkeypatch, capsys) -> None:
    """The disk may fill up while hours are measured."""

    def full(file: Path, results: Any) -> None:
        with output._naming(file):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("specstream.cli.output.write_lines", full)
    asked = ["--task", "e2e", "--data", str(data), "--limit", "1", "--max-new-tokens", "4"]
    repeats = ["--repeats", "1"] if command == "bench" else []
    if command == "invariance":
        monkeypatch.setattr("specstream.bench.invariance.findings", lambda where: iter([]))
        asked = []
    file = data.with_name("full.json")
    assert run([command, *asked, *repeats, "--json", str(file)]) == 1
    out = capsys.readouterr()
    assert f"error: {file}: No space left on device." in out.err
    assert isinstance(json.loads(out.out.splitlines()[-1]), dict)


@pytest.mark.parametrize("command", ["generate", "bench", "cost", "evaluate", "invariance"])
def test_json_on_standard_output_is_all_that_is_there(command, toy_engine, data, monkeypatch, capsys) -> None:
    """So that it can be piped into another program; tables go to standard error."""
    monkeypatch.setattr("specstream.bench.invariance.findings", lambda where: iter([]))
    asked = ["--task", "e2e", "--data", str(data), "--limit", "1", "--max-new-tokens", "4"]
    more = {"bench": ["--repeats", "1"], "cost": ["--seconds", "0.1"]}
    assert run([command, *(asked if command != "invariance" else []), *more.get(command, []), "--json", "-"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_filters_of_the_log_take_anything(log: RunLog, capsys) -> None:
    """The last day that there is, a limit beyond SQLite's integers, half a character."""
    db = ["--db", str(log.path)]
    assert run(["runs", "list", *db, "--until", "9999-12-31", "--limit", str(10**30)]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    for option in ("--method", "--model", "--search"):
        assert run(["runs", "list", *db, option, "\udcff"]) == 0
    assert capsys.readouterr().out == ""


def test_version(capsys) -> None:
    assert run(["--version"]) == 0 and capsys.readouterr().out == f"{__version__}\n"


def test_commands_are_described_in_whole_sentences(monkeypatch, capsys) -> None:
    """The list of commands cuts off what does not fit its line."""
    monkeypatch.setenv("COLUMNS", "80")
    for args in ([], ["adapters"], ["runs"], ["models"]):
        run([*args, "--help"])
        assert "..." not in capsys.readouterr().out.split("Commands:")[1]


@pytest.mark.parametrize("model", ["/no/such/folder", "nobody/nothing-like-this", "../x", "a b"])
def test_unknown_models(model, capsys) -> None:
    assert "error: " in fails(["generate", "--model", model, "--prompt", "a"], capsys)


def test_bad_devices(capsys) -> None:
    fails(["generate", "--device", "toaster", "--prompt", "a"], capsys)
    fails(["generate", "--dtype", "int3", "--prompt", "a"], capsys)


def test_unwritable_database(capsys, tmp_path) -> None:
    assert "error: " in fails(["runs", "list", "--db", str(tmp_path)], capsys)


def test_generate_prompt(toy_engine, capsys) -> None:
    assert run(["generate", "--prompt", "Text:", "--max-new-tokens", "30"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith(" The") and "tokens per step" in out.err


def test_generate_json_has_one_object_per_prompt(toy_engine, data, tmp_path) -> None:
    results = {}
    for method in ("standard", "streaming"):
        file = tmp_path / f"{method}.json"
        args = [
            "generate",
            "--data",
            str(data),
            "--task",
            "e2e",
            "--limit",
            "2",
            "--method",
            method,
            "--json",
            str(file),
        ]
        assert run(args) == 0
        results[method] = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(results["streaming"]) == 2
    for ours, standard in zip(results["streaming"], results["standard"], strict=True):
        assert set(ours) == {"prompt", "text", "token_ids", "method", "stats"}
        assert ours["text"] == standard["text"] and ours["token_ids"] == standard["token_ids"]
        assert ours["prompt"] == "Facts: name[The Salted Fig], area[riverside]\nText:"
        assert ours["stats"]["tokens_per_step"] > 1 == standard["stats"]["tokens_per_step"]


def test_bench_json(toy_engine, data, tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    args = [
        "bench",
        "--data",
        str(data),
        "--task",
        "e2e",
        "--repeats",
        "2",
        "--max-new-tokens",
        "40",
        "--json",
        str(file),
    ]
    assert run(args) == 0
    report = json.loads(file.read_text())
    assert {"machine", "model", "adapter", "dtype", "device", "commit", "rows"} <= set(report)
    names = {"task", "method", "prompts", "tokens", "steps", "seconds", "tokens_per_second", "tokens_per_step"}
    names |= {"speedup", "identical", "total", "acceptance_by_depth", "extra_parameters", "metric"}
    standard, streaming = report["rows"]
    assert names <= set(standard) and names <= set(streaming)
    assert standard["method"] == "standard" and standard["speedup"] == 1 and standard["tokens_per_step"] == 1
    assert streaming["identical"] == streaming["total"] == streaming["prompts"] == 3
    assert streaming["tokens"] == standard["tokens"] and streaming["tokens_per_step"] > 1
    out = capsys.readouterr().out.strip().splitlines()
    assert json.loads(out[-1]) == report and out[0].startswith("| method")
    log = RunLog(tmp_path / "toy.db")
    (kept,) = log.benchmarks()
    assert log.benchmark(kept["id"])["rows"] == report["rows"]


def test_bench_takes_all_methods_and_one_with_settings_of_its_own(toy_engine, data, tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    words = ["--task", "e2e", "--data", str(data), "--limit", "1", "--repeats", "1", "--max-new-tokens", "16"]
    assert run(["bench", "--methods", "all,streaming:budget=2", *words, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["method"] for row in rows] == [*METHODS, "streaming"]
    assert rows[-1]["label"] == "Speculative Streaming, tree budget 2" and rows[-1]["settings"]["budget"] == 2
    assert "is not a setting" in fails(["bench", "--methods", "streaming:budget", *words], capsys)


def test_bench_with_all_leaves_out_what_the_model_can_not_run(tmp_path: Path, data: Path, capsys) -> None:
    save(tiny.tiny("llama"), tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--adapter", "none", "--device", "cpu", "--limit", "1"]
    words += ["--task", "e2e", "--data", str(data), "--repeats", "1", "--max-new-tokens", "8"]
    assert run(["bench", "--methods", "all,streaming:budget=2", *words]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert {"standard", "prompt_lookup"} <= {r["method"] for r in rows} and "streaming" not in {
        r["method"] for r in rows
    }
    assert "no trained streams" in fails(["bench", "--methods", "prompt_lookup,streaming:budget=2", *words], capsys)


def test_cost_and_tune_json(toy_engine, data, tmp_path, capsys) -> None:
    file = tmp_path / "cost.json"
    args = ["cost", "--seconds", "0", "--json", str(file), "--max-new-tokens", "30", "--repeats", "1"]
    assert run(args) == 0
    report = json.loads(file.read_text())
    assert report["cost"]["plain"][0]["nodes"] == 0 and "tuned" not in report
    assert capsys.readouterr().out.startswith("| nodes")
    assert run([*args, "--tune", "--data", str(data), "--task", "e2e", "--budget", "40"]) == 0
    trials = json.loads(file.read_text())["tuned"]["trials"]
    assert trials[1]["settings"]["budget"] == 40 and trials[0]["measured"] > 0


def test_runs_list_show_export(capsys, tmp_path) -> None:
    db = tmp_path / "runs.db"
    engine, log = toy.load_toy(pace=0), RunLog(db)
    with log.start(engine.info, "Text:", "", "streaming", {}) as recorder:
        for item in run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=20)):
            recorder.add(*item) if isinstance(item, tuple) else recorder.verdict(item)
    assert run(["runs", "list", "--db", str(db)]) == 0
    listed = capsys.readouterr().out
    assert "finished" in listed and "identical" in listed
    run_id, run_started = listed.split()[:2]
    assert run(["runs", "show", run_id[:-2], "--db", str(db)]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == run_id
    for form in ("jsonl", "csv"):
        assert run(["runs", "export", "all", "--format", form, "--db", str(db)]) == 0
        assert run_id in capsys.readouterr().out
    assert len(log.events(run_id, Lane.METHOD)) > 3
    filters = ["--since", run_started[:10], "--method", "streaming", "--model", "toy", "--sort", "tokens"]
    assert run(["runs", "list", *filters, "--db", str(db)]) == 0
    assert run_id in capsys.readouterr().out
    assert run(["runs", "export", "all", "--starred", "--db", str(db)]) == 0
    assert capsys.readouterr().out == ""
    assert run(["runs", "list", "--until", "soon", "--db", str(db)]) == 1
    assert "not a day" in capsys.readouterr().err
    assert run(["runs", "delete", run_id, "--yes", "--db", str(db)]) == 0
    assert log.count() == 0


def test_a_link_to_the_data_is_the_data(toy_engine, data, tmp_path, capsys) -> None:
    (link := tmp_path / "link.json").symlink_to(data)
    before = data.read_text()
    args = ["generate", "--task", "e2e", "--data", str(data), "--json", str(link)]
    assert "the same file" in fails(args, capsys) and data.read_text() == before


def test_another_name_of_the_data_is_the_data_too(data, tmp_path, capsys) -> None:
    (other := tmp_path / "other.jsonl").hardlink_to(data)
    before = data.read_bytes()
    said = fails(["answers", "--task", "e2e", "--out", str(other), "--data", str(data)], capsys)
    assert "would be overwritten" in said and data.read_bytes() == before


def test_a_run_that_fills_the_context_says_so(toy_engine, capsys, monkeypatch, tmp_path) -> None:
    def load(*_, **__):
        engine = toy.load_toy(pace=0)
        engine.info = replace(engine.info, context=40)
        return engine

    monkeypatch.setattr("specstream.engine.load", load)
    monkeypatch.setattr(toy.ToyTarget, "context", 40)
    args = ["generate", "--prompt", "Text: The", "--max-new-tokens", "200", "--json", str(tmp_path / "x.json")]
    assert run(args) == 0
    assert "note: the text ends here because the model's context of 40 tokens is full." in capsys.readouterr().err
    assert json.loads((tmp_path / "x.json").read_text())["stats"]["reason"] == "context"
    assert run(["generate", "--prompt", "Text: The", "--max-new-tokens", "5"]) == 0
    assert "context" not in capsys.readouterr().err


def test_a_stop_of_half_a_character_is_written_as_json_spells_it(toy_engine, data, tmp_path, capsys) -> None:
    file = tmp_path / "bench.json"
    args = ["--task", "e2e", "--data", str(data), "--limit", "1", "--repeats", "1", "--max-new-tokens", "9"]
    assert run(["bench", *args, "--stop", "\ud800é", "--json", str(file)]) == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads(file.read_text())["sampling"]["stop"] == report["sampling"]["stop"] == ["\ud800é"]


EVIL = "=1+1 \x1b[2J\x1b]0;title\x07 \x9b31m \u202egnp \x7f日本🦊é"


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    """A log with one run, whose prompt contains control characters."""
    engine, log = toy.load_toy(pace=0), RunLog(tmp_path / "runs.db")
    with log.start(engine.info, EVIL, "", "streaming", {}) as recorder:
        for item in run_session(engine, "Text:", Streaming(), Sampling(max_new_tokens=9)):
            recorder.add(*item) if isinstance(item, tuple) else recorder.verdict(item)
    return log


def test_a_prompt_can_not_steer_the_owners_terminal(log: RunLog, capsys) -> None:
    steering = set("\x1b\x07\x9b\x7f\u202e")
    for args in (["list"], ["show", log.ids()[0]]):
        assert run(["runs", *args, "--db", str(log.path)]) == 0
        out = capsys.readouterr().out
        assert not steering & set(out) and "title" in out and "\\u001b" in out
    assert json.loads(out)["prompt"] == EVIL
    assert "error: There is no run '" in fails(["runs", "show", "\x1b[2J", "--db", str(log.path)], capsys)


def test_an_adapter_can_not_steer_the_terminal(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    _, adapter = tiny.model_with_adapter("llama")
    for name, card in (("one", replace(adapter.card, licence="\x1b[2Jfree\n")), ("two\x1b[2J", adapter.card)):
        weights.save(adapter, tmp_path / "adapters" / name, card)
    (tmp_path / "adapters" / "two\x1b[2J" / "card.json").write_text('{"base": "tiny"}')
    assert run(["adapters", "list"]) == 0
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err and "free" in out.out and "two\\u001b[2J" in out.err


def test_text_on_a_terminal_can_not_steer_it(toy_engine, monkeypatch, capsys) -> None:
    monkeypatch.setattr(toy.ByteTokenizer, "decode", lambda self, ids, **_: "a\x1b[2J\tb\n" * len(ids))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run(["generate", "--prompt", "Text:", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out == "a\\u001b[2J\tb\n\n"


def specstream(*args: str, **settings: Any) -> subprocess.Popen[bytes]:
    """The program in a separate process."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "specstream", *args], **pipes | settings)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_output_in_any_encoding(log: RunLog, encoding: str) -> None:
    env = os.environ | {"PYTHONIOENCODING": encoding}
    commands = (["list"], ["show", log.ids()[0]], ["export", "all"], ["export", "all", "--format", "csv"])
    running = [specstream("runs", *args, "--db", str(log.path), env=env) for args in commands]
    texts = []
    for process in running:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        texts.append(out)
    shown, line, table = texts[1].decode(encoding), texts[2].decode(), texts[3].decode()
    assert json.loads(shown)["prompt"] == json.loads(line)["prompt"] == EVIL and "日本🦊é" in table


@pytest.mark.parametrize("args", [["models", "list"], ["runs", "export", "all", "--db", "DB"], ["--help"], ["runs"]])
def test_a_pipe_that_is_closed_early_is_no_error(args: list[str], log: RunLog) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = specstream(*(str(log.path) if a == "DB" else a for a in args), stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"") or (args == ["runs"] and process.returncode == 0)


@pytest.mark.parametrize("args", [["models", "list"], ["runs", "show", "ID", "--db", "DB"]])
def test_output_that_can_not_be_written(args: list[str], log: RunLog) -> None:
    args = [{"DB": str(log.path), "ID": log.ids()[0]}.get(a, a) for a in args]
    with open("/dev/full", "w") as full:
        process = specstream(*args, stdout=full)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.decode() == "error: No space left on device.\n"
    command = f"exec {sys.executable} -m specstream {' '.join(args)} >&-"
    closed = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_no_memory_is_one_sentence(toy_engine, monkeypatch, capsys) -> None:
    def allocate(*_: Any, **__: Any) -> None:
        torch.empty(1 << 55)

    monkeypatch.setattr(toy.ToyTarget, "prefill", allocate)
    assert "there is not enough memory" in fails(["generate", "--prompt", "a"], capsys)


def test_models_list(capsys) -> None:
    assert run(["models", "list"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out


BAD_TRAINING = {
    "no references": (["--task", "chat", "--data", "x"], "no references"),
    "hub data": (["--task", "e2e", "--data", "hub:x"], "dataset x"),
    "gamma": (["--task", "e2e", "--data", "x", "--gamma", "0"], "Gamma must be"),
    "rate": (["--task", "e2e", "--data", "x", "--lr", "nan"], "Learning rate must be"),
    "budget": (["--task", "e2e", "--data", "x", "--epochs", "0"], "Epochs must be"),
    "no such file": (["--task", "e2e", "--data", "x"], "x can't be read"),
    "own answers without prompts": (["--task", "chat", "--targets", "self"], "no public dataset"),
    "unknown task": (["--task", "poems", "--data", "x"], "Unknown task"),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_training_settings(name, capsys, tmp_path) -> None:
    args, words = BAD_TRAINING[name]
    assert words in fails(["train", "--out", str(tmp_path), *args], capsys)


def test_a_command_imports_neither_the_other_commands_nor_what_only_a_run_needs() -> None:
    """--help of one command, and the list of all, answer at once."""
    code = (
        "import sys\nfrom specstream import cli\ntry: cli.main(sys.argv[1:])\nfinally: print(*sys.modules, sep='\\n')"
    )
    heavy = {"torch", "transformers", "huggingface_hub", "sqlite_utils", "gradio"}
    for args, absent in ((["runs", "--help"], {"specstream.cli.train"}), (["--help"], set())):
        out = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True).stdout
        assert "Usage:" in out and not (heavy | absent) & set(out.splitlines())


def test_options_of_own_answers_have_one_definition() -> None:
    answers, train = ({o.name: o for o in cli.find_command(name).params} for name in ("answers", "train"))
    for name in ("model", "temperatures", "own_prompts", "max_length", "max_answer", "limit"):
        assert answers[name].to_info_dict() == train[name].to_info_dict()
    twice = cli.find_command("answers").make_context(
        "answers", ["--task", "chat", "--out", "x", "--temperatures", "0", "--temperatures", "0"]
    )
    assert twice.params["temperatures"] == (0.0,)


@pytest.mark.parametrize(
    ("adapter", "task", "facts", "said"),
    [
        ("auto", None, {}, True),
        ("auto", "chat", {}, True),  # no adapter is bundled for it here
        ("auto", "e2e", {}, False),
        ("e2e", None, {}, False),
        ("auto", None, {"tuned": False}, False),
    ],
)
def test_a_tuned_model_that_nobody_asked_for_is_noted(
    adapter: str, task: str | None, facts: dict[str, Any], said: bool, monkeypatch, capsys
) -> None:
    engine = toy.load_toy(pace=0)
    engine.info = replace(engine.info, **{"adapter": "e2e", "tuned": True} | facts)
    monkeypatch.setattr("specstream.engine.load", lambda *args, **kwargs: engine)
    monkeypatch.setattr("specstream.adapters.find.bundled", lambda model: {"e2e": Path("e2e")})
    words = ["--adapter", adapter, *(["--task", task] if task else [])]
    assert run(["generate", "--prompt", "a", "--max-new-tokens", "2", *words]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "changes what the model writes" in line]
    assert len(notes) == said and all("adapter e2e" in n and "--task" in n and "--adapter none" in n for n in notes)
