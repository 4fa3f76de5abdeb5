"""Finding an adapter by its name: bundled with the project, one of your own, a folder, or on the Hub. No torch."""

from __future__ import annotations

from pathlib import Path

from specstream.adapters import hub
from specstream.adapters.card import CARD, AdapterError
from specstream.adapters.local import mine
from specstream.hub.catalogue import catalogue
from specstream.hub.download import folder_named
from specstream.installation import data_file

DEFAULT = "e2e"  # the bundled adapter that is loaded when none is named
BUNDLED = data_file("assets/adapters")


def bundled(model: str) -> dict[str, Path]:
    """The adapters that come with the project for a catalogue model (by its name or Hub id), by task name."""
    names = [entry.name for entry in catalogue() if model in (entry.name, entry.hub_id)]
    root = BUNDLED / (names[0] if names else "none")
    return {p.name: p for p in sorted(root.iterdir()) if (p / CARD).is_file()} if root.is_dir() else {}


def find_adapter(name: str, model: str) -> Path | None:
    """The folder of an adapter: "none", "auto" (DEFAULT, else the first bundled one), a bundled task name, the name of
    one of your own, a folder, or ``hub:OWNER/NAME``.

    Raises AdapterError when there is no such adapter.
    """
    have = bundled(model)
    if name == "none":
        return None
    if name == "auto":
        return have.get(DEFAULT) or next(iter(have.values()), None)
    have = mine(model) | have
    if name in have:
        return have[name]
    if folder := folder_named(name):
        return folder
    if name.startswith(hub.HUB):
        return hub.fetch(name)
    known = ", ".join(have) or "none for this model yet"
    raise AdapterError(f"There is no adapter {name!r}: name a folder, hub:OWNER/NAME or one that is here ({known}).")
