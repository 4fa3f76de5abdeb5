"""Finding an adapter by name: bundled with the project, one of your own, a folder, or on the Hub. No torch."""

from __future__ import annotations

from pathlib import Path

from specstream.adapters import hub
from specstream.adapters.card import CARD, AdapterError
from specstream.adapters.local import mine
from specstream.hub.catalogue import catalogue
from specstream.hub.download import folder_named
from specstream.installation import data_file

DEFAULT = "e2e"  # the bundled adapter that is loaded by default
BUNDLED = data_file("assets/adapters")


def bundled(model: str) -> dict[str, Path]:
    """The adapters bundled for a catalogue model (given by its name or Hub id), by task name."""
    names = [entry.name for entry in catalogue() if model in (entry.name, entry.hub_id)]
    root = BUNDLED / (names[0] if names else "none")
    return {p.name: p for p in sorted(root.iterdir()) if (p / CARD).is_file()} if root.is_dir() else {}


def find_adapter(name: str, model: str) -> Path | None:
    """The folder of an adapter, given as "none", "auto" (DEFAULT, else the first bundled one), a bundled task name,
    the name of one of your own, a folder, or ``hub:OWNER/NAME``.

    Raises AdapterError if there is no such adapter.
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
    raise AdapterError(f"There is no adapter {name!r}: give a folder, hub:OWNER/NAME or a known name ({known}).")
