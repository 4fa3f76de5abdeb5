"""Adapters on the Hugging Face Hub: push and fetch. Only an adapter's own files are transferred."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from specstream.adapters import readme
from specstream.adapters.card import CARD, HEAD_KINDS, WEIGHTS, AdapterError, Card, files, read_card
from specstream.hub.download import first_line, hub_reachable

HUB = "hub:"
FILES = (WEIGHTS, CARD, readme.FILE, *(f"{kind}.safetensors" for kind in HEAD_KINDS))


def fetch(repo_id: str) -> Path:
    """The local folder of an adapter on the Hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, with or without ``hub:``.

    It is downloaded into the Hub's own cache; offline, the copy there is used. Raises AdapterError.
    """
    from huggingface_hub import errors, snapshot_download

    name, revision = _parse(repo_id)
    online = hub_reachable()
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=not online)
        )
    except errors.GatedRepoError:
        raise AdapterError(
            f"The adapter {name} is gated: ask for access on its page on the Hub, then log in with `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise AdapterError(
            f"There is no public adapter {name} on the Hugging Face Hub: check the name, "
            "or log in with `hf auth login` if it is private."
        ) from None
    except errors.RevisionNotFoundError:
        raise AdapterError(f"The adapter {name} has no revision {revision}: omit it or give another.") from None
    except Exception as error:  # the network, the Hub and the disk can fail in any way
        raise AdapterError(_not_fetched(name, online, error)) from error
    _check(folder, f"{name} on the Hugging Face Hub")
    return folder


def _parse(repo_id: str) -> tuple[str, str | None]:
    found = re.fullmatch(r"(?:hub:)?(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?", repo_id.strip())
    if not found:
        raise AdapterError(f"{repo_id!r} is not the name of an adapter on the Hub: write OWNER/NAME.")
    return found[1], found[2]


def _not_fetched(name: str, online: bool, error: Exception) -> str:
    if not online:
        return (
            f"The adapter {name} is not on this machine and the Hugging Face Hub can't be reached: "
            "connect to the internet, or give a folder."
        )
    return f"The download of the adapter {name} failed ({first_line(error)}): try again."


def _check(folder: Path, what: str) -> Card:
    """The card of a folder with a complete adapter. Raises AdapterError."""
    if missing := [f for f in (CARD, WEIGHTS) if not (folder / f).is_file()]:
        raise AdapterError(f"{what} is not an adapter of this program: the file {missing[0]} is missing.")
    card = read_card(folder)
    if missing := [f for f in files(card) if not (folder / f).is_file()]:
        raise AdapterError(f"{what} is incomplete: the file {missing[0]} is missing.")
    return card


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload an adapter: its weights, its card and its README.md, and nothing else. Returns its URL.

    If the folder has no README.md, one is generated on the Hub. Raises AdapterError.
    """
    from huggingface_hub import get_token

    card = _check(folder, str(folder))
    name, revision = _parse(repo_id)
    if revision:
        raise AdapterError(f"Push to {name} without a revision: the Hub assigns it.")
    if not get_token():
        raise AdapterError(
            "You are not logged in to the Hugging Face Hub: run `hf auth login` with a token that has write access."
        )
    if not hub_reachable():
        raise AdapterError("The Hugging Face Hub can't be reached: connect to the internet and try again.")
    try:
        return _upload(folder, card, name, private)
    except AdapterError:
        raise
    except Exception as error:  # the network and the Hub can fail in any way
        raise AdapterError(_not_pushed(name, error)) from error


def _not_pushed(name: str, error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return f"Your token can't write to {name}: log in with one that can (`hf auth login`), or push to another name."
    return f"The upload to {name} failed ({first_line(error)}): try again."


def _upload(folder: Path, card: Card, name: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(name, private=private, exist_ok=True)
    if private and not api.model_info(name).private:
        raise AdapterError(f"{name} already exists and is public: push to another name, or without --private.")
    api.create_commit(
        name,
        operations=_operations(folder, card, name),
        commit_message=f"Streams for {card.base}: {card.task}, {card.mode}",
    )
    return str(address)


def _operations(folder: Path, card: Card, name: str) -> list[Any]:
    """The files to upload, named explicitly: other files in the folder (checkpoints, logs) stay local."""
    from huggingface_hub import CommitOperationAdd

    contents: dict[str, Any] = {f: folder / f for f in (*files(card), readme.FILE)}
    if not (folder / readme.FILE).is_file():
        contents[readme.FILE] = readme.text(card, HUB + name).encode()
    return [CommitOperationAdd(path_in_repo=f, path_or_fileobj=content) for f, content in contents.items()]


def fetched() -> dict[str, Path]:
    """The adapters in the Hub's cache on this machine, by their name for ``--adapter``."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    out = {}
    for repo in sorted(repos, key=lambda r: r.repo_id):
        newest = max(repo.revisions, key=lambda r: r.last_modified, default=None)
        if newest and {WEIGHTS, CARD} <= {f.file_name for f in newest.files} and _readable(newest.snapshot_path):
            out[HUB + repo.repo_id] = newest.snapshot_path
    return out


def _readable(folder: Path) -> bool:
    try:
        read_card(folder)
    except AdapterError:
        return False
    return True
