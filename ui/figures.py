"""Results of benchmarks (as ``bench --json`` and ``cost --json`` write them) as plotly figures. No gradio here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from ui import theme
from ui.charts import CLEAR, GRID

Report = dict[str, Any]
COLOURS = list(theme.STRONG.values())


def figures(reports: Sequence[Report]) -> dict[str, go.Figure]:
    """Every figure that the results have numbers for, by name."""
    made: dict[str, go.Figure] = {}
    if any(r.get("rows") for r in reports):
        made |= {"speedup": speedup(reports), "calls": calls(reports), "acceptance": acceptance(reports)}
    for report in reports:
        if "cost" in report:
            made["cost"] = cost(report["cost"])
        if "tuned" in report:
            made["prediction"] = prediction(report["tuned"])
    return made


def speedup(reports: Sequence[Report]) -> go.Figure:
    """Bars of the suite speed-up with its 95 % interval: a group for each task, a colour for each method."""
    figure = _figure("Speed-up over standard decoding", "", "times as fast")
    for place, (label, rows) in enumerate(_by_label(reports).items()):
        highs = [(r["speedup_interval"][1] or r["speedup"]) - r["speedup"] for r in rows]
        lows = [r["speedup"] - (r["speedup_interval"][0] or r["speedup"]) for r in rows]
        figure.add_bar(
            x=[r["task"] for r in rows],
            y=[r["speedup"] for r in rows],
            name=label,
            error_y={"type": "data", "array": highs, "arrayminus": lows},
            marker={"color": _colour(place)},
        )
    figure.add_hline(y=1, line={"dash": "dot", "color": theme.STRONG[0]})
    return figure.update_layout(barmode="group")


def calls(reports: Sequence[Report]) -> go.Figure:
    """Tokens per step against the speed-up of the steps. On the line a step costs what a plain step does."""
    figure = _figure("Fewer calls against less time", "tokens per step", "speed-up of the steps")
    longest = 1.0
    for place, (label, rows) in enumerate(_by_label(reports).items()):
        x = [r["tokens_per_step"] for r in rows]
        longest = max([longest, *(v for v in x if v)])
        figure.add_scatter(
            x=x,
            y=[r["decode_speedup"] for r in rows],
            text=[r["task"] for r in rows],
            name=label,
            mode="markers+text",
            textposition="bottom center",
            marker={"color": _colour(place), "size": 10},
        )
    line = {"dash": "dot", "color": theme.STRONG[0]}
    return figure.add_scatter(x=[1, longest], y=[1, longest], mode="lines", name="a step costs 1", line=line)


def acceptance(reports: Sequence[Report]) -> go.Figure:
    """Share of the steps that accepted a token at each depth, of those that compared one there."""
    figure = _figure("Acceptance by depth", "depth in the tree", "accepted")
    drafting = [r for r in _rows(reports) if r["acceptance_by_depth"]]
    for place, row in enumerate(drafting):
        values = row["acceptance_by_depth"]
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=values,
            name=f"{row['label']}, {row['task']}",
            mode="lines+markers",
            line={"color": _colour(place)},
        )
    return figure.update_yaxes(range=[0, 1], tickformat=".0%").update_xaxes(dtick=1)


def cost(curve: Report) -> go.Figure:
    """Milliseconds of a step against drafted nodes, with the time that reading the weights once takes at least."""
    figure = _figure("Cost of a step", "drafted nodes", "milliseconds")
    for place, (key, name) in enumerate((("plain", "without streams"), ("streaming", "with streams"))):
        points = curve[key]
        if points:
            figure.add_scatter(
                x=[p["nodes"] for p in points],
                y=[1000 * p["seconds"] for p in points],
                name=name,
                mode="lines+markers",
                line={"color": COLOURS[place]},
            )
    figure.add_hline(
        y=1000 * curve["limit_seconds"],
        line={"dash": "dot", "color": theme.STRONG[5]},
        annotation_text="reading every weight once",
    )
    return figure.update_yaxes(rangemode="tozero")


def prediction(tuned: Report) -> go.Figure:
    """Predicted against measured speed-up of the steps, with a tenth to both sides."""
    figure = _figure("Predicted against measured", "predicted speed-up", "measured speed-up")
    trials = tuned["trials"]
    names = ["chosen", "given"][: len(trials)]
    for key, words in (("explained", "from the same prompts"), ("predicted", "from other prompts")):
        figure.add_scatter(
            x=[t[key] for t in trials],
            y=[t["measured"] for t in trials],
            text=names,
            mode="markers+text",
            textposition="top center",
            name=words,
            marker={"size": 11, "color": COLOURS[1 if key == "explained" else 3]},
        )
    far = 1.15 * max(max(t["predicted"], t["explained"], t["measured"]) for t in trials)
    for share in (0.9, 1.0, 1.1):
        style = {"dash": "solid" if share == 1 else "dot", "color": theme.STRONG[0], "width": 1}
        figure.add_scatter(x=[0, far], y=[0, share * far], mode="lines", line=style, showlegend=False)
    return figure


def _rows(reports: Sequence[Report]) -> Iterator[Report]:
    """Rows of every result but standard decoding, which the others are measured against."""
    return (row for report in reports for row in report.get("rows", ()) if row["method"] != "standard")


def _by_label(reports: Sequence[Report]) -> dict[str, list[Report]]:
    out: dict[str, list[Report]] = {}
    for row in _rows(reports):
        if row["speedup"]:
            out.setdefault(row["label"], []).append(row)
    return out


def _colour(place: int) -> str:
    return COLOURS[(place + 1) % len(COLOURS)]


def _figure(title: str, x: str, y: str) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False}
    return go.Figure(
        layout={
            "template": "none",
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "height": 380,
            "title": {"text": title, "x": 0, "font": {"size": 15}},
            "xaxis": axis | {"title": {"text": x}},
            "yaxis": axis | {"title": {"text": y}},
            "legend": {"orientation": "h", "y": -0.2},
        }
    )
