"""Quality of a task's texts, scored against references, with intervals; and the comparison of two results.

Metrics are in points from 0 to 100. Their libraries (the extra ``eval``) are imported when first used.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream import processes
from specstream.bench.prompts import prompt_of
from specstream.bench.provenance import commit, machine
from specstream.bench.results import amounts, total_of
from specstream.data import datasets
from specstream.data.tasks import Task, task
from specstream.engine import Engine
from specstream.events import Event
from specstream.params import METHODS, Method, Sampling
from specstream.session import text_of
from specstream.stats import RunStats, mean_interval, summarize

Scores = dict[str, float]
Scorer = Callable[[str, Sequence[str]], Scores]
NAMES = {"exact_match": "exact match", "rouge1": "ROUGE-1", "rougeLsum": "ROUGE-Lsum"}


class QualityError(ValueError):
    """Quality can't be measured or compared; the message is one sentence for the user."""


# ---- metrics ---------------------------------------------------------------------------------------------------------


def exact_match(text: str, references: Sequence[str]) -> Scores:
    """100 if a text equals one of its references after ``normal_sql``, else 0."""
    wanted = {normal_sql(reference) for reference in references}
    return {"exact_match": 100.0 * (normal_sql(text) in wanted)}


def normal_sql(text: str) -> str:
    """One SQL statement in normal form.

    sqlglot parses it in its MySQL dialect, where 'a' and "a" are the same string, as in the task's data, and formats
    it again. This normalises the case of keywords, types and functions; the kind of quotes around strings, and whether
    names are quoted; whitespace, comments and a final semicolon; equivalent spellings (``<>`` and ``!=``, with or
    without ``AS``). It keeps the case of names and strings, whether numbers are quoted, brackets, and all order.
    Text that sqlglot can't parse, or that is not a single query, is compared in lower case with single spaces, single
    quotes and no final semicolon.
    """
    import sqlglot
    from sqlglot import exp

    plain = " ".join(text.lower().replace('"', "'").split()).rstrip("; ")
    try:
        statements = sqlglot.parse(text, dialect="mysql")
    except sqlglot.errors.SqlglotError:
        return plain
    if len(statements) != 1 or not isinstance(statement := statements[0], exp.Query):
        return plain
    for name in statement.find_all(exp.Identifier):
        name.set("quoted", False)
    return str(statement.sql(dialect="mysql", comments=False))


def rouge(text: str, references: Sequence[str]) -> Scores:
    """F1 of ROUGE-1 and ROUGE-Lsum, each the best over the references, as usual.

    With Porter's stemmer. For Lsum, texts are split into sentences after full stops, question and exclamation marks.
    """
    best = _rouge_scorer().score_multi([_sentence_lines(r) for r in references], _sentence_lines(text))
    return {name: 100 * float(score.fmeasure) for name, score in best.items()}


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeLsum"], use_stemmer=True)


def _sentence_lines(text: str) -> str:
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


SCORERS: dict[str, Scorer] = {"exact match": exact_match, "rouge": rouge}


def scorer(chosen: Task) -> Scorer | None:
    """The metric of a task; None for a task without references. Raises QualityError if its library is missing."""
    if not chosen.metric:
        return None
    try:
        SCORERS[chosen.metric]("SELECT 1", ["SELECT 1"])
    except ImportError as error:
        package = (error.name or "").split(".")[0].replace("_", "-")
        raise QualityError(
            f"The metric of the task {chosen.name} needs the package {package}, which is not installed: "
            f"pip install {package}."
        ) from None
    return SCORERS[chosen.metric]


# ---- evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationItem:
    """One prompt, and the reference texts of its row."""

    prompt: str
    references: list[str]


def read_items(engine: Engine, data: str, split: str, chosen: Task, limit: int) -> list[EvaluationItem]:
    """The first rows (0: all) of a JSONL file, or of a split of a ``hub:`` dataset.

    Raises DataError naming a bad row.
    """
    rows = datasets.task_rows(data, split, chosen, limit)
    return [EvaluationItem(prompt_of(engine, chosen, row, data), row.references) for row in rows]


def evaluate(
    engine: Engine,
    items: Sequence[EvaluationItem],
    task_name: str,
    method: Method,
    sampling: Sampling,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Decode every prompt and score its text, which ends at EOS and is stripped of whitespace at both ends.

    Returns plain values: what ran, ``quality`` (mean and 95 % interval per metric; None without references), decoding
    statistics, and ``rows`` with every prompt's text and scores. ``done`` is called after each prompt.
    The processes of ``accelerate launch`` share the prompts, and all get the result.
    """
    score = scorer(task(task_name))
    rows, runs = [], []

    def decoded(item: EvaluationItem) -> tuple[dict[str, Any], RunStats]:
        events: list[Event] = list(engine.generate(item.prompt, method, sampling))
        text, stats = text_of(events).strip(), summarize(events)
        return _row(item, text, score(text, item.references) if score else None, stats), stats

    for row, stats in processes.shared(items, decoded):
        rows.append(row)
        runs.append(stats)
        done()
    return _about(engine, task_name, method, sampling) | _decoding(runs) | {"quality": _quality(rows), "rows": rows}


def _row(item: EvaluationItem, text: str, scores: Scores | None, stats: RunStats) -> dict[str, Any]:
    numbers = {"tokens": stats.tokens, "steps": stats.steps, "reason": str(stats.reason)}
    return {"prompt": item.prompt, "references": item.references, "text": text, "scores": scores} | numbers


def _about(engine: Engine, task_name: str, method: Method, sampling: Sampling) -> dict[str, Any]:
    info = engine.info
    named = {n: getattr(info, n) for n in ("model", "source", "adapter", "mode", "dtype", "device")}
    settings = {"method": method.name, "settings": method.to_dict(), "sampling": sampling.to_dict()}
    return {"task": task_name, **named, **settings, "machine": machine(), "commit": commit()}


def _decoding(runs: Sequence[RunStats]) -> dict[str, Any]:
    return amounts(runs) | {
        "acceptance_by_depth": total_of(runs).acceptance_by_depth,
        "cut_off": sum(str(r.reason) == "length" for r in runs),
    }


def _quality(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if rows[0]["scores"] is None:
        return None
    return {name: _mean([row["scores"][name] for row in rows]) for name in rows[0]["scores"]}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "interval": list(mean_interval(values))}


# ---- comparison ------------------------------------------------------------------------------------------------------


def read_result(file: Path) -> dict[str, Any]:
    """A result written by ``evaluate``. Raises QualityError."""
    try:
        result = json.loads(file.read_text(encoding=datasets.TEXT))
        if result["rows"] and {"prompt", "text", "scores"} <= set(result["rows"][0]) and "quality" in result:
            return dict(result)
    except OSError as error:
        raise QualityError(f"{file} can't be read ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise QualityError(f"{file} is not a result of the command evaluate: create one with evaluate --json {file.name}.")


def compare(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Our result minus another on the same prompts: per metric, the mean difference and its paired 95 % interval.

    ``same_texts`` counts the prompts with identical texts; ``difference`` is None without references.
    Raises QualityError if the prompts differ.
    """
    if [row["prompt"] for row in ours["rows"]] != [row["prompt"] for row in other["rows"]]:
        raise QualityError(
            "The two results have different prompts: evaluate both with the same --data, --task and --limit."
        )
    pairs = list(zip(ours["rows"], other["rows"], strict=True))
    scored = ours["quality"] if ours["quality"] and other["quality"] else None
    return {
        "prompts": len(pairs),
        "same_texts": sum(a["text"] == b["text"] for a, b in pairs),
        "difference": scored and {n: _mean([a["scores"][n] - b["scores"][n] for a, b in pairs]) for n in scored},
    }


# ---- output ----------------------------------------------------------------------------------------------------------


def result_lines(result: dict[str, Any]) -> Iterator[str]:
    """Lines that describe a result."""
    who = f"{result['model']}, adapter {result['adapter']}, {METHODS[result['method']].label}"
    yield f"{who}: {result['prompts']} prompts of {result['task']}"
    for name, value in (result["quality"] or {}).items():
        yield f"{NAMES[name]}: {value['mean']:.2f}{_between(value)}"
    if result["quality"] is None:
        yield "quality: this task has no references"
    if per_step := result["tokens_per_step"]:
        yield f"tokens per step: {per_step:.2f} ({result['tokens']} tokens, {result['steps']} steps)"
    if depths := result["acceptance_by_depth"]:
        yield f"acceptance by depth: {', '.join(f'{share:.2f}' for share in depths)}"
    if cut := result["cut_off"]:
        yield f"{cut} texts did not end within --max-new-tokens"


def comparison_lines(comparison: dict[str, Any], name: str) -> Iterator[str]:
    """Lines that describe a comparison with the result called ``name``."""
    yield f"against {name}: {comparison['same_texts']} of {comparison['prompts']} texts are the same"
    for metric, value in (comparison["difference"] or {}).items():
        yield f"{NAMES[metric]}: {value['mean']:+.2f}{_between(value, '+')}"


def _between(value: dict[str, Any], sign: str = "") -> str:
    low, high = value["interval"]
    return "" if low is None else f" (95 %: {low:{sign}.2f} to {high:{sign}.2f})"
