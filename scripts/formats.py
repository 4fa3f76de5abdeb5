"""Shared by scripts that compare number formats: which of them this machine has."""

from __future__ import annotations

from collections.abc import Iterable

import click

from specstream.hub.download import ModelError
from specstream.model.devices import choose_dtype


def available(names: Iterable[str], device: str = "cpu") -> list[str]:
    """The formats among ``names`` that a device has. The others are reported on standard error, each with its reason.

    Raises ClickException if none is left.
    """
    found = []
    for name in dict.fromkeys(name.strip() for name in names):
        try:
            choose_dtype(name, device)
            found.append(name)
        except ModelError as error:
            click.echo(f"{name} is left out: {error}", err=True)
    if not found:
        raise click.ClickException("No number format is left: name another one.")
    return found
