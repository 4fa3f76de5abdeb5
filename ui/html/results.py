"""Results of benchmarks as HTML. No gradio here; model text is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

from specstream.bench.prediction import fastest_tried
from specstream.bench.tables import COLUMNS, SPEC_BENCH, differences
from specstream.data.tasks import TASKS
from specstream.params import METHODS
from specstream.stats import FEWEST, counted

from .headline import ALIKE, NOISY
from .insights import calibration_words
from .render import minute, model_name, when

Report = Mapping[str, Any]


def task_label(name: str | None) -> str:
    """A description of the task."""
    if name == SPEC_BENCH:
        return "Spec-Bench"
    return TASKS[name].label if name in TASKS else "Prompts as they are"


def progress(words: str, done: float, total: float, left: float | None) -> str:
    """A progress bar with its text; the time left if known."""
    share = round(100 * done / total) if total else 0
    rest = "" if left is None else f", about {duration(left)} left"
    return (
        f'<div class="ss-progress"><span class="ss-words">{escape(words)}{rest}</span>'
        f'<div class="ss-track" role="progressbar" aria-label="{escape(words)}" aria-valuenow="{share}" '
        f'aria-valuemin="0" aria-valuemax="100"><span class="ss-fill d1" style="width:{share}%"></span></div></div>'
    )


def duration(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def tables(reports: Sequence[Report]) -> str:
    """A table of methods for each result that has one."""
    return "".join(_table(report) for report in reports if report.get("rows"))


def _table(report: Report) -> str:
    rows = report["rows"]
    heads = "".join(f'<th scope="col" title="{escape(c.words)}">{escape(c.heading)}</th>' for c in COLUMNS)
    body = "".join(_row(row) for row in rows)
    sure = "".join(f"<li>{escape(words)}</li>" for words in _calibrated(rows))
    by_category = sure + "".join(f"<li>{escape(words)}</li>" for words in _by_category(rows))
    notes = by_category + "".join(f"<li>{escape(words)}</li>" for words in (*doubts(rows), *differences(rows)))
    what = escape(measured_what(report))
    name, heading = f"{what}: {escape(named(report))}", f"{what}: {_named(report)}"
    return (
        f'<section class="ss-card"><h3>{heading}</h3><p class="ss-words">{escape(measured(report))}</p>'
        f'<div class="ss-scroll" tabindex="0" role="region" aria-label="{name}"><table class="ss-grid">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{f'<ul class=ss-words>{notes}</ul>' if notes else ''}</section>"
    )


def doubts(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the numbers do not tell: intervals that they are too few for, and times that can't be right."""
    if any(row["speedup"] and row["speedup_interval"][0] is None for row in rows[1:]):
        are = "prompt is" if rows[0]["prompts"] == 1 else "prompts are"
        yield f"{rows[0]['prompts']} {are} too few for a 95 % interval: it takes {FEWEST}."
    if any(row["step_cost"] and row["step_cost"] < 1 - ALIKE for row in rows[1:]):
        yield f"A step can't cost less than a standard one, which does less work. {NOISY}"


def _by_category(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each method, if the questions have categories."""
    for row in rows[1:]:
        if found := row["by_category"]:
            parts = (f"{name} {_ratio(values['speedup'])}" for name, values in found.items())
            yield f"{row['label']}, speed-up by category: {', '.join(parts)}."


def _calibrated(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence about the calibration of each method; older results have none."""
    for row in rows[1:]:
        if found := row.get("calibration"):
            yield f"{row['label']}: {calibration_words(found).replace('When it says', 'when it says')}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(row: Mapping[str, Any]) -> str:
    cost, tau = row["step_cost"], row["tokens_per_step"]
    if cost and tau and cost < 1:  # the times scatter: no step brings more than its tokens
        row = {**row, "ideal_speedup": tau}
    name, *cells = (escape(column.cell(row)) for column in COLUMNS)
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def measured_what(report: Report) -> str:
    """What was measured."""
    rows = report.get("rows")
    count = f", {counted(rows[0]['prompts'], 'prompt')}" if rows else ", cost of a step"
    return task_label(report.get("task") or (rows[0]["task"] if rows else None)) + count


def _named(report: Report) -> str:
    """``named`` as HTML, with a time that becomes local."""
    return escape(report["name"]) if report.get("name") else when(str(report["time_utc"]))


def named(report: Report, zone: str = "") -> str:
    """What distinguishes results: the name of a file, or the time in a time zone."""
    return str(report.get("name") or minute(str(report["time_utc"]), zone))


def measured(report: Report) -> str:
    """The model and machine of a measurement, in one line."""
    adapter = f" + {model_name(report['adapter'])}" if report["adapter"] not in ("", "none") else ", no adapter"
    parts = [
        f"{model_name(report['model'])}{adapter}, {report['dtype']} on {report['device']}",
        report["machine"]["processor"],
    ]
    if "repeats" in report:
        most = report["sampling"]["max_new_tokens"]
        parts += [
            f"up to {counted(most, 'token')}",
            "once each" if report["repeats"] == 1 else f"{report['repeats']} times each",
        ]
    parts += [f"torch {report['machine']['torch']}", f"commit {report['commit']}" if report["commit"] else ""]
    return ", ".join(part for part in parts if part)


def recommendation(tuned: Mapping[str, Any] | None) -> str:
    """The settings that are fastest here, with their predicted and measured speed-up."""
    if not tuned:
        return ""
    best = fastest_tried(tuned)
    heading, first = _advice(tuned, best)
    lines = [first, _predicted(tuned), *map(_tried, tuned["trials"][:1])]
    body = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<section class="ss-card"><h3>{heading}</h3>{body}</section>'


def _advice(tuned: Mapping[str, Any], best: Mapping[str, Any] | None) -> tuple[str, str]:
    label = METHODS[tuned["method"]].label if tuned["method"] in METHODS else tuned["method"]
    if best is None:
        return "Standard decoding is faster on this machine", f"{label} gained nothing here, whatever its settings."
    if best != tuned["settings"]:
        return "Keep your settings", f"{label} was fastest with yours, not with those that were predicted."
    return "Recommended on this machine", f"{label} with {', '.join(settings(tuned))}."


def _predicted(tuned: Mapping[str, Any]) -> str:
    found, given = tuned["predicted"], tuned["given"]
    return (
        f"Predicted for {', '.join(settings(tuned))}: {found['speedup']:.1f} times as fast as standard decoding, "
        f"{found['tokens_per_step']:.2f} tokens per step at {found['step_cost']:.2f} times the cost of a step. "
        f"For your settings: {given['speedup']:.1f} times."
    )


def _tried(trial: Mapping[str, Any]) -> str:
    same = f"{trial['identical']} of {counted(trial['total'], 'text')} the same as standard decoding's"
    return f"Tried on other prompts: {trial['measured']:.1f} times as fast, {same}."


def settings(tuned: Mapping[str, Any]) -> list[str]:
    """The chosen settings that shape the tree, with the labels of the form."""
    if tuned["method"] not in METHODS:
        return []
    shaping = [f for f in fields(METHODS[tuned["method"]]) if f.name in ("streams", "budget", "width", "depth")]
    return [f"{f.metadata['label'].lower()} {tuned['settings'][f.name]}" for f in shaping]
