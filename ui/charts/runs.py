"""Finished runs as plotly figures. No gradio here; backgrounds are transparent, to fit both themes.

Text has no colour of its own: the style sheet gives it the page's, so that it can be read in the light and the dark.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from specstream.events import Draft, Fate, Lane, Step
from specstream.stats import PHASES, RunStats
from specstream.training.progress import Point, Progress, Validation

from .. import theme
from ..html.render import tree_rows

CLEAR = "rgba(0,0,0,0)"
GRID = "rgba(125,138,160,0.3)"
HEIGHT = 280
BAR_ROOM = 44  # on the right, for plotly's buttons, which would otherwise cover something
BAR = {
    "orientation": "v",
    "bgcolor": CLEAR,
    "color": theme.STRONG[0],  # by default it is made for a black background
    "activecolor": theme.STRONG[1],
    "remove": ["select", "lasso", "autoScale", "zoomIn", "zoomOut"],
}
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up")
BY = {"minutes": "minutes of training", "steps": "steps"}
MOST_POINTS = 300  # of a curve that grows
LANE_WORDS = {Lane.METHOD: "this run", Lane.BASELINE: "standard decoding"}
FATE_STYLE = {
    Fate.ACCEPTED: ("solid", "circle", 1.0),
    Fate.REJECTED: ("solid", "x", 0.9),
    Fate.UNREACHED: ("dot", "circle-open", 0.6),
    Fate.PRUNED: ("dash", "square-open", 0.5),
}


def _figure(title: str, x: str, y: str) -> go.Figure:
    layout = {
        "template": "none",
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "height": HEIGHT,
        "margin": {"l": 56, "r": BAR_ROOM, "t": 62, "b": 44},
        "modebar": BAR,
        "title": {
            "text": title,
            "font": {"size": 14},
            "x": 0,
            "xref": "container",
            "y": 0.97,
            "yanchor": "top",
            "pad": {"l": 8},
        },
        "xaxis": {"title": {"text": x}, "gridcolor": GRID, "zeroline": False},
        "yaxis": {"title": {"text": y}, "gridcolor": GRID, "zeroline": False},
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "traceorder": "normal",
            "font": {"size": 11},
        },
        "bargap": 0.25,
        "uirevision": "keep",
    }
    return go.Figure(layout=layout)


def acceptance(stats: RunStats) -> go.Figure:
    """At each depth, the share of steps that accepted a token, of those that compared one."""
    figure = _figure("Acceptance by tokens ahead", "tokens ahead", "accepted")
    rates = stats.acceptance_by_depth
    depths = list(range(1, len(rates) + 1))
    colours = [theme.STRONG[min(d, theme.DEEPEST)] for d in depths]
    words = [f"{rate:.0%} of {stats.reached_depth[d]}" for d, rate in zip(depths, rates, strict=True)]
    bars = go.Bar(
        x=depths,
        y=rates,
        marker={"color": colours},
        text=words,
        textposition="outside",
        textangle=0,
        hoverinfo="x+text",
    )
    figure.add_trace(bars)
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(range=[0, 1.15], tickformat=".0%")
    return figure if rates else _with_words(figure, "This method drafts nothing.")


def phases(lanes: dict[Lane, RunStats]) -> go.Figure:
    """Milliseconds per emitted token in each phase of a step, one bar per lane."""
    figure = _figure("Time per token", "milliseconds per token", "")
    shown = {lane: stats for lane, stats in lanes.items() if stats.decode_tokens}
    names = [LANE_WORDS[lane] for lane in shown]
    for phase in PHASES:
        values = [1000 * stats.phase_seconds[phase] / stats.decode_tokens for stats in shown.values()]
        bar = go.Bar(
            x=values, y=names, name=phase.replace("_", " "), orientation="h", marker={"color": theme.PHASES[phase]}
        )
        figure.add_trace(bar)
    figure.update_layout(barmode="stack", margin={"l": 124}, hovermode="y unified", legend={"entrywidth": 64})
    figure.update_xaxes(hoverformat=".2f")
    return figure


def per_step(steps: Sequence[Step]) -> go.Figure:
    """Tokens that each step emitted, split into accepted ones and the target's own."""
    figure = _figure("Tokens per step", "step", "tokens")
    decode = [step for step in steps if step.index > 0]
    index = [step.index for step in decode]
    accepted = [sum(token.depth > 0 for token in step.tokens) for step in decode]
    own = [len(step.tokens) - n for step, n in zip(decode, accepted, strict=True)]
    figure.add_trace(go.Bar(x=index, y=own, name="chosen by the model", marker={"color": theme.STRONG[0]}))
    figure.add_trace(go.Bar(x=index, y=accepted, name="drafted, accepted", marker={"color": theme.STRONG[1]}))
    figure.update_layout(barmode="stack", bargap=0.05)
    figure.update_yaxes(
        rangemode="tozero", dtick=1 if max(map(len, (s.tokens for s in decode)), default=0) < 8 else None
    )
    return figure


def race(curves: dict[str, list[tuple[float, int]]]) -> go.Figure:
    """Tokens over time of several measured runs, as step curves of (seconds, tokens)."""
    figure = _figure("", "seconds", "tokens")
    for place, (label, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        line = {"color": theme.lane(place), "width": 2.5, "dash": DASHES[place % len(DASHES)]}
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name=label, line=line))
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(rangemode="tozero", hoverformat=".2f")
    figure.update_yaxes(rangemode="tozero")
    return figure


def losses(progress: Progress, by: str, gamma: int, main: bool, drafting: str) -> go.Figure:
    """Training losses of the ``main`` stream, if it is trained, and of ``gamma`` streams or heads (``drafting`` says
    which), over "minutes" or "steps"; held-out rows as points."""
    figure = _figure("", BY[by], "loss")
    points, looks = thinned(progress.points), progress.validations
    widths = [len(p.losses) for p in points] + [len(v.losses) for v in looks]
    for place in range(0 if main else 1, min(widths) if points else 0):
        name = f"{drafting} {place}" if 0 < place <= gamma else "early exit" if place else "the model itself"
        style = {"color": theme.lane(place), "dash": DASHES[place % len(DASHES)], "width": 2}
        line = {"x": _places(points, by), "y": [p.losses[place] for p in points], "line": style}
        figure.add_trace(go.Scatter(**line, mode="lines", name=name, legendgroup=name))
        marks = {"color": theme.lane(place), "size": 8, "symbol": SYMBOLS[place % len(SYMBOLS)]}
        held_out = {"x": _places(looks, by), "y": [v.losses[place] for v in looks], "marker": marks}
        figure.add_trace(
            go.Scatter(**held_out, mode="markers", name=f"{name}, held out", legendgroup=name, showlegend=False)
        )
    figure.update_xaxes(rangemode="tozero").update_yaxes(rangemode="tozero", hoverformat=".2f")
    figure.update_layout(margin={"t": 44})
    return figure if points else _with_words(figure, "The losses are drawn once the first step is made.")


def gains(progress: Progress, by: str) -> go.Figure:
    """Tokens per step of decoding held-out prompts during training, over "minutes" or "steps"."""
    figure = _figure("", BY[by], "tokens per step")
    looks = [v for v in progress.validations if v.tokens_per_step is not None]
    style = {"color": theme.STRONG[1], "width": 2.5}
    values = [v.tokens_per_step for v in looks]
    figure.add_trace(go.Scatter(x=_places(looks, by), y=values, mode="lines+markers", line=style, showlegend=False))
    if not looks:
        return _with_words(figure, "Appears after the first validation.")
    figure.add_hline(y=1, line={"dash": "dot", "color": theme.STRONG[0]}, annotation_text="standard decoding")
    figure.update_xaxes(rangemode="tozero").update_yaxes(rangemode="tozero", hoverformat=".2f")
    return figure.update_layout(margin={"t": 44})


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many evenly spaced points, always including the last: a curve needs no more."""
    stride = -(-len(points) // most) or 1
    return list(points[::-1][::stride])[::-1]


def _places(points: Sequence[Point | Validation], by: str) -> list[float]:
    return [p.seconds / 60 if by == "minutes" else p.step for p in points]


def tree(draft: Draft, root: str) -> go.Figure:
    """The draft tree of one step, to zoom and hover: x is the depth, y has a separate row for every leaf."""
    figure = _figure("", "tokens ahead", "")
    if not len(draft):
        return _with_words(figure, "This step drafted nothing.")
    depths, rows = draft.depths(), tree_rows(draft)
    tops = [row for row, depth in zip(rows, depths, strict=True) if depth == 1]
    start = (0.0, (tops[0] + tops[-1]) / 2)
    for fate in dict.fromkeys(draft.fate):
        _add_fate(figure, draft, fate, depths, rows, start)
    figure.add_trace(_points([start], [root], ["newest committed token"], "root", theme.STRONG[0], "diamond", 1.0))
    height = max(HEIGHT, 60 + 24 * int(max(rows) + 1))
    figure.update_layout(height=height, margin={"l": 16, "t": 28}, showlegend=True)
    figure.update_xaxes(dtick=1, range=[-0.2, max(depths) + 0.8])
    figure.update_yaxes(visible=False, range=[max(rows) + 0.6, -1])
    return figure


def _add_fate(
    figure: go.Figure,
    draft: Draft,
    fate: Fate,
    depths: tuple[int, ...],
    rows: tuple[float, ...],
    start: tuple[float, float],
) -> None:
    """Edges and nodes of one fate: edges first, so that nodes lie on top."""
    dash, symbol, opacity = FATE_STYLE[fate]
    colour = theme.STRONG[1 if fate is Fate.ACCEPTED else 0]
    nodes = [i for i, f in enumerate(draft.fate) if f is fate]
    x: list[float | None] = []
    y: list[float | None] = []
    for i in nodes:
        parent = draft.parents[i]
        from_x, from_y = start if parent < 0 else (depths[parent], rows[parent])
        x += [from_x, depths[i], None]
        y += [from_y, rows[i], None]
    line = {"color": colour, "dash": dash, "width": 3 if fate is Fate.ACCEPTED else 1}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, opacity=opacity, hoverinfo="skip", showlegend=False))
    places = [(float(depths[i]), rows[i]) for i in nodes]
    labels = [f"{draft.texts[i]!r} {draft.probs[i]:.2f}" for i in nodes]
    hints = [_hint(draft, i) for i in nodes]
    figure.add_trace(_points(places, labels, hints, str(fate), colour, symbol, opacity))


def _points(
    places: list[tuple[float, float]],
    labels: list[str],
    hints: list[str],
    name: str,
    colour: str,
    symbol: str,
    opacity: float,
) -> go.Scatter:
    return go.Scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="markers+text",
        name=name,
        text=[_plain(label) for label in labels],
        hovertext=[_plain(hint) for hint in hints],
        hoverinfo="text",
        textposition="top right",
        marker={"color": colour, "symbol": symbol, "size": 10, "opacity": opacity},
    )


def _hint(draft: Draft, i: int) -> str:
    target = draft.target_probs[i] if draft.target_probs else None
    model = "" if target is None else f", model's probability {target:.2f}"
    return f"{draft.texts[i]!r}, {draft.fate[i]}, drafted with {draft.probs[i]:.2f}{model}"


def _plain(text: str) -> str:
    """Text escaped for plotly, which interprets tags and entities in labels."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _with_words(figure: go.Figure, words: str) -> go.Figure:
    figure.add_annotation(text=words, showarrow=False, xref="paper", yref="paper", x=0.5, y=0.5)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
