"""Measure every task with every method and write docs/benchmarks.md and the figures, from the results alone.

python docs/scripts/benchmarks.py --data FOLDER --out RESULTS [--tasks sql,e2e] [-- more options of bench]
FOLDER holds TASK/dev.jsonl. A task whose RESULTS/TASK.json exists is not measured again, nor is RESULTS/cost.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specstream.bench.tables import cost_table, table, tuning_table

PAGE = Path(__file__).resolve().parent.parent / "benchmarks.md"
METHODS = "standard,streaming,prompt_lookup,hf,hf-prompt-lookup"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default="sql,e2e,dialogsum,chat")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("more", nargs="*", help="options for bench and cost, after --")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for task in options.tasks.split(","):
        file = options.out / f"{task}.json"
        data = ["--task", task, "--data", str(options.data / task / "dev.jsonl")]
        measure(file, ["bench", *data, "--methods", options.methods, *options.more])
        results.append(json.loads(file.read_text(encoding="utf-8")))
    file = options.out / "cost.json"
    measure(file, ["cost", *data, "--tune", *options.more])  # on the last task
    cost = json.loads(file.read_text(encoding="utf-8"))
    options.page.write_text("\n".join(page(results, cost)) + "\n", encoding="utf-8")


def measure(file: Path, words: list[str]) -> None:
    if not file.exists():
        subprocess.run([sys.executable, "-m", "specstream", *words, "--json", str(file)], check=True)


def page(results: list[dict[str, Any]], cost: dict[str, Any]) -> Iterator[str]:
    """The lines of the page: a table for each task, then the cost of a step and the tuned tree."""
    first = results[0]
    yield "# Benchmarks\n\nWritten by `docs/scripts/benchmarks.py`; [metrics](metrics.md) says what each column is.\n"
    where = ", ".join(f"{k} {v}" for k, v in first["machine"].items())
    yield f"{first['model']} from {first['source']}, {first['dtype']}, {first['device']}: {where}."
    for result in results:
        row = result["rows"][0]
        most = result["sampling"]["max_new_tokens"]
        yield f"\n## {row['task']}\n\n{row['prompts']} prompts, {result['repeats']} repeats, up to {most} tokens,"
        yield f"adapter {result['adapter']}, commit `{result['commit']}`.\n"
        yield from table(result["rows"])
        yield f"\nSlower than standard decoding: {slower(result['rows'])}."
    yield "\n## Cost of a step\n"
    yield from cost_table(cost["cost"])
    if "tuned" in cost:
        yield "\n## Tree tuned for this machine\n"
        yield from tuning_table(cost["tuned"])


def slower(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{r['label']} on {r['slower_prompts']} prompts" for r in rows[1:])


if __name__ == "__main__":
    main()
