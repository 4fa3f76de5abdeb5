"""``models``: models known by name."""

from __future__ import annotations

import click

from specstream.cli.output import progress, progress_done


@click.group("models")
def models_command() -> None:
    """Models known by name: list, pull."""


@models_command.command("list")
def models_list() -> None:
    """List known models and the adapters bundled for them."""
    from specstream.adapters.find import bundled
    from specstream.hub.catalogue import catalogue

    for entry in catalogue():
        have = ", ".join(bundled(entry.name)) or "no adapter yet"
        click.echo(f"{entry.name:16} {entry.hub_id:40} {entry.size:>8}  {entry.licence:12} {have}")


@models_command.command("pull")
@click.argument("name")
@click.option("--accept-licence", is_flag=True, help="State that you have read and accept the model's licence.")
def models_pull(name: str, accept_licence: bool) -> None:
    """Download a model, so that it loads without a network."""
    from specstream.hub.catalogue import accept_terms, resolve

    if accept_licence:
        accept_terms(name)
    try:
        source = resolve(name, progress)
    finally:
        progress_done()
    click.echo(f"{name}: {source.origin}")
