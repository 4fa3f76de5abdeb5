"""Shared by the event handlers of all tabs and components."""

from __future__ import annotations

from typing import Any

Updates = dict[Any, Any]  # from a component to its new value, or to ``gr.update(...)``
# For events that show their own progress and are no endpoints of the API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
