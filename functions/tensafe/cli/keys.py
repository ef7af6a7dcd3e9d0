"""`keys`: API keys of tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, Tenant, opened, parse_duration_s
from tensafe.cli.output import Row, print_object, print_rows, utc

if TYPE_CHECKING:
    from tensafe.auth.keys import ApiKey

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    tenant: Annotated[str, typer.Option(metavar="T", help="Whose key it is.")],
    scope: Annotated[
        list[str], typer.Option(metavar="S[,S]", help="admin, train, sample, audit. Repeatable.")
    ],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="30d", help="s, m, h, d or w. (default: never)")
    ] = None,
    label: Annotated[str, typer.Option(metavar="TEXT", help="To recognise it by.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a key. It is printed once and cannot be shown again."""
    scopes = [one.strip() for given in scope for one in given.split(",") if one.strip()]
    lifetime_s = parse_duration_s(expires_in) if expires_in is not None else None
    with opened(data_dir, key_file) as services:
        key, record = services.api_keys.create(tenant, scopes, label=label, lifetime_s=lifetime_s)
    print_object({"key": key, **_row(record)}, as_json=as_json)


@app.command("list")
def list_(
    data_dir: DataDir = None, key_file: KeyFile = None, tenant: Tenant = None, as_json: AsJson = False
) -> None:
    """List keys, without their secrets."""
    with opened(data_dir, key_file) as services:
        rows = [_row(record) for record in services.api_keys.list(tenant)]
    columns = ("key_id", "tenant", "scopes", "label", "created", "expires", "revoked", "usable")
    print_rows(rows, as_json=as_json, columns=columns, empty="no keys; `tensafe keys create` makes one")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key; requests with it are refused within a second."""
    with opened(data_dir, key_file) as services:
        record = services.api_keys.revoke(key_id)
    print_object(_row(record), as_json=as_json)


def _row(record: ApiKey) -> Row:
    import time

    def at(seconds: int | None) -> str | None:
        return None if seconds is None else utc(seconds * 1000)

    return {
        "key_id": record.key_id,
        "tenant": record.tenant,
        "scopes": [scope.value for scope in record.scopes],
        "label": record.label,
        "created": at(record.created_s),
        "expires": at(record.expires_s),
        "revoked": at(record.revoked_s),
        "usable": record.usable(time.time()),
    }
