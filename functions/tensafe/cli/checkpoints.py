"""`checkpoints`: saved weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tensafe.cli.options import AsJson, DataDir, KeyFile, Limit, Tenant, Yes, confirm, opened
from tensafe.cli.output import Row, print_object, print_rows, progress, size, utc

if TYPE_CHECKING:
    from tensafe.operations.checkpoints import Checkpoint

app = typer.Typer(help="List, show, delete and export saved weights.", no_args_is_help=True)
CheckpointPath = Annotated[
    str, typer.Argument(metavar="PATH", help="tinker://RUN/KIND/NAME, as `checkpoints list` shows it.")
]


@app.command("list")
def list_(
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    tenant: Tenant = None,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="Of this run alone.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List checkpoints, newest first."""
    from tensafe.local.admin import list_checkpoints

    with opened(data_dir, key_file) as services:
        found = list_checkpoints(services, tenant, run, limit=limit)
    columns = ("path", "tenant", "size", "created", "expires")
    rows = [_row(checkpoint) for checkpoint in found]
    print_rows(rows, as_json=as_json, columns=columns, empty="no checkpoints")


@app.command()
def show(
    path: CheckpointPath, data_dir: DataDir = None, key_file: KeyFile = None, as_json: AsJson = False
) -> None:
    """Show a checkpoint: size, digest of its ciphertext, adapter shape. Not its weights."""
    from tensafe.local.admin import find_checkpoint

    with opened(data_dir, key_file) as services:
        checkpoint = find_checkpoint(services, path)
    print_object({**_row(checkpoint), "details": dict(checkpoint.details)}, as_json=as_json)


@app.command()
def delete(
    path: CheckpointPath,
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a checkpoint for ever: its key first, then its ciphertext."""
    from tensafe.local.admin import delete_checkpoint, find_checkpoint

    with opened(data_dir, key_file, doing=None) as services:
        checkpoint = find_checkpoint(services, path)
        confirm(f"Delete {path} of tenant {checkpoint.tenant}?", yes)
        with progress("deleting"):
            delete_checkpoint(services, checkpoint)
    print_object({"path": path, "deleted": True}, as_json=as_json)


@app.command()
def export(
    path: CheckpointPath,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, made readable by you alone.")],
    data_dir: DataDir = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Decrypt a checkpoint into a file.

    Sampler and external weights are a tar of adapter_config.json and adapter_model.safetensors for PEFT;
    training weights are the trainer's own format. The file is not encrypted any more.
    """
    from tensafe.local.admin import export_checkpoint, find_checkpoint

    with opened(data_dir, key_file, doing="exporting") as services:
        checkpoint = find_checkpoint(services, path)
        export_checkpoint(services, checkpoint, output)
    facts = {"path": path, "file": str(output), "size_bytes": checkpoint.ref.size_bytes}
    print_object(facts, as_json=as_json)


def _row(checkpoint: Checkpoint) -> Row:
    return {
        "path": checkpoint.path,
        "tenant": checkpoint.tenant,
        "kind": checkpoint.kind.value,
        "base_model": checkpoint.base_model,
        "size": size(checkpoint.ref.size_bytes),
        "size_bytes": checkpoint.ref.size_bytes,
        "ciphertext_sha256": checkpoint.ref.sha256,
        "artifact_id": checkpoint.artifact_id,
        "created": utc(checkpoint.created_ms),
        "expires": utc(checkpoint.expires_ms),
        "user_metadata": dict(checkpoint.user_metadata),
    }
