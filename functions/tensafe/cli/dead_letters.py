"""`dead-letters`: operations that failed every try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, Limit, Tenant, opened
from tensafe.cli.output import Row, print_object, print_rows, utc

if TYPE_CHECKING:
    from tensafe.operations.dead_letters import DeadLetter

app = typer.Typer(help="List, show and redrive operations that failed every try.", no_args_is_help=True)
LetterId = Annotated[str, typer.Argument(metavar="ID", help="As `dead-letters list` shows it.")]


@app.command("list")
def list_(
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first."""
    with opened(data_dir, key_file) as services:
        rows = [_row(letter) for letter in services.dead_letters.list(tenant, limit=limit)]
    columns = ("id", "tenant", "kind", "died", "cause")
    print_rows(rows, as_json=as_json, columns=columns, empty="no dead letters")


@app.command()
def show(
    letter: LetterId, data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False
) -> None:
    """Show a dead letter and its cause."""
    from tensafe.local.admin import find_letter

    with opened(data_dir, key_file) as services:
        row = _row(find_letter(services, letter))
    print_object(row, as_json=as_json)


@app.command()
def redrive(
    letter: LetterId, data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False
) -> None:
    """Try the operation again; its run takes operations again."""
    from tensafe.local.admin import find_letter

    with opened(data_dir, key_file) as services:
        row = _row(services.dead_letters.redrive(find_letter(services, letter).letter_id))
    print_object({**row, "redriven": True}, as_json=as_json)


def _row(letter: DeadLetter) -> Row:
    return {
        "id": letter.letter_id,
        "tenant": letter.tenant,
        "run": letter.stream_id,
        "seq": letter.seq,
        "kind": letter.kind,
        "cause": letter.cause,
        "died": utc(letter.dead_ms),
    }
