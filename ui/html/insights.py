"""What the logged steps of a run tell beyond its counters: where drafts were accepted, what was wasted, what a smaller
tree would have accepted. Pure; every text is ours or a number, so nothing needs escaping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from specstream.bench.prediction import Shape, cut, trace
from specstream.events import Fate, Lane, Step
from specstream.stats import RunStats, step_cost
from specstream.tree import ranks, widest_on_path

from .render import NOTHING, number

COMPARED = (Fate.ACCEPTED, Fate.REJECTED)
MAX_BUDGET = 1 << 10  # more nodes than any tree has


@dataclass(frozen=True)
class AcceptanceMap:
    """``hits[d, r]``: steps that accepted rank r at depth d; ``reached[d]``: steps that compared a node at depth d."""

    hits: Counter[tuple[int, int]]
    reached: Counter[int]

    def rate(self, depth: int, rank: int) -> float:
        return self.hits[depth, rank] / self.reached[depth]


def acceptance_map(steps: Iterable[Step]) -> AcceptanceMap:
    """Fold the steps of a run in."""
    hits: Counter[tuple[int, int]] = Counter()
    reached: Counter[int] = Counter()
    for draft in (step.draft for step in steps):
        places = list(zip(draft.depths(), ranks(draft), draft.fate, strict=True))
        hits.update((depth, rank) for depth, rank, fate in places if fate is Fate.ACCEPTED)
        reached.update({depth for depth, _, fate in places if fate in COMPARED})
        hits.update({(depth, rank): 0 for depth, rank, fate in places if fate in COMPARED})
    return AcceptanceMap(hits, reached)


@dataclass(frozen=True)
class Smaller:
    """What a part of every drafted tree would have accepted in this run, at the same positions of the text."""

    tokens_per_step: float
    rows_per_step: float


def smaller(steps: Sequence[Step], depth: int = 0, width: int = 0, budget: int = MAX_BUDGET) -> Smaller:
    """The first ``budget`` nodes of the part with at most ``depth`` levels and ``width`` children per node (0: all)."""
    cuts = [cut(trace(step), Shape(budget, width, depth)) for step in steps]
    return Smaller(fmean(tokens for _, tokens in cuts), 1 + fmean(nodes for nodes, _ in cuts))


def panel(steps: Sequence[Step], lanes: dict[Lane, RunStats], speedup: float | None, times: int = 1) -> str:
    """Everything here as HTML, for a run that has ended. ``speedup`` is the median of ``times`` measurements."""
    decode = [step for step in steps if step.index > 0]
    if not any(len(step.draft) for step in decode):
        return ""
    stats = lanes[Lane.METHOD]
    sure = calibration_html(stats) if stats.calibration else ""
    pieces = (
        map_html(acceptance_map(decode)),
        sure,
        waste_html(stats),
        ideal_html(stats, lanes[Lane.BASELINE], speedup, times),
    )
    return f'<div class="ss-insights">{"".join(pieces)}{what_if_html(decode)}</div>'


def _card(title: str, words: str, body: str, wide: bool = False) -> str:
    kind = "ss-card ss-wide" if wide else "ss-card"
    return f'<section class="{kind}"><h3>{title}</h3><p class="ss-words">{words}</p>{body}</section>'


def _table(caption: str, head: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>' for name, cells in rows)
    return (
        f'<div class="ss-scroll" tabindex="0" role="region" aria-label="{caption}"><table class="ss-grid">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _heat(text: str, share: float) -> str:
    return f'<td style="--share:{share:.3f}">{text}</td>'


def map_html(found: AcceptanceMap) -> str:
    """Rows are depths, columns ranks; a cell is the share of the steps that accepted there."""
    top = max(rank for _, rank in found.hits)

    def cell(depth: int, rank: int) -> str:
        if (depth, rank) not in found.hits:
            return f"<td>{NOTHING}</td>"
        rate = found.rate(depth, rank)
        return _heat(f"{rate:.0%}", rate)

    rows = ((f"{d} ahead", (cell(d, r) for r in range(1, top + 1))) for d in sorted(found.reached))
    head = ["", *(f"rank {rank}" for rank in range(1, top + 1))]
    words = "Which drafted token the model agreed with: of the steps that checked tokens so far ahead, the share that "
    words += "accepted the one of this rank (1: drafted as the likeliest)."
    return _card(
        "Acceptance by tokens ahead and rank", words, _table("Acceptance by tokens ahead and rank", head, rows)
    )


FEWEST = 5  # fewest guesses of a kind for a statement


def calibration_words(found: Sequence[tuple[float, float, int]]) -> str:
    """One sentence on how well calibrated the drafts are, from the most common kind of guess."""
    if not (enough := [one for one in found if one[2] >= FEWEST]):
        return "Too few drafted tokens were compared to tell."
    said, right, count = max(enough, key=lambda one: one[2])
    return f"When it says {said:.0%}, it is right {right:.0%} of the time ({count:,} drafted tokens)."


def calibration_html(stats: RunStats) -> str:
    """The confidence of the drafts, and how often they were right."""
    found = stats.calibration

    rows = ((f"{said:.0%}", (_heat(f"{right:.0%}", right), f"<td>{count:,}</td>")) for said, right, count in found)
    title = "How sure it was, and how often it was right"
    return _card(title, calibration_words(found), _table(title, ("it said", "it was right", "tokens"), rows))


def waste_html(stats: RunStats) -> str:
    """Rows put through the model per token kept, split by purpose."""
    written, dropped, streams = stats.decode_tokens, stats.rows - stats.decode_tokens, stats.stream_rows
    per_token = stats.rows_per_token or 0.0
    parts = (("d1", "written", written), ("d0", "discarded", dropped), ("d3", "stream rows (top layers only)", streams))
    total = max(written + dropped + streams, 1)
    bar = "".join(
        f'<span class="ss-fill {colour}" style="width:{100 * n / total:.1f}%"></span>' for colour, _, n in parts
    )
    items = "".join(f'<li><span class="ss-key {c}"></span>{n:,} {name}</li>' for c, name, n in parts)
    words = (
        f"{number(per_token)} rows computed per token written. Standard decoding computes 1: the rest is the price of "
        "a pass that checks many tokens at once, and pays off where a pass costs little more for more rows."
    )
    return _card(
        "Wasted work", words, f'<div class="ss-meter" aria-hidden="true">{bar}</div><ul class="ss-keys">{items}</ul>'
    )


def ideal_html(stats: RunStats, standard: RunStats, speedup: float | None, times: int = 1) -> str:
    """Three speed-ups: with steps at no extra cost, at their measured cost, and as measured."""
    tau, cost = stats.tokens_per_step, step_cost([standard], [stats])
    rows = [("if a step cost no more than a standard one", tau, "tokens per step")]
    if tau and cost and cost >= 1:
        first = ", first measurement" if times > 1 else ""
        note = f"at the measured cost of a step, {cost:.2f} standard steps{first}"
        rows.append(("generation alone", tau / cost, note))
    included = "including the prompt" + (f", median of {times} measurements" if times > 1 else "")
    rows.append(("measured", speedup, included if speedup else "standard decoding was not run to the end"))
    longest = max((value or 0 for _, value, _ in rows), default=1) or 1
    body = "".join(_ideal_row(name, value, note, longest) for name, value, note in rows)
    words = "Speed-up, ideal and measured. " + (_break_even(tau, cost) if tau and cost else "")
    return _card("Ideal and measured speed-up", words, f'<div class="ss-ideal">{body}</div>')


def _break_even(tau: float, cost: float) -> str:
    if cost < 1:  # a step does more work than a standard one, so it can't be cheaper
        return "Timings vary too much to tell what a step costs here: this machine is busy. Measure again."
    verb = "is faster than" if tau > cost else "is no faster than"
    return f"A step must yield {cost:.2f} tokens to break even; it yields {tau:.2f}, so it {verb} standard decoding."


def _ideal_row(name: str, value: float | None, note: str, longest: float) -> str:
    width = 100 * (value or 0) / longest
    return (
        f'<div><span>{name} <small>{note}</small></span><span class="ss-track"><span class="ss-fill d2" '
        f'style="width:{width:.1f}%"></span></span><span class="ss-num">{number(value, 1, "×")}</span></div>'
    )


def what_if_html(steps: Sequence[Step]) -> str:
    """Tokens per step of every narrower and shallower part of the trees."""
    drafts = [step.draft for step in steps if len(step.draft)]
    depths, widths = max(max(d.depths()) for d in drafts), max(max(widest_on_path(d)) for d in drafts)
    most = smaller(steps, depths, widths).tokens_per_step

    def cell(depth: int, width: int) -> str:
        part = smaller(steps, depth, width)
        return _heat(
            f"{part.tokens_per_step:.2f} <small>{part.rows_per_step:.1f} rows</small>", part.tokens_per_step / most
        )

    rows = ((f"depth {d}", (cell(d, w) for w in range(1, widths + 1))) for d in range(1, depths + 1))
    head = ["", *(f"width {w}" for w in range(1, widths + 1))]
    words = (
        "Tokens per step, and rows per step, had each tree been cut to this depth and width; below, to the first nodes:"
        " for a best-first tree that is a smaller budget. Recomputed from the logged trees, without the model, at the "
        "places of this run: a smaller tree would also have stopped at places in between. What a wider or deeper tree "
        "would have accepted is not in the log, so it is not shown."
    )
    return _card(
        "What if the tree were smaller?",
        words,
        _table("What if the tree were smaller", head, rows) + budget_html(steps),
        True,
    )


def budget_html(steps: Sequence[Step]) -> str:
    """Tokens per step by budget: nodes are listed in the order in which they were drafted."""
    most = max(len(step.draft) for step in steps)
    budgets = sorted({0, *range(1, min(most, 8) + 1), *(n for n in (12, 16, 24, 32, 48, 64) if n < most), most})
    found = [smaller(steps, budget=n) for n in budgets]
    rows = [
        (
            "tokens per step",
            (_heat(f"{f.tokens_per_step:.2f}", f.tokens_per_step / found[-1].tokens_per_step) for f in found),
        )
    ]
    return _table("What if the budget were smaller", ["first nodes", *(f"{n}" for n in budgets)], rows)
