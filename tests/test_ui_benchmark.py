"""The Benchmark tab without a browser: its jobs, and the display of their results."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specstream.params import METHODS, PromptLookup, Sampling, Standard, Streaming
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from tests.test_figures import report as report  # a result of every kind, as the command line writes it
from ui.access_rules import DEMO, OPEN
from ui.charts import benchmarks
from ui.components import controls
from ui.html import results
from ui.jobs.engine_host import Engines
from ui.jobs.measurements import Benchmark, Lap, Measurement, MeasurementRequest, Result, Tuning
from ui.state.messages import Notice
from ui.tabs import benchmark

TRYING = Lap("Trying", 1, 2, None)
HEAD = {
    "model": "toy", "adapter": "toy", "dtype": "float32", "device": "cpu", "commit": "abc", "task": "e2e",
    "machine": {"processor": "a processor", "torch": "2"}, "time_utc": "2026-11-24T22:10:33+00:00", "repeats": 1,
    "sampling": {"max_new_tokens": 24},
}  # fmt: skip


def loaded(pace: float = 0) -> Engines:
    choice = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
    engines = Engines(choice, lambda progress, **chosen: load_toy(pace=pace))
    engines.load()
    while engines.state.loading:
        time.sleep(0.01)
    return engines


def order(*prompts: str, **values: Any) -> MeasurementRequest:
    methods = values.pop("methods", (Streaming(), PromptLookup()))
    return MeasurementRequest("e2e", prompts or ("name[A]", "name[B]"), methods, Sampling(max_new_tokens=16), **values)


def items(job: Measurement) -> list[Any]:
    return [item for batch in job.batches() for item in batch]


# ---- jobs ------------------------------------------------------------------------------------------------------------


def test_a_benchmark_counts_its_runs_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.jobs.measurements.OFTEN", 0.0)
    log = RunLog(tmp_path / "runs.db", enabled=True)
    found = items(Benchmark(loaded(), log, order(repeats=2), "one"))
    laps = [item for item in found if isinstance(item, Lap)]
    ran = [lap for lap in laps if not lap.words.startswith("Warming up")]
    assert [lap.done for lap in ran] == list(range(1, 13)) and {lap.total for lap in laps} == {12}
    assert ran[-1].left == 0 and all(lap.left > 0 for lap in ran[:-1])
    early, last = (item for item in found if isinstance(item, Result))
    assert (early.final, last.final) == (False, True)
    assert [r.report["rows"][0]["prompts"] for r in (early, last)] == [1, 2]
    assert [row["method"] for row in last.report["rows"]] == ["standard", "streaming", "prompt_lookup"]
    assert all(row["identical"] == 2 for row in last.report["rows"])
    (kept,) = log.benchmarks(visitor="one")
    assert log.benchmark(kept["id"])["rows"] == json.loads(json.dumps(last.report["rows"]))


def test_a_cancelled_benchmark_keeps_its_complete_prompts(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.db", enabled=True)
    job = Benchmark(loaded(pace=0.001), log, order(*(f"name[{i}]" for i in range(50))))
    job.put = lambda item, put=job.put: (put(item), job.stop.set() if getattr(item, "done", 0) >= 7 else None)  # type: ignore[method-assign]
    last = items(job)[-1]
    assert isinstance(last, Result) and last.final and last.report["rows"][0]["prompts"] == 2
    assert log.benchmarks()[0]["prompts"] == 2


def test_a_cancelled_benchmark_keeps_a_prompt_that_every_method_answered() -> None:
    job = Benchmark(loaded(pace=0.001), None, order("name[A]", repeats=9))
    job.put = lambda item, put=job.put: (put(item), job.stop.set() if getattr(item, "done", 0) >= 4 else None)  # type: ignore[method-assign]
    last = items(job)[-1]
    assert isinstance(last, Result) and last.final
    assert [row["per_prompt"][0]["repeats"] for row in last.report["rows"]] == [1, 1, 2]


def test_the_warm_up_says_how_long_it_all_takes() -> None:
    laps = [item for item in items(Benchmark(loaded(pace=0.001), None, order())) if isinstance(item, Lap)]
    warming = [lap for lap in laps if lap.words.startswith("Warming up, run")]
    assert len(warming) == 9 and all(lap.left and lap.left > 0 for lap in warming)


def test_what_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"meaning_representation": "name[A]"}\n{"name": 3}\n')

    def told(wish: MeasurementRequest, kind: type[Measurement] = Benchmark) -> Notice:
        last = items(kind(loaded(), None, wish))[-1]
        assert isinstance(last, Notice) and last.failed and "Traceback" not in last.text
        return last

    assert "line 2: the column 'meaning_representation'" in told(order(file=file)).text
    assert "toy" in told(order(references=("hf",))).text
    assert "can't be tuned" in told(order(methods=(Standard(),)), Tuning).text
    engines = loaded()
    engines._engine.info.unavailable["streaming"] = "No streams here."
    for kind in (Benchmark, Tuning):
        assert items(kind(engines, None, order()))[-1].text == "No streams here."
        engines.rules = DEMO
        assert items(kind(engines, None, order()))[-1].text.startswith("This model has no trained streams: this demo")
        engines.rules = OPEN


def test_a_file_of_rows_is_read_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"meaning_representation": "name[A]"}\n' * 5)
    last = items(Benchmark(loaded(), None, order(file=file, limit=3)))[-1]
    assert last.report["rows"][0]["prompts"] == 3 and last.report["task"] == "e2e"
    file.write_text('{"category": "qa", "turns": ["Text: The", "Text: In"]}\n')
    last = items(Benchmark(loaded(), None, order(file=file, methods=(Streaming(),))))[-1]
    assert last.report["task"] == last.report["rows"][1]["task"] == "spec-bench"
    assert last.report["rows"][1]["prompts"] == 2 and results.measured_what(last.report).startswith(
        "Spec-Bench, 2 prompts"
    )


def test_tuning_shows_the_curve_before_the_choice_and_tries_it(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.db", enabled=True)
    found = items(Tuning(loaded(), log, order("name[A]", "name[B]", methods=(Streaming(),), seconds=0.1)))
    first, last = (item for item in found if isinstance(item, Result))
    assert "tuned" not in first.report and set(first.report["cost"]) >= {"plain", "streaming", "deferred"}
    assert last.report["tuned"]["method"] == "streaming" and last.report["tuned"]["trials"][0]["total"] == 1
    assert [i.done for i in found if isinstance(i, Lap) and i.words.startswith("Trying")][-1] in (2, 3)
    assert log.benchmarks()[0]["prompts"] is None
    alone = items(Tuning(loaded(), None, order("name[A]", methods=(PromptLookup(),), seconds=0.1)))[-1]
    assert alone.report["tuned"]["trials"] == [] and alone.report["tuned"]["settings"]["budget"] > 0


def test_a_tuning_that_is_cancelled_keeps_the_curve(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.db", enabled=True)
    job = Tuning(loaded(), log, order(methods=(Streaming(),), seconds=0.1))
    job.put = lambda item, put=job.put: (put(item), job.stop.set() if isinstance(item, Result) else None)  # type: ignore[method-assign]
    found = items(job)
    assert found[-1].final and "tuned" not in found[-1].report and log.benchmarks()
    assert any(isinstance(i, Notice) and "The cost of a step is kept" in i.text for i in found)
    early = Tuning(loaded(), log, order(methods=(Streaming(),), seconds=60))
    early.put = lambda item, put=early.put: (put(item), early.stop.set())  # type: ignore[method-assign]
    assert items(early)[-1].text.startswith("Stopped before the cost") and len(log.benchmarks()) == 1


def test_a_tuning_that_is_cancelled_on_the_way_keeps_what_was_measured() -> None:
    def cancelled(when: Callable[[Any, int], bool]) -> Result:
        job = Tuning(loaded(), None, order(methods=(Streaming(),), seconds=0.1 if when(TRYING, 0) else 60))
        job.put = lambda item, put=job.put: (put(item), job.stop.set() if when(item, len(job.items)) else None)  # type: ignore[method-assign]
        (*_, last) = (item for item in items(job) if isinstance(item, Result))
        return last

    on_the_way = cancelled(lambda item, count: count > 8)  # every kind of step was measured twice
    assert on_the_way.final and on_the_way.report["cost"]["plain"] and "tuned" not in on_the_way.report
    untried = cancelled(lambda item, count: isinstance(item, Lap) and item.words.startswith("Trying"))
    assert untried.report["tuned"]["settings"] and untried.report["tuned"]["trials"] == []


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_progress_tells_what_came_of_it() -> None:
    progress = benchmark.MeasurementProgress()
    progress.add(Lap("Run 3 of 12", 3, 12, 125.0))
    assert 'aria-valuenow="25"' in progress.bar and "Run 3 of 12, about 2 min left" in progress.bar
    progress.add(Result({"rows": []}, final=True))
    progress.add(Notice("Not logged: full.", lasting=True))
    progress.close(stopped=False)
    assert (progress.tone, progress.words) == ("good", "Done. Not logged: full.")
    nothing = benchmark.MeasurementProgress()
    nothing.close(stopped=True)
    assert nothing.words == "Stopped by you. Nothing was complete."
    failed = benchmark.MeasurementProgress()
    failed.add(Notice("No model.", failed=True))
    failed.close(stopped=False)
    assert (failed.tone, failed.words) == ("bad", "No model.")


def test_results_are_tabled_and_escaped(report) -> None:
    full = report | HEAD
    html = results.tables([full])
    assert html.count("<tr>") == 1 + len(report["rows"]) and "Restaurant descriptions (E2E NLG), 2 prompts" in html
    assert f"<td>{report['rows'][1]['tokens_per_second']:.1f}</td>" in html and "once each" in html
    evil = json.loads(json.dumps(full).replace("Speculative Streaming", "<img src=x>"))
    evil["rows"][1]["differences"] = [{"prompt": 0, "position": 4, "margin": 0.5, "message": "<b>the</b>"}]
    html = results.tables([evil])
    assert "<img" not in html and "&lt;img" in html and "first difference at token 5" in html and "<b>" not in html
    assert results.tables([HEAD | {"cost": report["cost"]}]) == ""
    evil["rows"][1]["by_category"] = {"<i>": {"speedup": 1.5}, "qa": {"speedup": None}}
    assert "speed-up by category: &lt;i&gt; 1.50, qa -." in results.tables([evil])


E2E = "Restaurant descriptions (E2E NLG)"


def faster(tuned: dict[str, Any], chosen: float, given: float) -> dict[str, Any]:
    """The same tuning with these trial results."""
    trial, mine = tuned["trials"][0], {"budget": 63}
    return tuned | {"trials": [trial | {"measured": chosen}, trial | {"measured": given, "settings": mine}]}


@pytest.mark.parametrize(
    "chosen, given, heading, offered",
    [
        (1.5, 1.2, "Recommended on this machine", True),
        (1.1, 1.3, "Keep your settings", False),
        (1.50, 1.52, "Recommended on this machine", True),  # as fast, but for noise
        (0.88, 0.8, "Standard decoding is faster on this machine", False),
    ],
)
def test_what_was_measured_to_be_slower_is_not_recommended(
    chosen: float, given: float, heading: str, offered: bool, report
) -> None:
    tuned = faster(report["tuned"], chosen, given)
    assert heading in results.recommendation(tuned)
    assert (benchmark.usable(tuned) is not None) is offered


def test_the_recommendation_says_what_to_set_and_what_it_brought(report) -> None:
    tuned = faster(report["tuned"], 1.5, 1.2)
    words = results.recommendation(tuned)
    assert f"tree budget {tuned['settings']['budget']}" in words
    assert f": {tuned['predicted']['speedup']:.1f} times" in words
    assert f"Tried on other prompts: {tuned['trials'][0]['measured']:.1f} times" in words
    assert results.recommendation(None) == ""
    assert "Tried" not in results.recommendation(tuned | {"trials": []})


def test_results_of_the_same_task_stand_side_by_side(report) -> None:
    now, then = {"rows": report["rows"]}, {"rows": report["rows"], "name": "yesterday"}
    assert list(benchmarks.speedup([now, then]).data[0].x) == [E2E, f"{E2E}, yesterday"]
    assert list(benchmarks.speedup([now]).data[0].x) == [E2E]
    assert [d.name for d in benchmarks.acceptance([now]).data] == ["Speculative Streaming", "Prompt lookup"]
    assert benchmarks.acceptance([now, then]).data[0].name == f"Speculative Streaming, {E2E}"
    shown = benchmarks.on_page(benchmarks.speedup([now]))
    assert shown.layout.title.text is None and shown.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_a_new_result_replaces_the_one_of_its_kind() -> None:
    bench, cost = {"rows": [1]}, {"cost": {}}
    named = {"rows": [2], "name": "earlier"}
    assert benchmark.beside(bench, [{"rows": [0]}, cost, named]) == [bench, cost, named]
    assert benchmark.beside(cost, [bench, {"cost": {1: 2}}]) == [cost, bench]
    assert benchmark.beside(None, [bench]) == [bench]


def test_files_of_the_command_line_are_read_and_others_refused(report, tmp_path: Path) -> None:
    good = tmp_path / "monday.json"
    good.write_text(json.dumps(report | HEAD))
    assert benchmark.read(good)["name"] == "monday"
    assert benchmark.read(benchmark.written(report | HEAD, tmp_path))["rows"] == report["rows"]
    for text in ("[1]", "{}", '{"rows": [{"task": "e2e"}]}', '{"cost": 3}', "no JSON", '{"rows": 4}', '"rows"'):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        with pytest.raises(ValueError, match=re.escape("bad.json is no result of bench --json")):
            benchmark.read(bad)


@pytest.mark.parametrize(
    ("value", "given"), [(0, "0"), (1001, "1,001"), (2.5, "2.5"), (None, "empty"), ("x", "'x'"), (math.nan, "nan")]
)
def test_counts_have_limits(value: Any, given: str) -> None:
    with pytest.raises(ValueError, match=f"^Prompts must be a whole number from 1 to 1,000, not {given}\\.$"):
        controls.whole(value, "Prompts", 1000)
    assert controls.whole(4.0, "Prompts", 1000) == 4


def test_every_method_can_be_chosen_and_an_order_has_its_settings() -> None:
    import gradio as gr

    with gr.Blocks():
        tab = benchmark.layout(loaded())
    form = tab.form
    assert set(form.methods) == set(METHODS) - {"standard"}
    values = {part: getattr(part, "value", None) for part in form.inputs}
    values[form.settings.parts["streaming", "budget"]] = 12
    made = form.order(values)
    assert [m.name for m in made.methods] == list(form.methods) and len(made.prompts) == 6
    assert made.methods[0] == Streaming(budget=12) and made.sampling.max_new_tokens == 64
    assert form.tuning(values).methods == (Streaming(budget=12),)
    with pytest.raises(ValueError, match="no tree to tune"):
        form.tuning(values | {form.tuned: None})
    with pytest.raises(ValueError, match="No method is chosen"):
        form.order(values | dict.fromkeys(form.methods.values(), False))
    with pytest.raises(ValueError, match="no example prompts"):
        form.order(values | {form.task: "nothing"})


def test_the_table_says_what_its_numbers_are_too_few_or_too_noisy_for(report: dict[str, Any]) -> None:
    def told(**values: Any) -> str:
        standard, *others = report["rows"]
        rows = [standard | {"prompts": values.pop("prompts", 8)}, *(row | values for row in others)]
        return results.tables([HEAD | {"rows": rows}])

    sound = {"speedup_interval": (1.5, 1.9), "step_cost": 1.2, "tokens_per_step": 3.0, "ideal_speedup": 2.5}
    assert "too few" not in told(**sound) and "busy" not in told(**sound) and "<td>2.50</td>" in told(**sound)
    few = told(**sound | {"prompts": 2, "speedup_interval": (None, None)})
    assert "2 prompts are too few for a 95 % interval" in few
    noisy = told(**sound | {"step_cost": 0.59, "tokens_per_step": 4.57, "ideal_speedup": 7.7})
    assert "This machine is busy" in noisy and "7.70" not in noisy and noisy.count("<td>4.57</td>") >= 2
