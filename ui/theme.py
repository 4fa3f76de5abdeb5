"""One palette for the style sheet, the legend and the charts, light and dark.

``STRONG`` colours draw lines and bars and must be visible on both backgrounds (3:1); tints are behind text, which keeps
the contrast for reading (4.5:1). A token's colour shows its depth: 0 is the target's own, 1 and deeper were drafted.
"""

from __future__ import annotations

DEEPEST = 5  # deeper tokens share the last colour

LIGHT = {
    "page": "#ffffff",
    "panel": "#f8fafc",
    "dim": "#eceff4",
    "text": "#0f172a",
    "muted": "#526077",
    "line": "#cbd5e1",
    "rejected": "#525e74",
    "unreached": "#687386",
    "good": "#116b3c",
    "warn": "#8a4b04",
    "bad": "#b42318",
    "accent": "#0f766e",
    "tint-1": "#cdeee6",
    "tint-2": "#d3e6fb",
    "tint-3": "#e2defc",
    "tint-4": "#f7d9f2",
    "tint-5": "#fde0c8",
}
DARK = {
    "page": "#0b1120",
    "panel": "#141d2f",
    "dim": "#1b2436",
    "text": "#e8edf5",
    "muted": "#a3b0c4",
    "line": "#3a4760",
    "rejected": "#94a3b8",
    "unreached": "#8592a8",
    "good": "#5fd39a",
    "warn": "#f2b35e",
    "bad": "#ff9388",
    "accent": "#2dd4bf",
    "tint-1": "#0d3c36",
    "tint-2": "#133254",
    "tint-3": "#2d2762",
    "tint-4": "#4a1f45",
    "tint-5": "#4c2a13",
}
STRONG = {0: "#64748b", 1: "#0d9184", 2: "#2f7fd6", 3: "#7a6bf0", 4: "#c14fb5", 5: "#c8661e"}

PLAY = "#0f766e"  # background of white text
LANES = {"method": STRONG[1], "baseline": STRONG[0]}
PHASES = {"draft": STRONG[0], "draft_pass": STRONG[3], "verify": STRONG[2], "accept": STRONG[4], "keep": STRONG[5]}


def depth_class(depth: int) -> str:
    """The CSS class of a token or node of this depth, for the style sheet and the page's script."""
    return f"d{min(max(depth, 0), DEEPEST)}"


def lane(place: int) -> str:
    """The colour of a method by its index in a comparison; the first is standard decoding."""
    return STRONG[place % len(STRONG)]


def variables() -> str:
    """The palette as CSS: custom properties for both themes, and the colours of the phases."""
    strong = "".join(f"--ss-d{depth}:{colour};" for depth, colour in STRONG.items())
    phases = "".join(f".ss-phase-{name}{{background:{colour}}}" for name, colour in PHASES.items())
    return f":root{{--ss-play:{PLAY};{strong}{_properties(LIGHT)}}}\n.dark{{{_properties(DARK)}}}\n{phases}\n"


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two colours written as #rrggbb, from 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _properties(colours: dict[str, str]) -> str:
    return "".join(f"--ss-{name}:{colour};" for name, colour in colours.items())


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
