"""Measure every task with every method, and write docs/benchmarks.md and the figures from the stored results.

python -m scripts.benchmarks --data FOLDER --out RESULTS [--methods standard,streaming,hf] [-- --limit 30]
FOLDER holds TASK/dev.jsonl. Results that are already in RESULTS are not measured again: TASK.json (the methods),
TASK-cost.json (cost of a step and tuned tree, for --cost-tasks) and pruning.json (pruning on and off by width k, on
--pruning-task, whose adapter needs an early exit). scripts/llama_cpp.py --json writes RESULTS/TASK-llama.json.
Every figure becomes a page in RESULTS/figures. The first table is also written to README.md.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.figures import write
from scripts.llama_cpp import LLAMA
from scripts.llama_cpp import table as rates_table
from specstream.bench.baselines import REFERENCES
from specstream.bench.results import suite
from specstream.bench.tables import cost_table, differences, table, tuning_table
from specstream.data.tasks import task as task_named
from specstream.params import MOST_NODES, Medusa, Standard, Streaming
from specstream.stats import counted

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
README = PAGE.parent.parent / "README.md"
BEGIN, END = "<!-- scripts/benchmarks.py writes this table -->\n", "<!-- end of the table -->\n"
SHORT = (
    "streaming, tokens/s",
    "llama.cpp, 4 bits",
    "transformers",
    "standard decoding",
    "tokens per step",
    "same text",
)
WIDTHS, THRESHOLDS = range(1, 7), (0, 0.02)  # the paper's k; it does not give its threshold, this one was best here
SWEEP = ",".join(f"streaming:tree=full:depth=2:width={k}:prune={p}" for p in THRESHOLDS for k in WIDTHS)

OURS, PLAIN, ALONE = "default settings", Standard.label, "streams alone"
UNPAIRED = "no pair map"
# The comparisons of "In short", as (words, the faster, the slower).
PAIRS = (
    ("streaming over standard decoding", OURS, PLAIN),
    ("streaming without copies, over standard decoding", ALONE, PLAIN),
    ("streaming without the pair map, over standard decoding", UNPAIRED, PLAIN),
    ("standard decoding over transformers' generate", PLAIN, REFERENCES["hf"]),
    ("streaming over transformers with prompt lookup", OURS, REFERENCES["hf-prompt-lookup"]),
    ("streaming over Medusa heads", OURS, Medusa.label),
)

Report = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default="sql,e2e,dialogsum,chat")
    parser.add_argument("--methods", default="all", help="all: also streaming without copies, and without the pair map")
    parser.add_argument("--cost-tasks", default="", help="tasks whose step cost is measured and whose tree is tuned")
    parser.add_argument("--pruning-task", default="sql", help="empty: none")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("more", nargs="*", help="options for bench and cost, after --")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results, costs = [], []
    for task in options.tasks.split(","):
        methods = options.methods + (",streaming:copies=off,streaming:pairs=off" if options.methods == "all" else "")
        results.append(measure(options, task, "bench", task, "--methods", methods))
        if task not in options.cost_tasks.split(","):
            continue
        tuned = "streaming" if any(row["method"] == "streaming" for row in results[-1]["rows"]) else "prompt_lookup"
        costs.append(measure(options, f"{task}-cost", "cost", task, "--tune", "--method", tuned))
    sweep = options.pruning_task and measure(options, "pruning", "bench", options.pruning_task, "--methods", SWEEP)
    short = list(short_table(results, options.out))
    llama_cpp = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(options.out.glob("*-llama.json"))]
    lines = [*page(results, costs, sweep, short, llama_cpp), "", "## Commands", "", *commands(options, llama_cpp)]
    options.page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = options.readme.read_text(encoding="utf-8")
    options.readme.write_text(with_table(text, short), encoding="utf-8")
    for file in write([*results, *costs], options.out / "figures"):
        print(file)
    if sweep:
        print(*write([sweep], options.out / "figures", ("pruning",)))


def measure(options: argparse.Namespace, name: str, command: str, task: str, *words: str) -> Report:
    """The result with this name, measured now if it is not stored."""
    file = options.out / f"{name}.json"
    if not file.exists() or not file.stat().st_size:  # an interrupted run leaves an empty one
        data = ["--task", task, "--data", str(options.data / task / "dev.jsonl"), "--json", str(file)]
        subprocess.run([sys.executable, "-m", "specstream", command, *data, *words, *options.more], check=True)
    return json.loads(file.read_text(encoding="utf-8"))


def page(
    results: list[Report], costs: list[Report], sweep: Report | None, short: list[str], llama_cpp: list[Report]
) -> Iterator[str]:
    """The lines of the page: a table for each task, the cost of a step, the tuned trees, pruning by width."""
    first = results[0]
    yield "# Benchmarks\n\nWritten by `scripts/benchmarks.py`; [metrics](metrics.md) defines the columns.\n"
    where = ", ".join(f"{k} {v}" for k, v in first["machine"].items())
    yield f"{first['model']} from {first['source']}, {first['dtype']}, {first['device']}: {where}."
    yield "\n## In short\n\nTokens per second after the first token, without the prompt pass.\n"
    yield from short
    yield "\nSpeed-up: ratio of the times per token, prompt pass included, over all prompts together (95 %).\n"
    yield from ratios(results)
    for result in results:
        yield from chapter(result, result["rows"][0]["task"])
        yield f"\nSlower than standard decoding: {slower(result['rows'])}."
    for report in llama_cpp:
        yield from beside_llama_cpp(report)
    if costs:
        yield f"\n## Cost of a step\n\nWith the adapter {costs[0]['adapter']}.\n"
        yield from cost_table(costs[0]["cost"])
    for cost in costs:
        yield f"\n## Tuned for this machine: {cost['task']}\n"
        yield from tuning_table(cost["tuned"])
    if sweep:
        yield from chapter(sweep, f"Pruning on and off over the width: {sweep['rows'][0]['task']}")


def commands(options: argparse.Namespace, llama_cpp: list[Report]) -> Iterator[str]:
    """The commands that were run, in a code block; FOLDER, RESULTS and FILE stand for paths."""
    words = ["--tasks", options.tasks, "--methods", options.methods, "--cost-tasks", options.cost_tasks]
    words += ["--pruning-task", options.pruning_task, *(["--", *options.more] if options.more else [])]
    yield "```"
    yield f"python -m scripts.benchmarks --data FOLDER --out RESULTS {shlex.join(words)}"
    for report in llama_cpp:
        task, count, formats = report["task"], len(report["rates"][LLAMA]), ["auto", *list(report["words"])[1:]]
        yield (
            f"python -m scripts.llama_cpp --gguf FILE --task {task} --data FOLDER/{task}/dev.jsonl "
            f"--limit {count} --tokens {report['tokens']} --dtype {','.join(formats)} --json RESULTS/{task}-llama.json"
        )
    yield "```"


def ratios(results: list[Report]) -> Iterator[str]:
    """The lines of a table of the main comparisons, one column per task."""
    tables = [named(result["rows"]) for result in results]
    yield f"| | {' | '.join(result['rows'][0]['task'] for result in results)} |"
    yield "|---" * (1 + len(results)) + "|"
    lines = [(label, [times_as_fast(rows.get(slow), rows.get(fast)) for rows in tables]) for label, fast, slow in PAIRS]
    ours = [rows.get(OURS) for rows in tables]
    lines += [
        (
            "streaming over standard decoding, slowest prompt",
            [f"{r['speedup_lowest']:.2f}" if r else "-" for r in ours],
        ),
        (
            "share of streaming's step outside the model",
            [f"{100 * r['outside_share']:.1f} %" if r else "-" for r in ours],
        ),
        (
            "memory of streaming, of standard decoding's",
            [
                f"{r['peak_memory'] / rows[PLAIN]['peak_memory']:.2f}" if r and r["peak_memory"] else "-"
                for r, rows in zip(ours, tables, strict=True)
            ],
        ),
    ]
    for label, cells in lines:
        if set(cells) != {"-"}:  # was measured
            yield f"| {label} | {' | '.join(cells)} |"


def named(rows: list[Report]) -> dict[str, Report]:
    """The rows by label, and streaming's also by their variant; the first of those has the task's default settings."""
    streaming = [row for row in rows if row["method"] == Streaming.name]
    out = {row["label"]: row for row in rows}
    for row in streaming:
        if row["settings"]["pairs"] == "off":
            out[UNPAIRED] = row
        elif row["settings"]["copies"] == "off":
            out[ALONE] = row
    return out | dict(zip((OURS,), streaming, strict=False))


def times_as_fast(slow: Report | None, fast: Report | None) -> str:
    if not slow or not fast:
        return "-"
    value, (low, high) = suite(*([(p["seconds"], p["tokens"]) for p in row["per_prompt"]] for row in (slow, fast)))
    return f"{value:.2f}" + (f" ({low:.2f}-{high:.2f})" if low is not None else "") if value else "-"


def chapter(result: Report, title: str) -> Iterator[str]:
    """The conditions of a measurement, and its table of methods."""
    row, most = result["rows"][0], result["sampling"]["max_new_tokens"]
    budgets = [r["settings"]["budget"] for r in result["rows"] if r["settings"].get("tree") == "best-first"]
    trees = f" trees of at most {budgets[0] or MOST_NODES} nodes," if budgets else ""
    runs = "each run once" if result["repeats"] == 1 else f"each run {result['repeats']} times"
    yield f"\n## {title}\n\n{counted(row['prompts'], 'prompt')}, {runs}, up to {most} tokens,{trees}"
    yield f"adapter {result['adapter']}, commit `{result['commit']}`.\n"
    yield from table(result["rows"])
    yield from (f"\n{words}" for words in differences(result["rows"]))


def with_table(readme: str, lines: list[str]) -> str:
    """The text of README.md with its table replaced."""
    before, mark, rest = readme.partition(BEGIN)
    if not mark or END not in rest:
        raise SystemExit("README.md has lost the markers of its table: nothing was written there.")
    return before + BEGIN + "".join(f"{line}\n" for line in lines) + END + rest.partition(END)[2]


def short_table(results: list[Report], folder: Path) -> Iterator[str]:
    """The lines of a table with one row per task: streaming with default settings, and other ways to run the model."""
    yield f"| task | {' | '.join(SHORT)} |"
    yield "|---" * (1 + len(SHORT)) + "|"
    for result in results:
        rows = named(result["rows"])
        ours, task = rows[OURS], result["rows"][0]["task"]
        rates = [ours["tokens_per_second"], llama(folder / f"{task}-llama.json")]
        rates += [rows[label]["tokens_per_second"] if label in rows else None for label in (REFERENCES["hf"], PLAIN)]
        speeds = ["-" if rate is None else f"{rate:.0f}" for rate in rates]
        same = f"{ours['identical']} of {ours['compared']}"
        cells = [task_named(task).label, f"**{speeds[0]}**", *speeds[1:], f"{ours['tokens_per_step']:.2f}", same]
        yield f"| {' | '.join(cells)} |"


def beside_llama_cpp(report: Report) -> Iterator[str]:
    """A chapter that compares llama.cpp, listed first, with our methods on the prompts of a task."""
    count = len(report["rates"][LLAMA])
    yield f"\n## Against llama.cpp: {report['task']}\n"
    yield (
        f"{count} prompts, up to {report['tokens']} tokens, all methods in turn on each prompt. Tokens per second "
        "exclude the prompt pass, whose median time is in the last column. llama.cpp reads the 4-bit file, ours its "
        f"weights unpacked ({report['dtype']} unless stated otherwise). "
        f"Adapter {report['adapter']}, commit `{report['commit']}`.\n"
    )
    yield from rates_table(report["rates"], report["prompts"])
    yield from (f"\n{dtype}: {words}" for dtype, words in report["words"].items())


def llama(file: Path) -> float | None:
    """Median tokens per second of llama.cpp over the prompts; None if it was not measured."""
    if not file.is_file():
        return None
    return statistics.median(json.loads(file.read_text(encoding="utf-8"))["rates"][LLAMA])


def slower(rows: list[Report]) -> str:
    found = [(r["label"], r["slower_prompts"]) for r in rows[1:] if r["slower_prompts"]]
    return ", ".join(f"{label} on {counted(count, 'prompt')}" for label, count in found) or "none"


if __name__ == "__main__":
    main()
