"""Shared by the event handlers of all tabs and components."""

from __future__ import annotations

from typing import Any

Updates = dict[Any, Any]  # from a component to its new value, or to ``gr.update(...)``
# For events that show their own progress and are no endpoints of the API. Without a component to show progress on:
# with every message of a run, gradio's page looks up each component that it has shown progress on, one by one.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
