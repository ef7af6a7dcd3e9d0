"""`runs`: training runs of all tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, Limit, Tenant, Yes, confirm, opened
from tensafe.cli.output import Row, print_object, print_rows, progress, utc

if TYPE_CHECKING:
    from tensafe.operations.records import StreamRecord

app = typer.Typer(help="List, show and erase training runs.", no_args_is_help=True)
RunId = Annotated[str, typer.Argument(metavar="RUN", help="As `runs list` shows it.")]


@app.command("list")
def list_(
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Tenant = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    from tensafe.local.admin import list_runs

    with opened(data_dir, key_file) as services:
        rows = [_row(run) for run in list_runs(services, tenant, limit=limit)]
    columns = ("run", "tenant", "base_model", "state", "created")
    print_rows(rows, as_json=as_json, columns=columns, empty="no runs")


@app.command()
def show(run: RunId, data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Show a run: its settings, its state, how far it is. Nothing of its data."""
    from tensafe.local.admin import find_run, run_progress

    with opened(data_dir, key_file) as services:
        record = find_run(services, run)
        row = {**_row(record), "spec": dict(record.spec), **run_progress(services, record)}
    print_object(row, as_json=as_json)


@app.command()
def erase(
    run: RunId, data_dir: DataDir = None, key_file: KeyFile = None, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Erase a run for ever: its data key first, then everything that was sealed under it."""
    from tensafe.local.admin import erase_run, find_run

    with opened(data_dir, key_file, doing=None) as services:
        record = find_run(services, run)
        confirm(f"Erase {run} of tenant {record.tenant} with its checkpoints?", yes)
        with progress("erasing"):
            erase_run(services, record)
    print_object({"run": run, "state": "erased"}, as_json=as_json)


def _row(record: StreamRecord) -> Row:
    return {
        "run": record.stream_id,
        "tenant": record.tenant,
        "base_model": record.base_model,
        "state": record.state.value,
        "cause": record.cause,
        "created": utc(record.created_ms),
    }
