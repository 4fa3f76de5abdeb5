"""Quality: what counts as the same SQL, ROUGE over several references, intervals, evaluation and comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from specstream import cli
from specstream.bench import evaluation
from specstream.bench.evaluation import QualityError, compare, exact_match, normal_sql, rouge
from specstream.data.tasks import TASKS, task
from specstream.params import Sampling, Standard
from specstream.stats import mean_interval
from specstream.testing import toy

SAME = {
    "keywords": (
        "SELECT COUNT(*) FROM t WHERE x > 3 ORDER BY y DESC",
        "select count(*) from t where x > 3 order by y desc",
    ),
    "quotes": ('SELECT a FROM t WHERE b = "it\'s"', "SELECT a FROM t WHERE b = 'it''s'"),
    "quoted names": ("SELECT `a` FROM `t`", "SELECT a FROM t"),
    "whitespace": ("SELECT  a,b\n FROM t ;", "SELECT a, b FROM t"),
    "comments": ("SELECT a FROM t -- all", "SELECT a FROM t"),
    "not equal": ("SELECT a FROM t WHERE b <> 1", "SELECT a FROM t WHERE b != 1"),
    "aliases": ("SELECT a b FROM t u", "SELECT a AS b FROM t AS u"),
    "no SQL": ('The  answer is "4";', "the answer is '4'"),
    "half a query": ("SELECT a FROM t WHERE b = 'x", "select a from t where b =   'x"),
}
DIFFERENT = {
    "strings": ("SELECT a FROM t WHERE b = 'X'", "SELECT a FROM t WHERE b = 'x'"),
    "names": ("SELECT A FROM t", "SELECT a FROM t"),
    "numbers": ("SELECT a FROM t WHERE b = '1'", "SELECT a FROM t WHERE b = 1"),
    "spaces in strings": ("SELECT a FROM t WHERE b = 'x  y'", "SELECT a FROM t WHERE b = 'x y'"),
    "order": ("SELECT a, b FROM t", "SELECT b, a FROM t"),
    "two statements": ("SELECT a FROM t; SELECT a FROM t", "SELECT a FROM t"),
    "nothing": ("", "SELECT a FROM t"),
    "words": ("show the tables", "show tables"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_sql(name: str) -> None:
    assert normal_sql(SAME[name][0]) == normal_sql(SAME[name][1])
    assert exact_match(SAME[name][0], ["SELECT 1", SAME[name][1]]) == {"exact_match": 100.0}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_sql(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert exact_match(DIFFERENT[name][0], [DIFFERENT[name][1]]) == {"exact_match": 0.0}


def test_rouge_by_hand() -> None:
    """4 of 5 words of the text, 4 of 6 of the reference: precision 0.8, recall 2/3."""
    scores = rouge("the pub serves cheap wine", ["the old pub serves good wine"])
    assert scores["rouge1"] == pytest.approx(100 * 2 * 0.8 * (4 / 6) / (0.8 + 4 / 6))
    assert scores["rougeLsum"] == pytest.approx(scores["rouge1"])  # the four are in the same order
    assert rouge("wine cheap serves pub the", ["the pub serves cheap wine"])["rougeLsum"] == pytest.approx(20)


def test_rouge_takes_the_best_reference_for_each_metric() -> None:
    text, by_words, by_order = "a b c d", "d c b a", "a b x y"
    assert rouge(text, [by_words, by_order]) == pytest.approx({"rouge1": 100, "rougeLsum": 50})


def test_rouge_lsum_cuts_texts_into_sentences() -> None:
    one, other = "He eats. She reads!", "She reads! He eats."
    assert rouge(one, [other])["rougeLsum"] == pytest.approx(100)
    assert rouge("He eats, she reads", ["She reads, he eats"])["rougeLsum"] == pytest.approx(50)


def test_an_empty_text_scores_nothing() -> None:
    assert rouge("", ["a b"]) == {"rouge1": 0, "rougeLsum": 0}


def test_intervals_hold_the_mean_and_narrow_with_more_values() -> None:
    few, many = [0.0, 100.0] * 10, [0.0, 100.0] * 250
    for values in (few, many):
        low, high = mean_interval(values)
        assert low < 50 < high
    # Two standard errors of a fair coin: 100 / sqrt(n)
    assert high - low == pytest.approx(2 * 1.96 * 50 / 500**0.5, rel=0.15)
    assert mean_interval([1.0, 9.0]) == (None, None)  # two values are too few for an interval
    assert mean_interval([3.0] * 5) == (3.0, 3.0)


def test_every_metric_of_a_task_exists() -> None:
    assert {t.metric for t in TASKS.values()} == {*evaluation.SCORERS, ""}
    assert all(bool(t.metric) == bool(t.outputs) for t in TASKS.values())


@pytest.mark.parametrize(("name", "library"), [("sql", "sqlglot"), ("e2e", "rouge_score.rouge_scorer")])
def test_a_missing_library_is_named(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    package = library.split(".")[0].replace("_", "-")
    with pytest.raises(QualityError, match=f"needs the package {package}.*pip install {package}"):
        evaluation.scorer(task(name))
    assert evaluation.scorer(task("chat")) is None


# ---- evaluation ------------------------------------------------------------------------------------------------------

FACTS = ["name[The Copper Kettle]", "name[The Brass Owl], eatType[pub]", "area[riverside]"]
REFERENCES = ["The Copper Kettle is a café by the river.", "The Copper Kettle is a quiet café."]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "dev.jsonl"
    rows = [{"meaning_representation": facts, "human_references": REFERENCES} for facts in FACTS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def toy_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specstream.engine.load", lambda *args, **kwargs: toy.load_toy(pace=0))


def run(args: list[str]) -> int:
    try:
        cli.main(["evaluate", *args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def evaluated(file: Path, data: Path, *more: str) -> dict[str, Any]:
    assert run(["--data", str(data), "--task", "e2e", "--max-new-tokens", "200", "--json", str(file), *more]) == 0
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def test_evaluate(toy_engine, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = evaluated(tmp_path / "a.json", data)
    assert result["method"] == "streaming" and result["prompts"] == 3 and result["tokens_per_step"] > 1
    assert 0 < result["acceptance_by_depth"][0] <= 1 and result["cut_off"] == 0
    for row, facts in zip(result["rows"], FACTS, strict=True):
        assert row["prompt"] == f"Facts: {facts}\nText:" and row["references"] == REFERENCES
        assert row["text"] == row["text"].strip() and row["text"].endswith(".") and row["reason"] == "eos"
        assert row["scores"] == rouge(row["text"], REFERENCES)
    mean = sum(row["scores"]["rouge1"] for row in result["rows"]) / 3
    assert result["quality"]["rouge1"] == {"mean": pytest.approx(mean), "interval": [None, None]}  # three are too few
    assert f"ROUGE-1: {mean:.2f}\n" in capsys.readouterr().out


def test_methods_write_the_same_texts_and_a_comparison_says_so(toy_engine, data, tmp_path, capsys) -> None:
    ours = evaluated(tmp_path / "a.json", data, "--method", "streaming")
    plain = evaluated(tmp_path / "b.json", data, "--method", "standard", "--against", str(tmp_path / "a.json"))
    assert plain["tokens_per_step"] == 1 and plain["acceptance_by_depth"] == []
    assert "3 of 3 texts are the same" in capsys.readouterr().out
    assert compare(ours, plain)["difference"]["rouge1"] == {"mean": 0, "interval": [None, None]}


def test_limit_and_texts_that_do_not_end(toy_engine, data, tmp_path, capsys) -> None:
    result = evaluated(tmp_path / "a.json", data, "--limit", "2", "--max-new-tokens", "5")
    assert result["prompts"] == result["cut_off"] == 2
    assert "2 texts did not end within --max-new-tokens" in capsys.readouterr().out


def test_chat_has_no_quality(toy_engine, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text('{"prompt": "Text: The"}\n')
    assert run(["--data", str(file), "--task", "chat", "--json", str(tmp_path / "a.json")]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["quality"] is None and result["rows"][0]["scores"] is None
    assert compare(result, result) == {"prompts": 1, "same_texts": 1, "difference": None}
    assert "no references" in capsys.readouterr().out


# ---- comparison ------------------------------------------------------------------------------------------------------


def result_of(scores: list[float], names: str = "abcdefgh") -> dict[str, Any]:
    """A result with these scores, as evaluate gives it."""
    items = [evaluation.EvaluationItem(name, ["x"]) for name, _ in zip(names, scores, strict=False)]
    engine = toy.load_toy(pace=0)
    result = evaluation.evaluate(engine, items, "chat", Standard(), Sampling(max_new_tokens=2))
    for row, score in zip(result["rows"], scores, strict=True):
        row["scores"] = {"exact_match": score}
    return result | {"quality": evaluation._quality(result["rows"])}


def test_a_comparison_is_paired() -> None:
    """Scores that spread widely, and a difference of 1 on each prompt: only a paired interval is that narrow."""
    base = [0.0, 20.0, 40.0, 60.0, 80.0, 90.0]
    difference = compare(result_of([s + 1 for s in base]), result_of(base))["difference"]["exact_match"]
    assert difference["mean"] == pytest.approx(1) and difference["interval"] == pytest.approx([1, 1])


def test_other_prompts_are_refused() -> None:
    with pytest.raises(QualityError, match="different prompts"):
        compare(result_of([1.0, 2.0]), result_of([1.0, 2.0], "ax"))
    with pytest.raises(QualityError, match="different prompts"):
        compare(result_of([1.0, 2.0]), result_of([1.0]))


def test_two_files_are_compared_without_decoding(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, scores in (("a", [50.0, 70.0, 90.0, 60.0, 80.0]), ("b", [40.0, 70.0, 95.0, 60.0, 80.0])):
        (tmp_path / f"{name}.json").write_text(json.dumps(result_of(scores)))
    assert run(["--json", str(tmp_path / "a.json"), "--against", str(tmp_path / "b.json")]) == 0
    assert "exact match: +1.00 (95 %: " in capsys.readouterr().out


BAD = {
    "nothing": ([], "Give --data and --task"),
    "data without task": (["--data", "x.jsonl"], "Give --data and --task"),
    "one result": (["--json", "a.json"], "Give --data and --task"),
    "no such result": (["--json", "a.json", "--against", "missing.json"], "missing.json can't be read"),
    "unknown task": (["--data", "x.jsonl", "--task", "poems"], "Unknown task"),
    "missing data": (["--data", "missing.jsonl", "--task", "e2e"], "missing.jsonl can't be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_line(name: str, toy_engine, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    args, words = BAD[name]
    assert run(args) != 0
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', '{"rows": [1], "quality": 1}', "\xff"])
def test_files_that_are_no_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(QualityError, match="is not a result"):
        evaluation.read_result(tmp_path / "x.json")


def test_a_row_without_a_reference_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"meaning_representation": "a"}\n')
    with pytest.raises(ValueError, match="line 1: the column 'human_reference' is missing"):
        evaluation.read_items(toy.load_toy(pace=0), str(file), "", task("e2e"), 0)
