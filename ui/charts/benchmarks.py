"""Results of benchmarks (as ``bench --json`` and ``cost --json`` write them) as plotly figures. No gradio here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from specstream.bench.tables import CURVES

from .. import theme
from ..html.results import task_label
from .runs import BAR, BAR_ROOM, CLEAR, DASHES, GRID

Report = dict[str, Any]
COLOURS = list(theme.STRONG.values())
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")
TOP_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}}


def figures(reports: Sequence[Report]) -> dict[str, go.Figure]:
    """Every figure for which the results have numbers, by name. A result's ``name`` distinguishes it from others."""
    made: dict[str, go.Figure] = {}
    if any(r.get("rows") for r in reports):
        made |= {"speedup": speedup(reports), "calls": calls(reports), "acceptance": acceptance(reports)}
    for report in reports:
        if sweep := pruning_rows(report):
            made["pruning"] = pruning(sweep)
        if "cost" in report and "cost" not in made:
            made["cost"] = cost(report["cost"])
    if tried := [r for r in reports if r.get("tuned", {}).get("trials")]:
        made["prediction"] = prediction(tried)
    return made


def on_page(figure: go.Figure) -> go.Figure:
    """The figure for a page with a heading and a narrow column."""
    height = 270 + 20 * sum(trace.showlegend is not False for trace in figure.data)  # in a narrow column all on a line
    figure.update_layout(
        title=None, height=height, legend=TOP_LEGEND, margin={"l": 52, "r": BAR_ROOM, "t": 24, "b": 48}, modebar=BAR,
        uirevision="keep",
    )  # fmt: skip
    return figure


def speedup(reports: Sequence[Report]) -> go.Figure:
    """Bars of the suite speed-up with its 95 % interval: a group for each task, a colour for each method. The number
    is above the interval, where no bar's colour is behind it."""
    figure = _figure("Speed-up over standard decoding", "", "times as fast")
    for place, (label, rows) in enumerate(_by_label(reports).items()):
        highs = [(r["speedup_interval"][1] or r["speedup"]) - r["speedup"] for _, r in rows]
        lows = [r["speedup"] - (r["speedup_interval"][0] or r["speedup"]) for _, r in rows]
        figure.add_bar(
            x=[where for where, _ in rows],
            y=[r["speedup"] for _, r in rows],
            name=label,
            offsetgroup=label,
            error_y={"type": "data", "array": highs, "arrayminus": lows, "color": theme.STRONG[0]},
            marker={"color": _colour(place)},
        )
        figure.add_scatter(
            x=[where for where, _ in rows],
            y=[r["speedup"] + high for (_, r), high in zip(rows, highs, strict=True)],
            text=[f"{r['speedup']:.2f}" for _, r in rows],
            mode="text",
            textposition="top center",
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
            offsetgroup=label,
        )
    figure.add_hline(y=1, line={"dash": "dot", "color": theme.STRONG[0]})
    return figure.update_layout(barmode="group", scattermode="group")


def calls(reports: Sequence[Report]) -> go.Figure:
    """Tokens per step against the speed-up of the steps. On the line, a step costs as much as a standard step."""
    figure = _figure("Tokens per step and measured speed-up", "tokens per step", "speed-up of the steps")
    longest, several = 1.0, _several(reports)
    for place, (label, rows) in enumerate(_by_label(reports).items()):
        x = [r["tokens_per_step"] for _, r in rows]
        longest = max([longest, *(v for v in x if v)])
        figure.add_scatter(
            x=x,
            y=[r["decode_speedup"] for _, r in rows],
            text=[where for where, _ in rows],
            name=label,
            mode="markers+text" if several else "markers",
            textposition="bottom center",
            marker={"color": _colour(place), "size": 10, "symbol": SYMBOLS[place % len(SYMBOLS)]},
        )
    line = {"dash": "dot", "color": theme.STRONG[0]}
    return figure.add_scatter(x=[1, longest], y=[1, longest], mode="lines", name="a step costs 1", line=line)


def acceptance(reports: Sequence[Report]) -> go.Figure:
    """At each depth, the share of steps that accepted a token, of those that compared one."""
    figure = _figure("Acceptance by tokens ahead", "tokens ahead", "accepted")
    drafting = [(where, r) for where, r in _rows(reports) if r["acceptance_by_depth"]]
    several = _several(reports)
    for place, (where, row) in enumerate(drafting):
        values = row["acceptance_by_depth"]
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=values,
            name=f"{row['label']}, {where}" if several else row["label"],
            mode="lines+markers",
            line={"color": _colour(place), "dash": DASHES[place % len(DASHES)]},
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)]},
        )
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%").update_xaxes(dtick=1)


def pruning_rows(report: Report) -> list[Report]:
    """The streaming rows of a result that tried several widths, with pruning and without; empty for any other."""
    rows = [r for r in report.get("rows", ()) if r["method"] == "streaming"]
    tried = {(r["settings"].get("width"), bool(r["settings"].get("prune"))) for r in rows}
    several = len({width for width, _ in tried}) > 1
    return rows if several and {pruned for _, pruned in tried} == {False, True} else []


def pruning(rows: Sequence[Report]) -> go.Figure:
    """Speed-up of the steps by width k, with pruning and without; dashed: tokens per step."""
    figure = _figure("Pruning on and off", "width k", "speed-up of the steps")
    for place, prune in enumerate(sorted({r["settings"]["prune"] for r in rows})):
        points = sorted((r["settings"]["width"], r["decode_speedup"], r["tokens_per_step"]) for r in rows
                        if r["settings"]["prune"] == prune)  # fmt: skip
        name = f"pruned below {prune:g}" if prune else "not pruned"
        widths, ratios, tokens = zip(*points, strict=True)
        look = {"mode": "lines+markers", "marker": {"symbol": SYMBOLS[place % len(SYMBOLS)]}}
        figure.add_scatter(x=widths, y=ratios, name=name, line={"color": _colour(place)}, **look)
        dashed = {"color": _colour(place), "dash": "dot"}
        figure.add_scatter(x=widths, y=tokens, name=f"{name}: tokens per step", yaxis="y2", line=dashed, **look)
    second = {"overlaying": "y", "side": "right", "showgrid": False, "title": {"text": "tokens per step"}}
    return figure.update_xaxes(dtick=1).update_layout(yaxis2=second)


def cost(curve: Report) -> go.Figure:
    """Milliseconds of a step against drafted nodes, with the least time that reading the weights once takes."""
    figure = _figure("Cost of a step", "drafted nodes", "milliseconds")
    for place, (key, name) in enumerate(CURVES.items()):
        if points := curve.get(key):
            figure.add_scatter(
                x=[p["nodes"] for p in points],
                y=[1000 * p["seconds"] for p in points],
                name=name,
                mode="lines+markers",
                line={"color": COLOURS[place], "dash": DASHES[place]},
                marker={"symbol": SYMBOLS[place]},
            )
    figure.add_hline(
        y=1000 * curve["limit_seconds"],
        line={"dash": "dot", "color": theme.STRONG[5]},
        annotation_text="reading every weight once",
    )
    return figure.update_yaxes(rangemode="tozero")


def prediction(reports: Sequence[Report]) -> go.Figure:
    """Predicted against measured speed-up of the steps, with a band of 10 % to both sides."""
    figure = _figure("Predicted against measured", "predicted speed-up", "measured speed-up")
    tried = [(r, t, kind) for r in reports for t, kind in zip(r["tuned"]["trials"], ("chosen", "given"), strict=False)]
    trials = [trial for _, trial, _ in tried]
    names = [kind if len(reports) == 1 else f"{task_label(report.get('task'))}, {kind}" for report, _, kind in tried]
    symbols = ["circle" if kind == "chosen" else "square" for _, _, kind in tried]
    for key, words, place in (("explained", "from the same prompts", 1), ("predicted", "from other prompts", 3)):
        figure.add_scatter(  # names on hover: the points of one choice are too close for labels
            x=[t[key] for t in trials],
            y=[t["measured"] for t in trials],
            text=names,
            mode="markers",
            name=f"predicted {words} (● chosen, ■ given)",
            hovertemplate="%{text}: predicted %{x:.2f}, measured %{y:.2f}<extra></extra>",
            marker={"size": 11, "color": COLOURS[place], "symbol": symbols},
        )
    far = 1.15 * max(max(t["predicted"], t["explained"], t["measured"]) for t in trials)
    for share in (0.9, 1.0, 1.1):
        style = {"dash": "solid" if share == 1 else "dot", "color": theme.STRONG[0], "width": 1}
        figure.add_scatter(x=[0, far], y=[0, share * far], mode="lines", line=style, showlegend=False)
    return figure


def _rows(reports: Sequence[Report]) -> Iterator[tuple[str, Report]]:
    """The rows of every result except standard decoding, the baseline of the others, each with its place."""
    measured = [r for r in reports if r.get("rows")]
    tasks = [task_label(r["rows"][0]["task"]) for r in measured]
    for report, task in zip(measured, tasks, strict=True):
        where = task if tasks.count(task) == 1 or not report.get("name") else f"{task}, {report['name']}"
        yield from ((where, row) for row in report["rows"] if row["method"] != "standard")


def _several(reports: Sequence[Report]) -> bool:
    """Are there results of more than one place, so that each must be named?"""
    return len({where for where, _ in _rows(reports)}) > 1


def _by_label(reports: Sequence[Report]) -> dict[str, list[tuple[str, Report]]]:
    out: dict[str, list[tuple[str, Report]]] = {}
    for where, row in _rows(reports):
        if row["speedup"]:
            out.setdefault(row["label"], []).append((where, row))
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
