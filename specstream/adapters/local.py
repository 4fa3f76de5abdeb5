"""Your own adapters, each a named folder inside one common folder. No torch."""

from __future__ import annotations

import json
from pathlib import Path

import platformdirs

from specstream.adapters.card import CARD, WEIGHTS
from specstream.hub.catalogue import catalogue
from specstream.hub.download import folder_named, home


def adapters_folder() -> Path:
    """The folder of your adapters: in SPECSTREAM_HOME, else in the user's data folder."""
    return home(platformdirs.user_data_path("specstream", appauthor=False)) / "adapters"


def mine(model: str | None = None) -> dict[str, Path]:
    """The folders of your adapters by name; if ``model`` (a name, Hub id or folder) is given, only those for it."""
    root = adapters_folder()
    try:
        folders = sorted(root.iterdir())
    except OSError:  # nothing was trained yet
        return {}
    found = {folder.name: base(folder) for folder in folders}
    return {
        name: root / name for name, of in found.items() if of is not None and (model is None or same_model(of, model))
    }


def base(folder: Path) -> str | None:
    """The base model named by the card of an adapter; None if there is no readable adapter."""
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))["base"]
        return found if isinstance(found, str) and (folder / WEIGHTS).is_file() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def same_model(one: str, other: str) -> bool:
    """Whether two names refer to the same base model."""
    return _full(one) == _full(other)


def _full(model: str) -> str:
    """The canonical name of a model: the Hub id of a catalogue name, the absolute path of a folder."""
    known = {entry.name: entry.hub_id for entry in catalogue()}
    if model in known:
        return known[model]
    folder = folder_named(model)
    return str(folder.resolve()) if folder else model
