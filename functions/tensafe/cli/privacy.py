"""`privacy`: what the privacy ledger says, and its proof for others."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from tensafe.cli import privacy_domains, privacy_evidence, privacy_statement
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
    """Show how a domain is registered, and the privacy loss of all that its runs have released."""
    from dataclasses import asdict

    with opened(data_dir, key_file, doing="accounting") as services:
        from tensafe.local.domain_admin import find_overview

        overview = find_overview(services, domain, tenant)
    spent, registered = overview.spent, overview.registered
    runs = [asdict(run) for run in spent.runs] if spent else []
    facts: dict[str, object] = {
        "tenant": overview.tenant,
        "domain": overview.name,
        "state": registered.state if registered else "unregistered",
        "delta": overview.delta,
        "epsilon": spent.epsilon if spent else 0.0,
        "steps": spent.steps if spent else 0,
        "head_hash": spent.head_hash if spent else None,
    }
    if registered is not None:
        facts |= {
            **registered.terms.model_dump(exclude={"delta"}),
            "units": registered.units,
            "root": registered.root,
            "manifest_digest": registered.manifest_digest,
            "warnings": list(registered.warnings),
            "created": utc(registered.created_ms),
            "closed": utc(registered.closed_ms),
        }
    if as_json:
        print_object({**facts, "runs": runs}, as_json=True)
        return
    print_object(facts, as_json=False)
    columns = (
        "run_id",
        "mode",
        "epsilon",
        "attested_epsilon",
        "steps",
        "max_steps",
        "abandoned",
        "participations",
        "max_participations",
        "noise_multiplier",
    )
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
        from tensafe.local.domain_admin import ledger_rows

        rows = ledger_rows(services, domain, tenant, limit=limit)
    if not as_json:
        rows = [{**row, "at": utc(float(str(row["at_ms"])) or None)} for row in rows]
    columns = ("seq", "run_id", "step", "at", "state", "units", "participations", "epsilon", "hash")
    print_rows(rows, as_json=as_json, columns=columns, empty="no step was charged yet")


privacy_domains.register(app)
privacy_statement.register(app)
privacy_evidence.register(app)
