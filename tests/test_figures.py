"""Figures are drawn from what the commands write, and show its numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import benchmarks
from specstream import bench
from specstream.bench import step_cost, tune
from specstream.params import PromptLookup, Sampling, Streaming
from specstream.testing import toy
from ui.charts import benchmarks as figures

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def report() -> dict:
    engine, sampling = toy.load_toy(pace=0.001), Sampling(max_new_tokens=24)
    cases = bench.prompts_as_cases(["Text:", "Text: Near the"])
    contenders = [bench.Ours(engine, m) for m in (Streaming(), PromptLookup(shortest=1))]
    rows = bench.result_rows(bench.bench(engine, cases, contenders, sampling), "e2e")
    cost = step_cost.measure(engine, ["Text:"], seconds=0, sizes=(0, 2, 8))
    tuned = tune.tried(engine, cost, cases, Streaming(), sampling, 1)
    return json.loads(json.dumps({"rows": rows, "cost": step_cost.report(engine, cost), "tuned": tuned}))


def test_figures_show_the_numbers_of_the_result(report) -> None:
    made = figures.figures([report])
    assert set(made) == {"speedup", "calls", "acceptance", "cost", "prediction"}
    _, streaming, lookup = report["rows"]
    bars = [trace for trace in made["speedup"].data if trace.type == "bar"]  # beside the values above them
    assert [bar.name for bar in bars] == ["Speculative Streaming", "Prompt lookup"]
    assert [bar.y[0] for bar in bars] == [streaming["speedup"], lookup["speedup"]]
    assert made["calls"].data[0].x[0] == streaming["tokens_per_step"]
    assert list(made["acceptance"].data[0].y) == streaming["acceptance_by_depth"]
    plain, streams, deferred = made["cost"].data
    assert list(plain.x) == [p["nodes"] for p in report["cost"]["plain"]]
    assert streams.y[0] == pytest.approx(1000 * report["cost"]["streaming"][0]["seconds"])
    assert deferred.y[0] == pytest.approx(1000 * report["cost"]["deferred"][0]["seconds"])
    assert list(made["prediction"].data[0].y) == [t["measured"] for t in report["tuned"]["trials"]]


def test_only_what_was_measured_is_drawn(report) -> None:
    assert set(figures.figures([{"cost": report["cost"]}])) == {"cost"}
    assert set(figures.figures([{"rows": report["rows"]}, {"rows": report["rows"]}])) == {
        "speedup",
        "calls",
        "acceptance",
    }


def test_pruning_is_drawn_over_the_width_where_both_were_tried() -> None:
    engine, sampling = toy.load_toy(pace=0), Sampling(max_new_tokens=24)
    methods = [Streaming(width=k, prune=p, tree="full", depth=2) for p in (0, 0.05) for k in (3, 1)]
    measured = bench.bench(
        engine, bench.prompts_as_cases(["Text:"]), [bench.Ours(engine, m) for m in methods], sampling
    )
    rows = bench.result_rows(measured, "e2e")
    whole, whole_tokens, pruned, pruned_tokens = figures.figures([{"rows": rows}])["pruning"].data
    assert list(whole.x) == list(pruned.x) == [1, 3]
    assert list(whole.y) == [rows[2]["decode_speedup"], rows[1]["decode_speedup"]]
    assert list(pruned_tokens.y) == [rows[4]["tokens_per_step"], rows[3]["tokens_per_step"]]
    assert whole.name == "not pruned" and pruned.name == "pruned below 0.05" and whole_tokens.yaxis == "y2"
    assert "pruning" not in figures.figures([{"rows": rows[:3]}])


def test_script_writes_pages_that_need_no_network(report, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(json.dumps(report))
    command = [sys.executable, "-m", "scripts.figures", str(result), "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    pages = sorted(f.name for f in (tmp_path / "out").iterdir())
    assert pages == ["acceptance.html", "calls.html", "cost.html", "plotly.min.js", "prediction.html", "speedup.html"]
    assert 'src="plotly.min.js"' in (tmp_path / "out" / "cost.html").read_text()


def test_the_ways_to_stream_are_told_apart() -> None:
    def row(label: str, copies: str, pairs: str = "on") -> dict[str, object]:
        return {"method": "streaming", "label": label, "settings": {"copies": copies, "pairs": pairs}}

    found = benchmarks.named([row("a", "on"), row("b", "off"), row("c", "on", "off")])
    names = {n: found[n]["label"] for n in (benchmarks.OURS, benchmarks.ALONE, benchmarks.UNPAIRED)}
    assert list(names.values()) == ["a", "b", "c"]


def test_page_of_benchmarks_is_written_from_results(report, tmp_path: Path) -> None:
    head = bench.described(toy.load_toy(pace=0)) | {"repeats": 1, "sampling": {"max_new_tokens": 24}}
    for name in ("e2e", "e2e-cost", "pruning"):
        (tmp_path / f"{name}.json").write_text(json.dumps(report | head | {"task": "e2e"}))
    rates = {benchmarks.LLAMA: [70, 76, 90], "Standard decoding": [35, 38, 45], "Standard decoding, int8": [70, 76, 90]}
    prompts = {name: [0.2, 0.1, 0.3] for name in rates}
    beside = {"task": "e2e", "tokens": 24, "rates": rates, "prompts": prompts}
    beside |= {"words": {"int8": "2 of 2 texts are the same."}}
    (tmp_path / "e2e-llama.json").write_text(json.dumps(head | beside))
    page = tmp_path / "page.md"
    readme = tmp_path / "readme.md"
    readme.write_text(f"Before.\n{benchmarks.BEGIN}| old |\n{benchmarks.END}\nAfter.\n")
    files = ["--page", str(page), "--readme", str(readme)]
    words = ["--data", str(tmp_path), "--out", str(tmp_path), "--tasks", "e2e", "--cost-tasks", "e2e", *files]
    command = [sys.executable, "-m", "scripts.benchmarks", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = page.read_text()
    shown = readme.read_text()
    assert shown.startswith("Before.") and shown.endswith("After.\n") and "old" not in shown
    streaming = report["rows"][1]
    row = f"| **{streaming['tokens_per_second']:.0f}** | 76 | - | {report['rows'][0]['tokens_per_second']:.0f} |"
    assert row in shown and row in text and "Restaurant descriptions" in shown
    assert f"| streaming over standard decoding | {streaming['speedup']:.2f} |" in text
    assert f"decoding, slowest prompt | {streaming['speedup_lowest']:.2f} |" in text
    assert "Medusa heads" not in text
    assert "## e2e" in text and "## Cost of a step" in text and "| chosen:" in text
    assert (
        "## Against llama.cpp: e2e" in text and "| Standard decoding, int8 | 77.8 | 1.00 | 1.00 | 2.00 | 200 |" in text
    )
    assert "int8: 2 of 2 texts are the same." in text
    assert "## Tuned for this machine: e2e" in text and "## Pruning on and off over the width: e2e" in text
    assert (tmp_path / "figures" / "speedup.html").exists() and (tmp_path / "figures" / "prediction.html").exists()
    assert f"{report['rows'][1]['tokens_per_second']:.1f}" in text and "2/2" in text
