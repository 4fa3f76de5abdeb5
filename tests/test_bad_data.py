"""Data as people have it: sorted, cut off, from pipes, with byte-order marks and odd characters, and rows that can't be
used. All of it is read, or reported by file and line."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest

from specstream import bench, cli
from specstream.bench import evaluation
from specstream.bench import prompts as cases
from specstream.data.checks import check_file
from specstream.data.tasks import task
from specstream.model.introspection import dissect
from specstream.testing import toy
from specstream.training import command
from specstream.training.batches import DataError, hold_out, read_examples, read_prompts, spread
from specstream.training.config import Config
from specstream.training.progress import Tail, Writer
from specstream.training.self_distillation import answer_all
from tests import tiny
from tests.test_training import Letters
from tests.trainings import rows, save_model

ROW = {"meaning_representation": "name[The Copper Kettle]", "human_reference": "The Copper Kettle is by the river."}
QUESTION = {"category": "qa", "turns": ["Text: The", "Text: Near"]}
HUGE, DEEP, LONG = "1" * 5000, "[" * 100_000 + "]" * 100_000, "name[" + "x" * 300_000 + "]"
HALF = "\\ud83d"  # half an emoji, as JSON spells it


def line(**columns: str) -> str:
    return json.dumps(ROW | columns)


def reading(name: str) -> Callable[[Path], object]:
    """The functions that read a file of rows, of the task e2e or of questions."""
    loaded = toy.load_toy(pace=0)
    return {
        "train": lambda file: read_examples(str(file), task("e2e"), Letters(), 100_000),
        "train on own answers": lambda file: read_prompts(str(file), task("e2e"), Letters(), 100_000),
        "generate": lambda file: cases.read_prompts(loaded, file, "e2e"),
        "evaluate": lambda file: evaluation.read_items(loaded, str(file), "", task("e2e"), 0),
        "bench": lambda file: bench.read_cases(loaded, file, "e2e"),
    }[name]


READERS = ["train", "train on own answers", "generate", "evaluate", "bench"]


# ---- rows at equal distances -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "count"), [(100, 64), (120, 64), (7, 3), (64, 64), (3, 8), (0, 4), (5, 0), (1000, 1)]
)
def test_items_are_taken_at_equal_distances(length: int, count: int) -> None:
    found = spread(list(range(length)), count)
    assert len(found) == min(length, count) and sorted(set(found)) == found
    distance = length // max(1, len(found))
    assert {b - a for a, b in pairwise([*found, length])} <= {distance, distance + 1}


def test_rows_are_held_out_from_all_of_the_data() -> None:
    rest, held = hold_out(list(range(120)), 64)
    assert len(held) == 64 and len(rest) == 56 and max(held) > 115
    assert abs(sum(held) / 64 - sum(rest) / 56) < 3


# ---- files that were cut off -----------------------------------------------------------------------------------------

ODD = "one\u2028two\u0085three"


@pytest.mark.parametrize(
    "harm", ["cut", "cut in a character", "no line feed", "cut, then added to", "another file", "none"]
)
def test_answers_that_were_cut_off_are_made_again_and_no_others(harm: str, tmp_path: Path) -> None:
    file, anatomy = tmp_path / "answers.jsonl", dissect(tiny.tiny("llama"))
    prompts = ["a", "longer é", ODD]
    made: list[int] = []

    def answer():
        made.clear()
        tokenizer = Letters()
        return answer_all(anatomy, tokenizer, prompts, file, 5, (0.0,), nullcontext, lambda n, _: made.append(n))

    first = answer()
    whole = file.read_bytes()
    *_, last = whole.splitlines(keepends=True)
    foreign = [{"prompt": "a"}, {"prompt": "a", "temperature": 0.0, "answer": [10**6]}, {"prompt": 5}]
    file.write_bytes(
        {
            "cut": whole[:-4],
            "cut in a character": whole.replace("é".encode(), "é".encode()[:1])[: -len(last)] + last[:15],
            "no line feed": whole[:-1],
            "cut, then added to": whole[: -len(last)] + last[:9] + whole,
            "another file": "".join(json.dumps(row) + "\n" for row in foreign).encode(),
            "none": whole,
        }[harm]
    )
    missing = {"cut": 1, "cut in a character": 2, "another file": 3}.get(harm, 0)
    assert answer() == first and (made[-1] if made else 0) == missing
    assert answer() == first and not made
    assert harm == "another file" or file.read_bytes().startswith(whole[: -len(last)][:20])


def test_what_follows_a_line_of_progress_that_was_cut_off_is_read(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    Writer(file).phase("Loading the model")
    file.write_bytes(file.read_bytes() + b'{"kind": "step", "st')
    Writer(file).phase("Starting")
    assert Tail(file).read().words == "Starting"


# ---- pipes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path):
    """Makes a pipe that yields a text once, as a shell's ``<(...)`` does."""
    ends: list[int] = []

    def make(text: str) -> str:
        reading_end, writing_end = os.pipe()
        ends.append(reading_end)

        def write() -> None:
            with os.fdopen(writing_end, "w", encoding="utf-8") as out:
                out.write(text)

        threading.Thread(target=write, daemon=True).start()
        return f"/dev/fd/{reading_end}"

    yield make
    for end in ends:
        os.close(end)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs /dev/fd")
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_read(name: str, pipe) -> None:
    assert len(reading(name)(Path(pipe(f"{line()}\n{line(meaning_representation='name[B]')}\n")))) == 2


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs /dev/fd")
def test_questions_and_training_data_come_from_a_pipe(pipe, tmp_path: Path, monkeypatch, capsys) -> None:
    loaded = toy.load_toy(pace=0)
    assert len(bench.read_cases(loaded, Path(pipe(json.dumps(QUESTION) + "\n")), "spec-bench")) == 1
    monkeypatch.setenv("SPECSTREAM_HOME", str(tmp_path))
    options = ["--device", "cpu", "--layers", "2", "--epochs", "1", "--batch", "4", "--precision", "float32"]
    data = ["--data", pipe(rows(8)), "--dev", pipe(rows(4)), "--probes", "0", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--model", str(save_model(tmp_path / "model")), "--task", "sql", *options, *data])
        raise SystemExit(0)
    found = capsys.readouterr()
    assert not ended.value.code and "Adapter saved" in found.out, found.err


# ---- characters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_is_no_part_of_the_data(name: str, tmp_path: Path) -> None:
    plain, marked = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    plain.write_text(line() + "\n")
    marked.write_text(line() + "\n", encoding="utf-8-sig")
    assert reading(name)(marked) == reading(name)(plain)


def test_a_byte_order_mark_is_passed_over_everywhere_else(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line() + "\n", encoding="utf-8-sig")
    assert check_file(file, task("e2e"), answers=True).bad == 0
    file.write_text(json.dumps(QUESTION), encoding="utf-8-sig")
    assert bench.spec_bench(file) == bench.read_cases(toy.load_toy(pace=0), file, "e2e")
    file.write_text(json.dumps({"rows": [{"prompt": "", "text": "", "scores": None}], "quality": None}), "utf-8-sig")
    assert evaluation.read_result(file)["quality"] is None


@pytest.mark.parametrize("name", READERS)
def test_only_a_line_feed_ends_a_row(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        json.dumps(ROW | {"meaning_representation": ODD}, ensure_ascii=False) + "\r\n" + line() + "\n", "utf-8"
    )
    assert len(reading(name)(file)) == 2


def test_only_a_line_feed_ends_a_question(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(QUESTION | {"turns": [ODD]}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [case.turns for case in bench.spec_bench(file)] == [(ODD,)]


# ---- rows that can't be used -----------------------------------------------------------------------------------------

BAD = {"digits": f'{{"a": {HUGE}}}', "brackets": f'{{"a": {DEEP}}}', "half": line().replace("Copper", HALF)}


@pytest.mark.parametrize("row", BAD)
@pytest.mark.parametrize("name", READERS)
def test_a_row_that_cant_be_used_is_named(name: str, row: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line() + "\n" + BAD[row] + "\n")
    with pytest.raises(DataError) as error:
        reading(name)(file)
    words = str(error.value)
    assert words.startswith(f"{file}, line 2: ") and "\n" not in words and len(words) < 300
    (problem,) = check_file(file, task("e2e"), answers=True).problems
    assert problem.startswith("Line 2: ")


@pytest.mark.parametrize("row", [*BAD, "long"])
def test_a_question_that_cant_be_used_is_named(row: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    bad = BAD[row] if row in ("digits", "brackets") else json.dumps(QUESTION | {"turns": ["a", LONG]})
    bad = json.dumps(QUESTION).replace("Near", HALF) if row == "half" else bad
    file.write_text(json.dumps(QUESTION) + "\n" + bad + "\n")
    with pytest.raises(DataError, match="line 2: "):
        bench.read_cases(toy.load_toy(pace=0), file, "spec-bench")


def test_a_result_that_is_nested_too_deep_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(DEEP)
    with pytest.raises(evaluation.QualityError, match="is not a result"):
        evaluation.read_result(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["generate", "evaluate", "bench"])
def test_a_row_that_does_not_fit_the_context_is_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line() + "\n" + line(meaning_representation=LONG) + "\n")
    with pytest.raises(DataError, match=r"a.jsonl, line 2: The prompt has [\d,]+ tokens or more"):
        reading(name)(file)


@pytest.mark.parametrize("targets", ["references", "self"])
def test_a_row_that_does_not_fit_the_model_is_left_out_of_a_training(targets: str, tmp_path: Path, capsys) -> None:
    """Also one that is within --max-length, but beyond the model's context."""
    file, anatomy = tmp_path / "a.jsonl", dissect(tiny.tiny("gpt2"))
    context = anatomy.context
    texts = ["name[A]", LONG, "x" * (context + 10), "x" * (context - 30)]
    file.write_text("".join(line(meaning_representation=text) + "\n" for text in texts))
    request = command.TrainingRequest(
        "tiny", "e2e", str(file), None, tmp_path, targets=targets, max_answer=20, max_length=100_000
    )
    watch = command._Watch(None, lambda: 0)
    examples, _ = command._examples(request, Config(precision="float32"), task("e2e"), anatomy, Letters(), watch)
    assert len(examples) == 1 and "3 rows are longer than" in capsys.readouterr().err
