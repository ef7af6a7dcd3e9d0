"""`privacy`: what the privacy ledger says, and its proof for others."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from tensafe.cli import privacy_evidence
from tensafe.cli.options import AsJson, DataDir, KeyFile, opened
from tensafe.cli.output import print_object, print_rows, utc

_HELP: Final = "Show, export and verify what privacy domains have spent."

app = typer.Typer(help=_HELP, no_args_is_help=True)

Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="The name of the dataset.")]
DomainTenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="T", help="Needed if several tenants have a domain of this name."),
]


@app.callback(help=_HELP)
def group() -> None:
    """Show, export and verify what privacy domains have spent."""


@app.command()
def show(
    domain: Domain,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: DomainTenant = None,
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


@app.command()
def ledger(
    domain: Domain,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: DomainTenant = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=1_000_000, help="The last so many rows.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Show the rows of a domain's ledger: one charged step each, oldest first."""
    with opened(data_dir, key_file) as services:
        from tensafe.local.admin import ledger_rows

        rows = ledger_rows(services, domain, tenant, limit=limit)
    if not as_json:
        rows = [{**row, "at": utc(float(str(row["at_ms"])))} for row in rows]
    columns = ("seq", "run_id", "step", "at", "state", "units", "participations", "epsilon", "hash")
    print_rows(rows, as_json=as_json, columns=columns, empty="no step was charged yet")


privacy_evidence.register(app)
