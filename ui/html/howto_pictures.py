"""The pictures of "How it works", drawn from the steps of a recorded run as SVG in the colours of the page. No gradio.

A picture is 360 units wide if possible, so that its text is readable on a phone. Each has text for screen readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from specstream.events import Draft, Fate, Step
from specstream.info import top_layers
from specstream.tree import attention_rows

from ..theme import depth_class
from .render import number, tree_rows

WIDTH = 360
CHIP, HIGH = 74, 24  # width and height of a token
LONGEST = 9  # letters of a token that fit into its chip
END = "(end)"
NODE, LEVEL = 84, 76  # room of a leaf across, and of a level down
BELOW = 18  # height of the probability under a token: edges begin below it
CELL = 26  # of the mask
STREAMS = 4  # most that are drawn, so that letters stay readable on a phone; the text lists all
FATE_WORDS = {
    Fate.ACCEPTED: "accepted",
    Fate.REJECTED: "rejected",
    Fate.UNREACHED: "not reached",
    Fate.PRUNED: "pruned",
}


def label(text: str) -> str:
    """A token as written in a picture: without its leading space, and with invisible characters as words."""
    if not text or (text.startswith("<|") and text.endswith("|>")):
        return END
    return text.replace("\n", "⏎").replace("\t", "⇥").strip() or "␣"


def _fitting(text: str) -> str:
    words = label(text)
    return words if len(words) <= LONGEST or words == END else words[: LONGEST - 1] + "…"


def _svg(words: str, width: float, height: float, pieces: Iterable[str]) -> str:
    return (
        f'<svg class="ss-picture" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(words)}" '
        f'style="max-width:{1.35 * width:.0f}px">{"".join(pieces)}</svg>'
    )


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" class="{kind}">{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str, words: str = "") -> str:
    """A rectangle with a line of text in its middle."""
    middle = _text(x + width / 2, y + height / 2 + 4, words) if words else ""
    return f'<g class="{kind}"><rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>{middle}</g>'


def _chip(x: float, y: float, text: str, kind: str) -> str:
    """A token, centred on x."""
    shown = _fitting(text)
    if Fate.REJECTED in kind.split():  # marked beside the text: a line through it would change how punctuation looks
        shown = f"✕ {shown if len(shown) < LONGEST else shown[: LONGEST - 2] + '…'}"
    return _box(x - CHIP / 2, y, CHIP, HIGH, f"ss-chip {kind}", shown)


def _line(points: Sequence[tuple[float, float]], kind: str = "") -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" class="ss-arrow {kind}"/>'


# ---- standard decoding -----------------------------------------------------------------------------------------------


def standard(plain: Sequence[Step], layers: int, shown: int = 4) -> str:
    """Passes of standard decoding side by side: each reads the previous token and produces one."""
    passes = plain[1 : shown + 1]
    tokens = [step.tokens[-1].text for step in plain[: shown + 1]]
    room = WIDTH / shown
    pieces: list[str] = []
    for place, step in enumerate(passes):
        x = room * (place + 0.5)
        if place + 1 < len(passes):  # the output is the next input
            turn = x + room / 2
            pieces.append(
                _line([(x + CHIP / 2, 16), (turn, 16), (turn, 152), (turn + room / 2 - CHIP / 2, 152)], "again")
            )
        pieces += [_line([(x, 140), (x, 114)]), _line([(x, 54), (x, 28)])]
        pieces.append(_box(x - 34, 54, 68, 60, "ss-tower", f"{layers} layers"))
        pieces += [_chip(x, 140, tokens[place], "d0"), _chip(x, 4, tokens[place + 1], "d0")]
        pieces.append(_text(x, 184, f"pass {place + 1}: {1000 * step.total_seconds:.0f} ms", "ss-small"))
    chain = ", then ".join(f"“{label(text)}”" for text in tokens[1:])
    words = f"{len(passes)} passes through all {layers} layers, one after the other, write {chain}: one token each."
    return _svg(words, WIDTH, 190, pieces)


# ---- streams ---------------------------------------------------------------------------------------------------------


def best_at_depths(draft: Draft, count: int) -> list[tuple[str, float] | None]:
    """The likeliest drafted token and its probability at the depths 1 to ``count``; None where nothing was drafted."""
    out: list[tuple[str, float] | None] = []
    for depth in range(1, count + 1):
        here = [i for i, d in enumerate(draft.depths()) if d == depth]
        best = max(here, key=lambda i: draft.probs[i]) if here else None
        out.append(None if best is None else (draft.texts[best], draft.probs[best]))
    return out


def streams(row: str, own: str, draft: Draft, layers: int, top: int, count: int) -> str:
    """The model as a tower: the row of one token goes through all layers, the streams beside it through the top ones.

    ``row`` is the input token, ``own`` the model's own choice after it, ``draft`` the tokens drafted by the streams.
    """
    main, room = 46.0, 66
    columns = [main + 24 + room * (j + 0.5) + CHIP / 2 - 6 for j in range(min(count, STREAMS))]
    width = max(WIDTH, columns[-1] + CHIP / 2 + 2)
    guesses = best_at_depths(draft, count)
    pieces = [
        _line([(main, 216), (main, 192)]),
        _line([(main, 82), (main, 46)]),
        _box(main - 38, 126, 76, 66, "ss-tower", f"{layers - top} layers"),
        _box(main - 38, 82, width - main + 36, 40, "ss-tower ss-top", f"{top_layers(top)} of {layers}"),
        _chip(main, 216, row, "d0"),
        _chip(main, 22, own, "d0"),
        _text(main, 14, "next token", "ss-small"),
    ]
    for j, (x, guess) in enumerate(zip(columns, guesses[:STREAMS], strict=True), 1):
        pieces += [_line([(main + 38, 150), (x, 150), (x, 122)], "again"), _line([(x, 82), (x, 46)])]
        pieces.append(_box(x - 31, 22, 62, HIGH, f"ss-chip {depth_class(j)}", _fitting(guess[0]) if guess else "…"))
        pieces.append(_text(x, 14, f"{j} of {count}" if j == STREAMS < count else f"stream {j}", "ss-small"))
        pieces.append(_text(x, 60, number(guess[1], 2) if guess else "", "ss-small ss-halo"))
    said = "; ".join(f"stream {j} “{label(g[0])}” with {g[1]:.2f}" for j, g in enumerate(guesses, 1) if g)
    words = (
        f"The token “{label(row)}” goes through all {layers} layers, which give the next token “{label(own)}”. Beside "
        f"it {count} streams go through {top_layers(top)} only and guess the tokens after that: {said}."
    )
    return _svg(words, width, 244, pieces)


# ---- the tree --------------------------------------------------------------------------------------------------------


def _places(parents: Sequence[int]) -> tuple[list[tuple[float, float]], tuple[float, float], float, float]:
    """Centres of the nodes at the top edge, that of the root, and width and height of the drawing."""
    draft = Draft(tuple(range(len(parents))), tuple(parents), (0.0,) * len(parents))
    rows, depths = tree_rows(draft), draft.depths()
    leaves = max(rows, default=0) + 1
    room = max(NODE, WIDTH / leaves)
    at = [(room * (row + 0.5), 4.0 + LEVEL * depth) for row, depth in zip(rows, depths, strict=True)]
    tops = [x for (x, _), parent in zip(at, parents, strict=True) if parent < 0]
    root = ((min(tops) + max(tops)) / 2 if tops else WIDTH / 2, 4.0)
    return at, root, room * leaves, LEVEL * (max(depths, default=0) + 1)


def drafted(root: str, draft: Draft) -> str:
    """A draft tree before it is verified: tokens and their drafted probabilities."""
    at, start, width, height = _places(draft.parents)
    pieces = []
    for (x, y), parent in zip(at, draft.parents, strict=True):
        from_x, from_y = at[parent] if parent >= 0 else start
        pieces.append(_line([(from_x, from_y + HIGH + (BELOW if parent >= 0 else 0)), (x, y)], "plain"))
    for (x, y), text, prob, depth in zip(at, draft.texts, draft.probs, draft.depths(), strict=True):
        pieces += [_chip(x, y, text, depth_class(depth)), _text(x, y + HIGH + 13, f"{prob:.2f}", "ss-small ss-halo")]
    pieces.append(_chip(*start, root, "root"))
    return _svg(f"Draft tree below “{label(root)}”: " + "; ".join(_told(draft, False)), width, height, pieces)


def verified(root: str, step: Step) -> str:
    """The same tree after its pass: accepted and rejected nodes, and the model's own token at the end."""
    draft, end = step.draft, _path_end(step.draft)
    own = step.tokens[-1].text
    at, start, width, height = _places([*draft.parents, end])
    pieces = []
    for i, ((x, y), parent) in enumerate(zip(at, [*draft.parents, end], strict=True)):
        from_x, from_y = at[parent] if parent >= 0 else start
        kind = str(draft.fate[i]) if i < len(draft) else "own"
        pieces.append(_line([(from_x, from_y + HIGH + (BELOW if parent >= 0 else 0)), (x, y)], kind))
    nodes = zip(at, draft.texts, draft.fate, draft.target_probs, draft.depths(), strict=False)
    for (x, y), text, fate, prob, depth in nodes:
        colour = depth_class(depth) if fate is Fate.ACCEPTED else ""
        pieces.append(_chip(x, y, text, f"{fate} {colour}"))
        pieces.append(
            _text(x, y + HIGH + 13, FATE_WORDS[fate] if prob is None else f"model: {prob:.2f}", "ss-small ss-halo")
        )
    x, y = at[-1]
    pieces += [_chip(x, y, own, "own"), _text(x, y + HIGH + 13, "chosen by the model", "ss-small ss-halo")]
    pieces.append(_chip(*start, root, "root"))
    words = f"The tree below “{label(root)}” after its pass: {'; '.join(_told(draft, True))}."
    words += f" Then the token chosen by the model: “{label(own)}”."
    return _svg(words, width, height, pieces)


def _path_end(draft: Draft) -> int:
    """The last accepted node; -1, the root, if there is none."""
    return max((i for i, fate in enumerate(draft.fate) if fate is Fate.ACCEPTED), default=-1)


def _told(draft: Draft, fates: bool) -> Iterator[str]:
    for i, (text, prob, parent) in enumerate(zip(draft.texts, draft.probs, draft.parents, strict=True)):
        after = f" after “{label(draft.texts[parent])}”" if parent >= 0 else ""
        yield f"“{label(text)}”{after} " + (FATE_WORDS[draft.fate[i]] if fates else f"with {prob:.2f}")


# ---- the mask --------------------------------------------------------------------------------------------------------


def mask(root: str, draft: Draft) -> str:
    """The attention mask of the pass: a row for every input token, a column for every token that it may attend to."""
    rows = attention_rows(draft.parents)
    names = [root, *draft.texts]
    left, past = 104.0, 58.0
    pieces = [_text(left + past / 2, 14, "text so far", "ss-small")]
    for row, seen in enumerate(rows):
        y = 22 + CELL * row
        pieces.append(
            f'<text x="{left - 8:g}" y="{y + 17:g}" text-anchor="end">{row}  {escape(_fitting(names[row]))}</text>'
        )
        pieces.append(_box(left, y + 1, past - 3, CELL - 3, "ss-cell seen"))
        for column in range(len(rows)):
            kind = "seen" if column in seen else "unseen"
            pieces.append(
                _box(
                    left + past + CELL * column,
                    y + 1,
                    CELL - 3,
                    CELL - 3,
                    f"ss-cell {kind}",
                    "✓" if kind == "seen" else "",
                )
            )
        pieces.append(_text(left + past + CELL * (row + 0.5) - 1, 14, str(row), "ss-small"))
    sees = "; ".join(f"row {i} sees {', '.join(map(str, seen))}" for i, seen in enumerate(rows))
    words = f"Attention of the pass. Every row sees the text so far, its own branch and itself: {sees}."
    return _svg(words, left + past + CELL * len(rows) + 2, 26 + CELL * len(rows), pieces)
