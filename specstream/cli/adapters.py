"""``adapters``: trained streams, here and on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from specstream.cli.output import note, one_line


@click.group("adapters")
def adapters_command() -> None:
    """Trained adapters: list, push, pull."""


@adapters_command.command("list")
def adapters_list() -> None:
    """List bundled adapters, your own, and those pulled from the Hub."""
    from specstream.adapters.card import AdapterError, files, read_card
    from specstream.adapters.find import bundled
    from specstream.adapters.hub import fetched
    from specstream.adapters.local import mine
    from specstream.hub.catalogue import catalogue

    have = [(task, folder) for entry in catalogue() for task, folder in bundled(entry.name).items()]
    for name, folder in [*have, *mine().items(), *fetched().items()]:
        try:
            card = read_card(folder)
        except AdapterError as error:
            note(f"{folder}: {error}")
            continue
        size = sum(file.stat().st_size for f in files(card) if (file := folder / f).is_file()) / 1e6
        line = f"{name:24} {card.base:16} {card.task:10} {card.mode:8} {card.gamma:2} streams  {size:5.1f} MB"
        click.echo(one_line("  ".join(filter(None, (line, *card.heads, card.licence)))))


@adapters_command.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create a private repository.")
def adapters_push(folder: Path, repo_id: str, private: bool) -> None:
    """Upload an adapter to the Hugging Face Hub.

    Only its weights, card and README.md are uploaded, nothing else from the folder.
    """
    from specstream.adapters.hub import push

    click.echo(push(folder, repo_id, private))


@adapters_command.command("pull")
@click.argument("repo_id", metavar="OWNER/NAME")
def adapters_pull(repo_id: str) -> None:
    """Download an adapter from the Hugging Face Hub.

    It then loads without a network.
    """
    from specstream.adapters.hub import HUB, fetch

    folder = fetch(repo_id)
    click.echo(f"{folder}: use it with --adapter {HUB}{repo_id.removeprefix(HUB)}")
