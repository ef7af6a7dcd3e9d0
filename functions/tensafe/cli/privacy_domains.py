"""`privacy create`, `list`, `close`: the data sets whose privacy loss is accounted."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, Limit, Tenant, Yes, confirm, opened
from tensafe.cli.output import print_object, print_rows, progress, utc

NEEDED_TENANT = "Whose domain; needed if there are several tenants."


class Unit(StrEnum):
    """What one unit id stands for."""

    RECORD = "record"
    USER = "user"


class Adjacency(StrEnum):
    """What neighbouring data sets are."""

    ZERO_OUT = "zero_out_one_unit"
    ADD_OR_REMOVE = "add_or_remove_one_unit"


def create(  # noqa: PLR0913, PLR0917 - one argument per option
    name: Annotated[str, typer.Argument(metavar="NAME", help="Runs name it as their `domain`.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help='JSON lines, one datum each: {"dp_unit_id": 7, "tokens": [..], "loss_fn_inputs": {..}}.',
        ),
    ],
    unit: Annotated[Unit, typer.Option(help="One datum each, or all data that carry one id.")],
    delta: Annotated[float, typer.Option(metavar="D", help="Of all runs; well below 1 / units.")],
    max_epsilon: Annotated[
        float, typer.Option(metavar="EPS", help="The budget of all runs together, for ever.")
    ],
    adjacency: Annotated[Adjacency, typer.Option(help="Neighbouring data sets.")] = Adjacency.ZERO_OUT,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="T", help=NEEDED_TENANT)] = None,
    as_json: AsJson = False,
) -> None:
    """Register a data set: its units, hashed, and terms that bind all its runs and never change.

    The data are read to hash them and are not stored. Interrupted, run it again.
    """
    from pydantic import ValidationError

    from tensafe.contracts.domains import DomainTerms
    from tensafe.contracts.errors import InvalidRequest

    try:
        terms = DomainTerms(unit=unit.value, adjacency=adjacency.value, delta=delta, max_epsilon=max_epsilon)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        raise InvalidRequest(f"{option}: {problem['msg']}") from None
    with opened(data_dir, key_file, doing=None) as services, progress("hashing the data set"):
        from tensafe.local.domain_admin import create_domain, only_tenant

        domain = create_domain(services, only_tenant(services, tenant), name, terms, data)
    print_object(
        {
            "tenant": domain.tenant,
            "domain": domain.name,
            "state": domain.state,
            "units": domain.units,
            **domain.terms.model_dump(),
            "root": domain.root,
            "manifest_digest": domain.manifest_digest,
            "warnings": list(domain.warnings),
        },
        as_json=as_json,
    )
    for warning in domain.warnings:
        typer.echo(f"warning: {warning}: {_WARNINGS.get(warning, 'see docs/privacy.md')}", err=True)


_WARNINGS = {
    "delta_at_least_one_over_units": "delta is not below 1 / units, which allows publishing one unit's data "
    "whole; every statement will say so"
}


def list_(
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List privacy domains: what they hold and what their runs have spent."""
    from dataclasses import asdict

    with opened(data_dir, key_file) as services:
        from tensafe.local.domain_admin import list_domains

        found = list_domains(services, tenant, limit=limit)
    rows = [{"tenant": owner, **asdict(summary)} for owner, summary in found]
    columns = (
        "name",
        "tenant",
        "state",
        "units",
        "delta",
        "epsilon",
        "max_epsilon",
        "runs",
        "steps",
        "warnings",
    )
    print_rows(rows, as_json=as_json, columns=columns, empty="no privacy domains")


def close(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The registered domain.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="T", help=NEEDED_TENANT)] = None,
    yes: Yes = False,
) -> None:
    """Let nothing be charged to a registered domain any more, for ever; what was saved stays usable."""
    confirm(f"No run can ever train on domain {name!r} again. Close it?", yes)
    with opened(data_dir, key_file, doing=None) as services:
        from tensafe.local.domain_admin import find_overview

        owner = find_overview(services, name, tenant).tenant
        closed = services.domains.close(owner, name)
    typer.echo(f"{name} is closed (since {utc(closed.closed_ms)})")


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command()(create)
    app.command("list")(list_)
    app.command()(close)
