"""The benchmark: what is measured, the formulas on known numbers, and transformers' methods on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specstream import bench, engine, params
from specstream.bench import baselines, prompts, runner, step_cost, tables, tune
from specstream.data.datasets import DataError
from specstream.events import Agreement, Reason, Verdict
from specstream.params import Medusa, PromptLookup, Sampling, Standard, Streaming
from specstream.runlog import RunLog, RunLogError
from specstream.session import token_ids
from specstream.stats import RunStats, bootstrap
from specstream.testing import toy
from tests import tiny

SHORT = Sampling(max_new_tokens=30)


# ---- the order and the count of runs ---------------------------------------------------------------------------------


class Noting(runner.Ours):
    """A contender that records when it runs."""

    def __init__(self, loaded: Any, method: Any, log: list[tuple[str, str]]) -> None:
        super().__init__(loaded, method)
        self._log = log

    def run(self, prompt: str, sampling: Sampling) -> list[Any]:
        self._log.append((self.name, prompt))
        return super().run(prompt, sampling)


def test_methods_alternate_in_abba_order_on_every_prompt() -> None:
    loaded, log = toy.load_toy(pace=0), []
    contenders = [Noting(loaded, m, log) for m in (Streaming(), PromptLookup())]
    asked = bench.prompts_as_cases(["Text:", "Text: The", "Text: Near the"])
    done: list[int] = []
    rows = bench.bench(loaded, asked, contenders, SHORT, 2, lambda: done.append(1))
    measured = log[runner.WARM_UPS * 2 :]
    forwards = ["streaming", "prompt_lookup"]
    assert [name for name, _ in measured] == (forwards + forwards[::-1]) * 3
    assert [prompt for _, prompt in measured[::4]] == ["Text:", "Text: The", "Text: Near the"]
    assert len(done) == bench.runs_of(asked, contenders, 2) == 18
    assert [r.contender.name for r in rows] == ["standard", *forwards]
    assert all(len(a.seconds) == 2 and a.seconds == sorted(a.seconds) for r in rows for a in r.asked)
    assert {p for _, p in log[: runner.WARM_UPS * 2]} == {"Text:", "Text: The", "Text: Near the"}


def test_every_method_writes_the_same_text() -> None:
    loaded = toy.load_toy(pace=0)
    contenders = [bench.Ours(loaded, m) for m in (Standard(), Streaming(), PromptLookup(shortest=1))]
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=60, temperature=temperature)
        rows = bench.bench(loaded, bench.prompts_as_cases(["Text:", "Text: In"]), contenders, sampling)
        out = bench.result_rows(rows, "e2e")
        assert [(r["identical"], r["total"], r["differences"]) for r in out] == [(2, 2, [])] * 3
        assert out[0]["speedup"] == out[0]["ideal_speedup"] == out[0]["step_cost"] == 1
        assert out[0]["waste"] == 0 and out[0]["rows_per_token"] == 1


def test_a_method_is_told_with_its_settings() -> None:
    loaded = toy.load_toy(pace=0)
    shown = [bench.Ours(loaded, m) for m in (Streaming(), Medusa(copies="off"), PromptLookup())]
    assert [(c.label, c.settings.get("copies")) for c in shown] == [
        ("Speculative Streaming", "on"),
        ("Medusa heads, copies off", "off"),
        ("Prompt lookup", None),
    ]


def test_stopped_in_the_middle_the_complete_prompts_are_the_result() -> None:
    loaded, done, seen = toy.load_toy(pace=0), [], []

    def stop() -> bool:
        return len(done) >= 5  # the third prompt has had one run of two

    contenders = [bench.Ours(loaded, Streaming(), stop)]
    asked = bench.prompts_as_cases(["Text:", "Text: The", "Text: In", "Text: Near"])
    rows = bench.bench(
        loaded, asked, contenders, SHORT, 1, lambda: done.append(1), lambda r: seen.append(len(r[1].asked)), stop
    )
    assert seen == [1, 2] and [len(r.asked) for r in rows] == [2, 2] and len(done) == 5
    assert bench.result_rows(rows, "e2e")[1]["total"] == 2
    assert [len(r.asked) for r in bench.bench(loaded, asked, contenders, SHORT, stop=lambda: True)] == [0, 0]


def test_a_method_may_come_twice_with_settings_of_its_own() -> None:
    assert params.parse("streaming") == ("streaming", {})
    name, own = params.parse("streaming: budget=12:streams=deferred:prune=0.05")
    chosen = params.method(name, **own)
    assert chosen == Streaming(budget=12, streams="deferred", prune=0.05)
    assert chosen.described() == "Speculative Streaming, tree budget 12, streams deferred, pruning 0.05"
    with pytest.raises(ValueError, match="is not a setting"):
        params.parse("streaming:budget")
    with pytest.raises(ValueError, match="Tree budget must be a whole number"):
        params.method("streaming", **params.parse("streaming:budget=many")[1])


# ---- the formulas ----------------------------------------------------------------------------------------------------


def row(name: str, times: list[tuple[float, float, int, int]], **more: Any) -> runner.MethodRuns:
    """A row from (prompt pass, steps' seconds, tokens, steps) per prompt."""
    contender = bench.Ours(toy.load_toy(pace=0), Standard() if name == "standard" else Streaming())
    out = runner.MethodRuns(contender)
    for prefill, decode, tokens, steps in times:
        stats = RunStats(tokens=tokens, steps=steps, prefill_seconds=prefill, decode_seconds=decode, **more)
        said = Verdict(Agreement.IDENTICAL, tokens, "")
        out.asked.append(runner.Asked(stats, [stats.seconds], said, "b" if tokens > 15 else "a"))
    return out


def test_formulas_on_known_numbers() -> None:
    standard = row("standard", [(1, 10, 11, 10), (1, 20, 21, 20)])
    streaming = row("streaming", [(1, 4, 11, 4), (1, 20, 21, 10)], drafted=40, accepted=6, rows=50, stream_rows=20)
    plain, ours = bench.result_rows([standard, streaming], "e2e")
    assert ours["speedup"] == pytest.approx(32 / 26)
    assert ours["speedup_geometric"] == pytest.approx((11 / 5 * 1) ** 0.5)
    assert ours["speedup_lowest"] == 1 and ours["slower_prompts"] == 0
    assert ours["tokens_per_step"] == pytest.approx(30 / 14)
    assert ours["decode_speedup"] == pytest.approx((30 / 24) / 1)
    assert ours["step_cost"] == pytest.approx(1.5)  # medians of 1 and 2 seconds, over 1
    assert ours["ideal_speedup"] == pytest.approx(30 / 14 / 1.5)
    assert ours["waste"] == pytest.approx((80 - 12) / 30)
    assert ours["rows_per_token"] == pytest.approx(140 / 30)
    spec_bench = (11 / 5 + 21 / 21) / (11 / 11 + 21 / 21)
    assert ours["speedup_spec_bench"] == pytest.approx(spec_bench)
    assert ours["by_category"]["a"]["speedup"] == pytest.approx(11 / 5) and ours["by_category"]["b"]["speedup"] == 1
    assert plain["speedup"] == 1 and plain["speedup_interval"] == (None, None)
    assert [p["speedup"] for p in ours["per_prompt"]] == pytest.approx([11 / 5, 1])


def test_tables_say_what_the_results_say() -> None:
    standard = row("standard", [(1, 10, 11, 10), (1, 20, 21, 20)])
    streaming = row("streaming", [(1, 4, 11, 4), (1, 20, 21, 10)], drafted=40, accepted=6, rows=50, stream_rows=20)
    streaming.asked[1].verdict = Verdict(Agreement.TIE, 21, "A tie.", 7, 0.0125)
    results_of_both = bench.result_rows([standard, streaming], "e2e")
    heads, _, plain, ours = [[c.strip() for c in line.strip("|").split("|")] for line in bench.table(results_of_both)]
    cells = dict(zip(heads, ours, strict=True))
    assert len(plain) == len(heads) == len(tables.COLUMNS)
    assert cells["method"] == "Speculative Streaming" and cells["identical"] == "1/2"
    assert cells["tokens per step"] == "2.14" and cells["step cost"] == "1.50" and cells["waste"] == "2.27"
    assert cells["prompt passes, s"] == "2.00" and cells["lowest"] == "1.00"
    assert cells["speed-up (95 %)"] == "1.23"  # two prompts are too few for an interval
    head, _, by_category = bench.categories(results_of_both)
    assert head.endswith("| a | b |") and by_category == "| Speculative Streaming | 2.20 | 1.00 |"
    (told,) = bench.differences(results_of_both)
    assert told.startswith("Speculative Streaming, prompt 2: first difference at token 8, where the two best scores")
    assert "0.013 apart" in told or "0.012 apart" in told


def test_interval_covers_the_suite_ratio_and_needs_five_prompts() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    low, high = bootstrap(lambda picked: sum(values[i] for i in picked) / len(picked), 5)
    assert 1.5 < low < 3 < high < 4.5
    for few in range(5):
        assert bootstrap(lambda picked: 1.0, few) == (None, None)


def test_peak_memory_sees_a_large_tensor() -> None:
    """In a separate process: the memory of one that has run a thousand tests may shrink at any moment."""
    code = """
from specstream.bench.provenance import PeakMemory
memory = PeakMemory("cpu")
memory.start()
before = memory.read()
big = bytearray(300_000_000)
big[::4096] = b"x" * len(big[::4096])
print(memory.read() - before)
"""
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 200_000_000


# ---- Spec-Bench's questions ------------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    lines = [
        {"question_id": 81, "category": "writing", "turns": ["Text: The", "Text: Near"]},
        {"question_id": 82, "category": "writing", "turns": ["Text: In", "Text: The"]},
        {"question_id": 400, "category": "qa", "turns": ["Text:"], "reference": ["x"]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def test_second_turns_follow_the_first_answer(questions: Path) -> None:
    loaded = toy.load_toy(pace=0)
    asked = bench.spec_bench(questions, limit=1)
    assert [(c.category, len(c.turns)) for c in asked] == [("writing", 2), ("qa", 1)]
    rows = bench.bench(loaded, asked, [bench.Ours(loaded, Streaming())], SHORT)
    assert [a.category for a in rows[1].asked] == ["writing", "writing", "qa"]
    first = runner.text_of(list(loaded.generate(asked[0].prompt(loaded, []), Standard(), SHORT)))
    assert asked[0].prompt(loaded, [first]) == f"user: Text: The\nassistant: {first}\nuser: Text: Near\nText:"
    lengths = [a.stats.prompt_tokens for a in rows[0].asked]
    assert lengths[1] == len(asked[0].prompt(loaded, [first]).encode())


class Chatty:
    """A tokenizer with a chat template that shows the messages."""

    chat_template = "yes"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt) -> str:
        return "|".join(f"{m['role']}:{m['content']}" for m in messages) + "|"


def test_turns_go_through_the_chat_template() -> None:
    class Loaded:
        tokenizer = Chatty()

    case = prompts.Case(("a", "b"), ready=False)
    assert case.prompt(Loaded(), []) == "user:a|"
    assert case.prompt(Loaded(), ["x"]) == "user:a|assistant:x|user:b|"


def test_a_chat_template_that_refuses_is_told_in_one_sentence() -> None:
    def refuse(messages, **_) -> str:
        raise RuntimeError("A system message is needed")

    loaded = SimpleNamespace(tokenizer=SimpleNamespace(chat_template="x", apply_chat_template=refuse))
    with pytest.raises(ValueError, match=r"refuses this conversation \(A system message is needed\): choose another"):
        prompts.Case(("a", "b"), ready=False).prompt(loaded, [])


def test_a_file_of_questions_is_known_by_its_turns(questions: Path, tmp_path: Path) -> None:
    loaded = toy.load_toy(pace=0)
    assert (asked := bench.read_cases(loaded, questions, "e2e", 1)) == bench.spec_bench(questions, 1)
    assert bench.task_of(asked, "e2e") == "spec-bench" and bench.task_of(bench.prompts_as_cases(["a"]), "e2e") == "e2e"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"meaning_representation": "name[A]"}\n{"meaning_representation": "name[B]"}\n')
    assert bench.read_cases(loaded, rows, "e2e", 1) == [prompts.Case(("Facts: name[A]\nText:",))]
    with pytest.raises(ValueError, match="line 1: the column 'context'"):
        bench.read_cases(loaded, rows, "sql")
    (tmp_path / "bad.jsonl").write_text("no JSON")
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1"):
        bench.read_cases(loaded, tmp_path / "bad.jsonl", "e2e")


@pytest.mark.parametrize(
    ("line", "words"), [("{", "line 1: not valid JSON"), ('{"turns": []}', "list of texts"), ("", "holds no questions")]
)
def test_bad_question_files(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(line)
    with pytest.raises(DataError, match=words):
        bench.spec_bench(file)
    with pytest.raises(DataError, match="can't be read"):
        bench.spec_bench(tmp_path / "none.jsonl")


# ---- outside references ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    tiny.save(tiny.tiny("llama"), path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[engine.Engine]:
    yield engine.load(str(folder), "none", "cpu", "float32")


PROMPT = "5 7 3 6 5 7 3 6 5 7"


@pytest.mark.parametrize("temperature", (0.0, 0.9))
def test_references_write_what_standard_decoding_writes(
    loaded: engine.Engine, folder: Path, temperature: float
) -> None:
    contenders = baselines.references(["hf", "hf-prompt-lookup", "hf-assistant"], loaded, "none", str(folder))
    sampling = Sampling(max_new_tokens=16, temperature=temperature, seed=3)
    rows = bench.bench(loaded, bench.prompts_as_cases([PROMPT]), contenders, sampling)
    out = bench.result_rows(rows, "chat")
    assert [r["method"] for r in out] == ["standard", "hf", "hf-prompt-lookup", "hf-assistant"]
    assert [r["identical"] for r in out] == [1, 1, 1, 1], [r["differences"] for r in out]
    assert [r["tokens"] for r in out] == [out[0]["tokens"]] * 4
    assert out[1]["tokens_per_step"] == 1 and out[1]["steps"] == out[0]["steps"]
    assert out[3]["tokens_per_step"] > 1.5 and out[3]["extra_parameters"] > 1000  # the assistant is the model itself
    assert out[1]["outside_share"] is out[1]["waste"] is None


def test_references_end_where_our_runs_end(loaded: engine.Engine, folder: Path) -> None:
    free = token_ids(list(loaded.generate(PROMPT, Standard(), Sampling(max_new_tokens=24))))
    names = ["hf", "hf-prompt-lookup", "hf-assistant"]
    for reference in baselines.references(names, loaded, "none", str(folder)):
        stop = f"{free[5]} {free[6]}"
        events = reference.run(PROMPT, Sampling(max_new_tokens=24, stop=(stop,)))
        ours = list(loaded.generate(PROMPT, Standard(), Sampling(max_new_tokens=24, stop=(stop,))))
        assert token_ids(events) == token_ids(ours) and events[-1].reason is ours[-1].reason is Reason.STOP_STRING
        loaded.eos = {free[9]}
        events = reference.run(PROMPT, Sampling(max_new_tokens=24))
        assert token_ids(events) == free[: free.index(free[9]) + 1] and events[-1].reason is Reason.EOS
        events = reference.run(PROMPT, Sampling(max_new_tokens=24, ignore_eos=True))
        assert token_ids(events) == free and events[-1].reason is Reason.LENGTH
        loaded.eos = set()


def test_what_references_need(loaded: engine.Engine) -> None:
    with pytest.raises(baselines.ReferenceUnavailable, match="--assistant"):
        baselines.references(["hf-assistant"], loaded, "none", None)
    with pytest.raises(baselines.ReferenceUnavailable, match="toy"):
        baselines.references(["hf"], toy.load_toy(pace=0), "none", None)
    assert baselines.references([], loaded, "none", None) == []


# ---- the log ---------------------------------------------------------------------------------------------------------


def test_results_are_kept_in_the_log(tmp_path: Path) -> None:
    toyed = toy.load_toy(pace=0)
    rows = bench.bench(toyed, bench.prompts_as_cases(["Text:"]), [bench.Ours(toyed, Streaming())], SHORT)
    report = bench.described(toyed) | {"repeats": 1, "rows": bench.result_rows(rows, "e2e")}
    log = RunLog(tmp_path / "runs.db", enabled=True)
    key = log.add_benchmark(report, "one")
    (listed,) = log.benchmarks()
    assert listed["id"] == key and listed["task"] == "e2e" and listed["prompts"] == 1
    assert log.benchmark(key) == json.loads(json.dumps(report))
    with log.file.connect() as db:
        methods = [(r["method"], r["identical"]) for r in db.query("select * from benchmark_rows order by idx")]
    assert methods == [("standard", 1), ("streaming", 1)]
    assert RunLog(tmp_path / "runs.db", enabled=False).add_benchmark(report) == ""
    curve_only = bench.described(toyed) | {"task": "sql", "cost": {"plain": []}}
    other = log.add_benchmark(curve_only, "another")
    assert [(b["id"], b["task"], b["prompts"]) for b in log.benchmarks()] == [(other, "sql", None), (key, "e2e", 1)]
    assert [b["id"] for b in log.benchmarks(visitor="one")] == [key] and log.benchmarks(limit=1)[0]["id"] == other
    with pytest.raises(RunLogError, match="no benchmark"):
        log.benchmark(key, "another")


# ---- tuning ----------------------------------------------------------------------------------------------------------


def test_tuning_tries_its_choice_on_other_prompts() -> None:
    toyed = toy.load_toy(pace=0.001)
    asked = bench.prompts_as_cases(["Text:", "Text: Near", "Text: In", "Text: The Brass"])
    costs = step_cost.measure(toyed, ["Text:"], seconds=0, sizes=(0, 1, 4, 16))
    out = tune.tried(toyed, costs, asked, Streaming(budget=48), Sampling(max_new_tokens=40), 1)
    chosen, given = out["trials"]
    assert given["settings"]["budget"] == 48 and chosen["settings"] == out["settings"]
    assert chosen["identical"] == chosen["total"] == 2
    assert all(t["measured"] > 0 and t["predicted"] > 0 and t["explained"] > 0 for t in out["trials"])
    assert [line.split(":")[0] for line in tables.tuning_table(out)][2:] == ["| chosen", "| given"]
    with pytest.raises(step_cost.Cancelled):
        tune.tried(toyed, costs, asked, Streaming(), SHORT, 1, lambda: True)
    with pytest.raises(ValueError, match="two prompts"):
        tune.tried(toyed, costs, asked[:1], Streaming(), SHORT, 1)
