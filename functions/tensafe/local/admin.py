"""What an operator may do with the data of any tenant, in either mode: the library of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tensafe.contracts.errors import ConfigurationError, Conflict, InvalidRequest, NotFound
from tensafe.operations import layout
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.dead_letters import DeadLetter
from tensafe.operations.placements import Placement
from tensafe.operations.reader import snapshot_seq
from tensafe.operations.records import Operation, OpState, StreamKind, StreamRecord, StreamState
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.records import head_item
from tensafe.services import Services
from tensafe.storage.ports import JsonValue
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.vault.scope import domain_scope
from tensafe.wire.paths import CheckpointPath


def tenants(services: Services) -> list[str]:
    """Every tenant that ever had a key; who comes by another issuer's tokens alone is not known."""
    return sorted({key.tenant for key in services.api_keys.list()})


def placements(services: Services, tenant: str | None) -> list[Placement]:
    """Private adapters of one tenant or of all, by tenant and path."""
    if tenant is not None:
        return services.placements.of_tenant(tenant)
    found = {one.path: one for one in services.placements.everybodys()}
    found |= {one.path: one for name in tenants(services) for one in services.placements.of_tenant(name)}
    return sorted(found.values(), key=lambda one: (one.tenant, one.path))


def list_runs(services: Services, tenant: str | None, *, limit: int) -> list[StreamRecord]:
    """Runs of one tenant or of all, newest first."""
    names = tenants(services) if tenant is None else [tenant]
    found = [run for name in names for run in services.streams.list_runs(name, limit=limit)]
    return sorted(found, key=lambda run: run.created_ms, reverse=True)[:limit]


def find_stream(services: Services, stream_id: str) -> StreamRecord:
    """The run or sampling session. Raises NotFound, also for what is no id at all."""
    try:
        stream = services.streams.find(stream_id)
    except InvalidRequest:
        stream = None
    if stream is None:
        raise NotFound(f"there is no run {stream_id[:200]!r}; `tensafe runs list` shows them")
    return stream


def find_run(services: Services, run_id: str) -> StreamRecord:
    """The run. Raises NotFound."""
    stream = find_stream(services, run_id)
    if stream.kind is not StreamKind.RUN:
        raise NotFound(f"{run_id} is a sampling session, not a run; `tensafe runs list` shows the runs")
    return stream


def run_progress(services: Services, run: StreamRecord) -> dict[str, JsonValue]:
    """How far a run is: newest operation, first open one, snapshot, tries of the open operation."""
    newest = services.outcomes.operations(run.stream_id, limit=1, descending=True)
    waiting = services.outcomes.first_open(run.stream_id)
    snapshot = services.ports.items.get(layout.stream_item(run.stream_id, "snapshot"))
    return {
        "newest_seq": newest[0].seq if newest else None,
        "first_open_seq": waiting.seq if waiting else None,
        "snapshot_seq": snapshot_seq(snapshot) if snapshot else None,
        "held_by_trainer": services.leases.held(run.stream_id, margin_s=0),
        "tries": max(services.leases.claims(run.stream_id), waiting.tries if waiting else 0),
        "checkpoints": len(services.checkpoints.of_run(run.stream_id)),
    }


def erase_run(services: Services, run: StreamRecord) -> None:
    """Erase the run, then take its wrapped key out of SQLite's own log too; DynamoDB has no such file.

    An interrupted erasure is finished by calling again. Raises Unavailable if the log stayed busy.
    """
    services.streams.erase(run.stream_id, run.tenant)
    scrub(services)


def scrub(services: Services) -> None:
    """Take what was deleted out of SQLite's own log too. Raises Unavailable if the log stayed busy."""
    if isinstance(services.ports.items, SqliteItems):
        services.ports.items.scrub()


def cancel_operation(services: Services, stream: StreamRecord, seq: int) -> Operation:
    """Cancel a pending operation or a running sample. Raises Conflict for what cannot be, NotFound."""
    operation = services.submissions.cancel(stream, seq)
    if operation.state is not OpState.CANCELLED:
        raise Conflict(f"operation {seq} is {operation.state.value}; only a pending one can be cancelled")
    return operation


def find_letter(services: Services, letter_id: str) -> DeadLetter:
    """The dead letter. Raises NotFound, also for what is no id at all."""
    try:
        return services.dead_letters.show(letter_id)
    except (InvalidRequest, NotFound):
        raise NotFound(
            f"there is no dead letter {letter_id[:200]!r}; `tensafe dead-letters list` shows them"
        ) from None


def list_checkpoints(
    services: Services, tenant: str | None, run_id: str | None, *, limit: int
) -> list[Checkpoint]:
    """Listed checkpoints of a run, of a tenant or of all tenants, newest first."""
    if run_id is not None:
        run = find_run(services, run_id)
        found = services.checkpoints.of_run(run_id) if tenant in (None, run.tenant) else []
    else:
        names = tenants(services) if tenant is None else [tenant]
        found = [one for name in names for one in services.checkpoints.of_tenant(name, limit=limit)]
    return sorted(found, key=lambda one: one.created_ms, reverse=True)[:limit]


def find_checkpoint(services: Services, path: str) -> Checkpoint:
    """The checkpoint at `tinker://RUN/KIND/NAME`. Raises InvalidRequest for another form, NotFound."""
    parsed = CheckpointPath.parse(path)
    kind = CheckpointKind(parsed.kind)
    checkpoint = services.checkpoints.peek(str(parsed.run), kind, parsed.name)
    if checkpoint is None:
        if kind is CheckpointKind.SAMPLER and services.placements.peek(str(parsed.run), parsed.name):
            raise NotFound(
                f"{path} is a private adapter, which is not here; `tensafe adapters show` shows it"
            )
        raise NotFound(f"there is no checkpoint {path}; `tensafe checkpoints list` shows them")
    return checkpoint


def delete_checkpoint(services: Services, checkpoint: Checkpoint) -> None:
    """Delete the checkpoint, then take its sealed key out of SQLite's own log too."""
    services.checkpoints.delete(checkpoint)
    scrub(services)


def export_checkpoint(services: Services, checkpoint: Checkpoint, output: Path) -> None:
    """Write the decrypted artifact to a new file, mode 0600. Raises ConfigurationError if it exists."""
    stream = services.streams.find(checkpoint.run_id)
    if stream is None or stream.state is StreamState.ERASED:
        raise NotFound(f"the run of {checkpoint.path} has been erased, and its checkpoints with it")
    data = services.checkpoints.read(stream, checkpoint)
    write_new_file(output, (data,))


def write_new_file(output: Path, parts: Iterable[bytes]) -> None:
    """Write a new file, mode 0600, durably; nothing is left of one that could not be finished.

    Raises ConfigurationError if it exists.
    """
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigurationError(f"{output} exists; choose a new file") from None
    try:
        with open(fd, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(fd)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def abandon_domain(services: Services, tenant: str, domain: str) -> None:
    """Close a domain for ever. Raises NotFound for one that was never charged here."""
    scope = domain_scope(tenant, domain)
    ports = services.ports
    if ports.anchors.get(scope.name) is None and ports.items.get(head_item(scope)) is None:
        raise NotFound(f"tenant {tenant[:128]!r} has no privacy domain {domain[:128]!r}")
    Anchoring(ports.items, ports.anchors).abandon(scope)
