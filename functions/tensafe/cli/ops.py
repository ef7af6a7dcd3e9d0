"""`ops`: operations of one run or sampling session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, Limit, opened
from tensafe.cli.output import Row, print_object, print_rows, utc

if TYPE_CHECKING:
    from tensafe.operations.records import Operation

app = typer.Typer(help="List, show and cancel operations.", no_args_is_help=True)
StreamId = Annotated[str, typer.Argument(metavar="RUN", help="A run or a sampling session.")]
Seq = Annotated[int, typer.Argument(metavar="SEQ", min=0, help="The operation's number in its run.")]


@app.command("list")
def list_(
    run: StreamId,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List operations, newest first."""
    from tensafe.local.admin import find_stream

    with opened(data_dir, key_file) as services:
        stream = find_stream(services, run)
        found = services.outcomes.operations(stream.stream_id, limit=limit, descending=True)
    columns = ("seq", "kind", "state", "created", "duration_ms", "failure_code")
    print_rows([_row(one) for one in found], as_json=as_json, columns=columns, empty="no operations")


@app.command()
def show(
    run: StreamId, seq: Seq, data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False
) -> None:
    """Show an operation and why it failed, if it did. Neither its payload nor its result."""
    from tensafe.local.admin import find_stream

    with opened(data_dir, key_file) as services:
        operation = services.outcomes.get(find_stream(services, run), seq)
    print_object(_row(operation), as_json=as_json)


@app.command()
def cancel(
    run: StreamId, seq: Seq, data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False
) -> None:
    """Cancel an operation that has not started, or a sample that runs."""
    from tensafe.local.admin import cancel_operation, find_stream

    with opened(data_dir, key_file) as services:
        operation = cancel_operation(services, find_stream(services, run), seq)
    print_object(_row(operation), as_json=as_json)


def _row(operation: Operation) -> Row:
    failure, finished_ms = operation.failure, operation.finished_ms
    return {
        "run": operation.stream_id,
        "seq": operation.seq,
        "kind": operation.kind.value,
        "state": operation.state.value,
        "created": utc(operation.created_ms),
        "finished": utc(finished_ms),
        "duration_ms": None if finished_ms is None else finished_ms - operation.created_ms,
        "result_size_bytes": operation.result_size_bytes,
        "failure_code": failure.code if failure else None,
        "failure": failure.message if failure else None,
        "field": failure.field if failure else None,
    }
