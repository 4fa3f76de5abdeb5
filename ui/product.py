"""The product's name and address, for exported files, pictures and galleries."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from functools import cache

from specstream.installation import checkout

NAME = "Speculative Streaming"
PAPER = "https://arxiv.org/abs/2402.11131"
VARIABLE = "SPECSTREAM_REPOSITORY"  # the repository's URL; takes precedence over pyproject.toml and git
SPACE = "SPACE_ID"  # set on a Hugging Face Space, whose files are a repository


@cache
def repository() -> str:
    """The public URL of the program's repository; empty if unknown."""
    space = os.environ.get(SPACE)
    known = (os.environ.get(VARIABLE), _project(), f"https://huggingface.co/spaces/{space}" if space else "", _remote())
    return next((address for address in known if address), "")


def _project() -> str:
    if (folder := checkout()) is None:
        return ""
    try:
        urls = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {}).get("urls", {})
    except OSError:
        return ""
    return next((url for name, url in urls.items() if name.lower() in ("repository", "source", "homepage")), "")


def _remote() -> str:
    """The URL of the checkout's remote; an installed package may be inside somebody else's repository."""
    if (folder := checkout()) is None:
        return ""
    try:
        done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return ""
    return public(done.stdout.strip())


def public(remote: str) -> str:
    """A remote's URL for a browser, without user name or password; empty for a local folder."""
    found = re.fullmatch(r"(?:https://(?:[^@/]*@)?|(?:ssh://)?git@)([\w.-]+\.\w+)[:/](.+?)(?:\.git)?/?", remote)
    return f"https://{found[1]}/{found[2]}" if found else ""
