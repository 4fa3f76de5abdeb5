"""A story as a picture to post (PNG) and as a short animation (WebP), drawn without a browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .. import product, theme
from .story import Piece, Story, Track

WIDTH, HEIGHT, EDGE, GAP = 1200, 630, 40, 18  # pixels; the size that sites show beside a link
FONTS = {False: ("DejaVuSans.ttf", "Arial.ttf"), True: ("DejaVuSans-Bold.ttf", "Arial_Bold.ttf", "Arial Bold.ttf")}
TITLES = (40, 34, 28, 24)  # type sizes of the headline: the first that fits
LARGEST, SMALLEST = 30, 13  # of a lane's text
TWO_COLUMNS = 3  # from so many lanes on
SHORTEST, LONGEST = (
    3000,
    12000,
)  # length of an animation in milliseconds: faster runs are slowed down, longer ones sped up
HOLD, MOST = 3000, 80  # milliseconds of the last frame; frames
INK = theme.LIGHT
Box = tuple[int, int, int, int]  # left, top, right, bottom


@cache
def font(size: int, bold: bool = False) -> Any:
    """A system font; Pillow's own if there is none."""
    for name in FONTS[bold]:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def png(story: Story) -> bytes:
    """The end of the run, with all its information."""
    out = io.BytesIO()
    frame(story, float("inf")).save(out, "PNG", optimize=True)
    return out.getvalue()


def webp(story: Story) -> bytes:
    """The run at its measured pace, or slowed down or sped up by a factor that is shown."""
    moments, factor = list(_moments(story)), pace(story)
    frames = [frame(story, moment, factor) for moment in moments]
    shown = [max(20, round((after - before) / factor)) for before, after in pairwise(moments)]
    out = io.BytesIO()
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=[*shown, HOLD], loop=0, quality=70, method=2
    )
    return out.getvalue()


def pace(story: Story) -> float:
    """Milliseconds of the run per millisecond of the animation: a power of two."""
    total, factor = max((track.total for track in story.tracks), default=0.0), 1.0
    while total and total / factor < SHORTEST:
        factor /= 2
    while total / factor > LONGEST:
        factor *= 2
    return factor


def _moments(story: Story) -> Iterator[float]:
    """The times of events: the start and end of each pass, for at most ``MOST`` passes."""
    ends = sorted({end for track in story.tracks for end, _ in track.passes})
    every = len(ends) // MOST + 1
    yield 0.0
    yield from ends[every - 1 : -1 : every]
    yield from ends[-1:]


def frame(story: Story, moment: float, factor: float = 1.0) -> Image.Image:
    """A frame of the story at a time, in milliseconds of the run."""
    image = Image.new("RGB", (WIDTH, HEIGHT), INK["page"])
    draw = ImageDraw.Draw(image)
    draw.text((EDGE, 26), product.NAME, INK["accent"], font(22, True))
    room = WIDTH - 2 * EDGE
    large = next((f for f in map(_title, TITLES) if draw.textlength(story.headline, f) <= room), _title(TITLES[-1]))
    draw.text((EDGE, 80), fitted(draw, story.headline, large, room), INK["text"], large, anchor="lm")
    prompt = fitted(draw, "Prompt: " + " ".join(story.prompt.split()), font(18), room)
    draw.text((EDGE, 114), prompt, INK["muted"], font(18))
    for track, box in zip(story.tracks, _boxes(len(story.tracks)), strict=True):
        _lane(draw, track, box, moment, max(other.total for other in story.tracks))
    _foot(draw, story, factor)
    return image


def _title(size: int) -> Any:
    return font(size, True)


def _foot(draw: ImageDraw.ImageDraw, story: Story, factor: float) -> None:
    shown = "" if factor == 1 else f"slowed {1 / factor:.0f}×" if factor < 1 else f"{factor:.0f}× as fast as measured"
    words = " · ".join(filter(None, (story.machine, shown)))
    place = product.repository().removeprefix("https://")
    right = WIDTH - EDGE - round(draw.textlength(place, font(16)))
    draw.text((EDGE, HEIGHT - 36), fitted(draw, words, font(16), right - EDGE - GAP), INK["muted"], font(16))
    draw.text((right, HEIGHT - 36), place, INK["muted"], font(16))


def _boxes(count: int) -> Iterator[Box]:
    """The positions of the lanes: one above the other, or in two columns."""
    columns = 2 if count >= TWO_COLUMNS else 1
    rows = -(-count // columns)
    wide = (WIDTH - 2 * EDGE - GAP * (columns - 1)) // columns
    high = (HEIGHT - 150 - 48 - GAP * (rows - 1)) // max(rows, 1)
    for place in range(count):
        left, top = EDGE + place % columns * (wide + GAP), 150 + place // columns * (high + GAP)
        yield left, top, left + wide, top + high


def _lane(draw: ImageDraw.ImageDraw, track: Track, box: Box, moment: float, longest: float) -> None:
    left, top, right, bottom = box
    draw.rounded_rectangle(box, 10, INK["panel"], INK["line"])
    draw.rectangle((left, top, right, top + 4), track.colour)
    facts = track.facts(moment)
    at = right - 16 - round(draw.textlength(facts, font(18)))
    draw.text((left + 16, top + 14), fitted(draw, track.label, font(19, True), at - left - 32), INK["text"],
              font(19, True))  # fmt: skip
    draw.text((at, top + 14), facts, INK["muted"], font(18))
    draw.rounded_rectangle((left + 16, top + 44, right - 16, top + 50), 3, INK["line"])
    share = min(moment, track.total) / longest if longest else 0
    draw.rounded_rectangle((left + 16, top + 44, left + 16 + round(share * (right - left - 32)), top + 50), 3,
                           track.colour)  # fmt: skip
    _text(draw, track, (left + 16, top + 60, right - 16, bottom - 8), moment)


@dataclass(frozen=True)
class Placed:
    """A piece of a token on its line."""

    line: int
    x: float
    width: float
    text: str
    depth: int


def _text(draw: ImageDraw.ImageDraw, track: Track, box: Box, moment: float) -> None:
    """The tokens so far, in the largest type in which the whole text fits; only the end of a longer text."""
    left, top, right, bottom = box
    everything = _pieces(track, float("inf"))
    for size in range(LARGEST, SMALLEST - 1, -1):
        high = round(1.5 * size)
        if len(lines := layout(draw, everything, font(size), right - left)) == 0 or lines[-1].line < _room(box, high):
            break
    placed = layout(draw, _pieces(track, moment), font(size), right - left)
    skipped = max(0, (placed[-1].line + 1 if placed else 0) - _room(box, high))
    for one in placed:
        if one.line >= skipped:
            _piece(draw, one, (left + one.x, top + (one.line - skipped) * high), size)


def _room(box: Box, high: int) -> int:
    return max(1, (box[3] - box[1]) // high)


def _piece(draw: ImageDraw.ImageDraw, one: Placed, at: tuple[float, float], size: int) -> None:
    x, y = at
    if one.depth:
        depth = min(one.depth, theme.DEEPEST)
        draw.rectangle((x, y, x + one.width, y + 1.25 * size), INK[f"tint-{depth}"])
        draw.line((x, y + 1.25 * size, x + one.width, y + 1.25 * size), theme.STRONG[depth], 2)
    draw.text((x, y), one.text, INK["text"], font(size))


def _pieces(track: Track, moment: float) -> list[Piece]:
    """The tokens of the passes that have ended, without the leading space of most texts."""
    found = [token for end, tokens in track.passes if end <= moment for token in tokens]
    return [(found[0][0].lstrip(" "), found[0][1]), *found[1:]] if found else []


def layout(draw: ImageDraw.ImageDraw, pieces: list[Piece], face: Any, width: float) -> list[Placed]:
    """Tokens on lines of this width, broken where a token begins with a space, or where one is longer than a line."""
    out: list[Placed] = []
    line, x = 0, 0.0
    for text, depth in pieces:
        for part, broken in _parts(text):
            line, x = (line + 1, 0.0) if broken else (line, x)
            long = draw.textlength(part, face)
            if x and x + long > width:
                line, x, part = line + 1, 0.0, part.lstrip(" ")
                long = draw.textlength(part, face)
            out.append(Placed(line, x, long, part, depth))
            x += long
    return out


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a token's text, and whether a line ends before each."""
    for place, part in enumerate(text.replace("\t", "    ").split("\n")):
        if part or place:
            yield "".join(letter for letter in part if letter.isprintable()), place > 0


def fitted(draw: ImageDraw.ImageDraw, text: str, face: Any, width: float) -> str:
    """A text that fits this width, cut where it is longer."""
    if draw.textlength(text, face) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if draw.textlength(text[:middle] + "…", face) <= width else (low, middle - 1)
    return text[:low].rstrip() + "…"
