"""`tenants`: how much each of them may use."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, opened
from tensafe.cli.output import print_object

app = typer.Typer(help="Show and change the limits of tenants.", no_args_is_help=True)

Limit = Annotated[int | None, typer.Option(min=1, metavar="N")]


@app.callback()
def _group() -> None:
    """One command so far; without this it would be the group itself."""


@app.command()
def limits(  # noqa: PLR0913, PLR0917 - one argument per option
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose limits.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    operations_per_s: Limit = None,
    bytes_per_s: Limit = None,
    open_operations: Limit = None,
    runs: Limit = None,
    sessions: Limit = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to the defaults, before the others.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a tenant's limits, or change those that are given; they hold within half a minute."""
    given = {
        "operations_per_s": operations_per_s,
        "bytes_per_s": bytes_per_s,
        "open_operations": open_operations,
        "runs": runs,
        "sessions": sessions,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    with opened(data_dir, key_file) as services:
        from tensafe.auth.principal import check_tenant

        check_tenant(tenant)
        own = services.quotas.limits
        if reset:
            own.reset(tenant)
        found = own.change(tenant, changes) if changes else own.stored(tenant)
    print_object({"tenant": tenant, **asdict(found)}, as_json=as_json)
