"""``invariance``: which operations are batch-invariant on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from specstream.cli import options
from specstream.cli.output import STDOUT, check_writable, saved


@click.command("invariance")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@options.json_option()
def invariance_command(device: str, json_file: Path | None) -> None:
    """Check which operations are batch-invariant on this machine.

    Such an operation gives a row the same bits whatever rows are computed with it, so a draft changes no token.
    """
    from specstream.bench import invariance
    from specstream.bench.provenance import machine
    from specstream.model.devices import choose_device

    check_writable(json_file)
    where, _ = choose_device(device)
    click.echo(invariance.heading(where) + "\n", err=json_file == STDOUT)
    found = list(invariance.findings(where))
    report = {"machine": machine(), "device": where, "operations": invariance.report(found)}
    with saved(json_file, report, printed=False):
        for line in (*invariance.table(found), "", invariance.verdict(found)):
            click.echo(line)
