"""Logged runs as the Sessions tab shows them: rows, facts, the walk-through, files. No gradio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADERS = ("Started (UTC)", "Prompt", "Model", "Method", "Tokens", "Tokens/s", "Speed-up", "Outcome")
WIDTHS = ("165px", "320px", "170px", "110px", "80px", "90px", "90px", "150px")


def row(run: Mapping[str, Any]) -> list[str]:
    return [
        str(run.get(k, "")) for k in ("started_utc", "prompt", "model", "method", "tokens", "tps", "speedup", "status")
    ]


def run_id(run: Mapping[str, Any]) -> str:
    return str(run["id"])
