"""Functions are short: a long one is two functions, or a table."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    ROOT / "app.py",
    *(f for top in ("specstream", "ui", "scripts") for f in sorted((ROOT / top).rglob("*.py"))),
]
MEDIAN, MOST = 10, 60  # lines


def lengths() -> dict[str, int]:
    """Lines of every function, by file and name."""
    found = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
                found[name] = int(node.end_lineno or 0) - node.lineno + 1
    return found


def test_functions_are_short() -> None:
    found = lengths()
    assert statistics.median(found.values()) < MEDIAN
    assert {name: lines for name, lines in found.items() if lines > MOST} == {}
