"""``models``: those that are known by name."""

from __future__ import annotations

import click

from specstream.cli.output import progress, progress_done


@click.group("models")
def models_command() -> None:
    """Models that are known by name: list, pull."""


@models_command.command("list")
def models_list() -> None:
    """Known models and the adapters that come with them."""
    from specstream.adapters.find import bundled
    from specstream.hub.catalogue import catalogue

    for entry in catalogue():
        have = ", ".join(bundled(entry.name)) or "no adapter yet"
        click.echo(f"{entry.name:16} {entry.hub_id:40} {entry.size:>8}  {entry.licence:12} {have}")


@models_command.command("pull")
@click.argument("name")
def models_pull(name: str) -> None:
    """Download a model, so that it loads without a network."""
    from specstream.hub.catalogue import resolve

    try:
        source = resolve(name, progress)
    finally:
        progress_done()
    click.echo(f"{name}: {source.origin}")
