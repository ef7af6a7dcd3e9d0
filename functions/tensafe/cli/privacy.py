"""`privacy`: what the privacy ledger says."""

from __future__ import annotations

from typing import Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, opened
from tensafe.cli.output import print_object, print_rows

app = typer.Typer(help="Show what privacy domains have spent.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Show what privacy domains have spent."""


@app.command()
def show(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The name of the dataset.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="T", help="Needed if several tenants have a domain of this name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the privacy loss of all that a domain's runs have released."""
    from dataclasses import asdict

    with opened(data_dir, key_file, doing="accounting") as services:
        from tensafe.local.admin import show_domain

        statement = asdict(show_domain(services, domain, tenant))
    runs = [dict(run) for run in statement.pop("runs")]
    if as_json:
        print_object({**statement, "runs": runs}, as_json=True)
        return
    print_object(statement, as_json=False)
    columns = ("run_id", "epsilon", "steps", "participations", "max_participations", "noise_multiplier")
    typer.echo("")
    print_rows(runs, as_json=False, columns=columns, empty="no runs")
