"""Saved artifacts of runs: names, listing, expiry, deletion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, cast

from tensafe.contracts.errors import Conflict, InvalidRequest, NotFound
from tensafe.operations import layout
from tensafe.operations.records import StreamRecord
from tensafe.operations.streams import Stores, now_ms
from tensafe.storage.ports import Check, ConditionFailed, Delete, Item, Items, JsonValue, Key, Put, Write
from tensafe.vault.artifacts import ArtifactRef, Artifacts

UNLISTED: Final = "session-weights-"
"""How names of unlisted sampler weights begin: thousands lie together, and listings step over them."""
STATEMENT: Final = "privacy"
"""Where `details` hold the artifact's privacy statement."""
UNUSED_S: Final = 86_400
"""How long the unlisted weights of a sampling session outlive their last use."""
_USE_NOTED_MS: Final = 3_600_000
"""Uses within this of one another are noted once."""
_PAGE: Final = 500
POINTER_VERSION: Final = 1
"""An artifact's pointer is written once and goes with its record. A record's own version says less: a
name that was deleted and saved anew begins at 1 again."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class CheckpointKind(StrEnum):
    """The segment of a tinker:// path."""

    TRAINING = "weights"
    SAMPLER = "sampler_weights"
    EXTERNAL = "external_weights"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved artifact. `ephemeral` ones belong to a sampling session and are not listed."""

    run_id: str
    tenant: str
    kind: CheckpointKind
    name: str
    base_model: str
    created_ms: int
    ref: ArtifactRef
    artifact_id: str
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    expires_ms: int | None = None
    ephemeral: bool = False
    idle_s: int | None = None
    """Its expiry is pushed out to so long after its last use; None leaves the expiry as it is."""
    version: int = 1
    details: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"tinker://{self.run_id}/{self.kind.value}/{self.name}"

    @property
    def part(self) -> str:
        """What the artifact is, for its associated data."""
        return f"ckpt/{self.kind.value}/{self.name}"

    @property
    def item(self) -> Key:
        return item_key(self.run_id, self.kind, self.name)

    @property
    def listing_sort(self) -> str:
        return f"{self.created_ms:015d}/{self.run_id}/{self.kind.value}/{self.name}"

    def to_body(self) -> dict[str, JsonValue]:
        return {
            "tenant": self.tenant,
            "base_model": self.base_model,
            "created_ms": self.created_ms,
            "blob": self.ref.blob_key,
            "artifact_size_bytes": self.ref.size_bytes,
            "sha256": self.ref.sha256,
            "artifact_id": self.artifact_id,
            "user_metadata": dict(self.user_metadata),
            "expires_ms": self.expires_ms,
            "ephemeral": self.ephemeral,
            "idle_s": self.idle_s,
            "listing": None if self.ephemeral else self.listing_sort,
            "details": dict(self.details),
        }

    @classmethod
    def from_item(cls, run_id: str, item: Item) -> Checkpoint:
        _, kind, name = item.key.sort.split("/", 2)
        body = item.body
        return cls(
            run_id=run_id,
            tenant=str(body["tenant"]),
            kind=CheckpointKind(kind),
            name=name,
            base_model=str(body["base_model"]),
            created_ms=cast(int, body["created_ms"]),
            ref=ArtifactRef(
                str(body["blob"]), item.sealed, cast(int, body["artifact_size_bytes"]), str(body["sha256"])
            ),
            artifact_id=str(body["artifact_id"]),
            user_metadata=cast(Mapping[str, str], body.get("user_metadata") or {}),
            expires_ms=cast("int | None", body.get("expires_ms")),
            ephemeral=bool(body.get("ephemeral")),
            idle_s=cast("int | None", body.get("idle_s")),
            version=item.version,
            details=cast(Mapping[str, JsonValue], body.get("details") or {}),
        )


def check_name(name: str, *, field_name: str = "path") -> str:
    """Return `name` if it can name a checkpoint, else raise InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "a checkpoint name has 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit",
            field=field_name,
        )
    return name


class Checkpoints:
    """Registry of saved artifacts."""

    def __init__(self, stores: Stores, artifacts: Artifacts, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items: Items = stores.items
        self._artifacts = artifacts
        self._clock_ms = clock_ms

    def saving(self, checkpoint: Checkpoint, *, overwrite: bool) -> list[Write]:
        """Writes that register the artifact; for the transaction that completes the save.

        Raises Conflict if the name is taken and `overwrite` is false, or is a private adapter's: whoever
        samples from that path has what its adapter holder answers, and not what is saved.
        """
        key, private = checkpoint.item, self._not_private(checkpoint)
        present = self._items.get(key)
        old = Checkpoint.from_item(checkpoint.run_id, present) if present else None
        if old is not None and not overwrite and not self._expired(old):
            raise Conflict(f"{checkpoint.path} exists; choose another name or set overwrite", field="path")
        writes: list[Write] = [
            Put(
                key,
                checkpoint.to_body(),
                present.version if present else 0,
                sealed=checkpoint.ref.sealed_key,
            ),
            Put(
                layout.artifact_item(checkpoint.artifact_id),
                {"run": checkpoint.run_id, "kind": checkpoint.kind.value, "name": checkpoint.name},
                0,
            ),
        ]
        writes += [*private, *_expiring(checkpoint)]
        # Saved twice within a millisecond, it keeps its entry in the listing.
        listed = old is not None and not old.ephemeral and old.listing_sort == checkpoint.listing_sort
        if not checkpoint.ephemeral and not listed:
            writes.append(Put(_listing(checkpoint.tenant, checkpoint.listing_sort), _pointer(checkpoint), 0))
        if old is not None:
            writes += self._replacing(old, still_listed=listed and not checkpoint.ephemeral)
        return writes

    def _not_private(self, checkpoint: Checkpoint) -> list[Write]:
        """Holds the transaction to it, too. Raises Conflict."""
        if checkpoint.kind is not CheckpointKind.SAMPLER or checkpoint.ephemeral:
            return []
        key = layout.placement_item(checkpoint.run_id, checkpoint.name)
        if self._items.get(key) is not None:
            raise Conflict(
                f"{checkpoint.path} is a private adapter's, which answers from its adapter holder: save "
                "under another name, or end it first (`tensafe adapters revoke PATH`)",
                field="path",
            )
        return [Check(key, 0)]

    def find(self, run_id: str, kind: CheckpointKind, name: str, tenant: str) -> Checkpoint:
        """The tenant's checkpoint. Raises NotFound, also for another tenant's and for an expired one."""
        checkpoint = self.peek(run_id, kind, name)
        if checkpoint is None or checkpoint.tenant != tenant:
            raise NotFound("no such checkpoint")
        return checkpoint

    def peek(self, run_id: str, kind: CheckpointKind, name: str) -> Checkpoint | None:
        """The checkpoint whatever its owner, unless it is absent or expired."""
        try:
            item = self._items.get(item_key(run_id, kind, name))
        except InvalidRequest:
            return None
        if item is None:
            return None
        checkpoint = Checkpoint.from_item(run_id, item)
        if checkpoint.expires_ms is not None and checkpoint.expires_ms <= self._clock_ms():
            return None
        return checkpoint

    def by_artifact(self, artifact_id: str, tenant: str) -> Checkpoint:
        """The tenant's checkpoint with this artifact id. Raises NotFound."""
        try:
            item = self._items.get(layout.artifact_item(artifact_id))
        except InvalidRequest:
            item = None
        if item is None:
            raise NotFound("no such artifact")
        body = item.body
        return self.find(str(body["run"]), CheckpointKind(str(body["kind"])), str(body["name"]), tenant)

    def of_run(self, run_id: str) -> list[Checkpoint]:
        """Listed checkpoints of a run, oldest first."""
        found = (Checkpoint.from_item(run_id, item) for item in self._all_of(run_id))
        live = [c for c in found if not c.ephemeral and not self._expired(c)]
        return sorted(live, key=lambda c: c.created_ms)

    def _all_of(self, run_id: str) -> Iterator[Item]:
        """Records of a run's checkpoints, but for those under the names of unlisted ones."""
        partition, unlisted = layout.stream_partition(run_id), f"ckpt/{CheckpointKind.SAMPLER}/{UNLISTED}"
        for first, last in (("ckpt/", unlisted), (f"{unlisted}~", "ckpt/~")):
            after = first
            while page := self._items.query(partition, first=after, last=last, limit=_PAGE):
                yield from page
                after = layout.after(page[-1].key.sort)

    def of_tenant(self, tenant: str, *, limit: int = 1000) -> list[Checkpoint]:
        """The tenant's listed checkpoints, newest first."""
        entries = self._items.query(f"tenant/{tenant}/checkpoints", limit=limit, descending=True)
        found = (
            self.peek(str(e.body["run"]), CheckpointKind(str(e.body["kind"])), str(e.body["name"]))
            for e in entries
        )
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def read(self, stream: StreamRecord, checkpoint: Checkpoint) -> bytes:
        """The artifact in clear; `stream` is the run that it was saved from."""
        return self._artifacts.read(stream.scope, checkpoint.part, checkpoint.ref)

    def set_ttl(self, checkpoint: Checkpoint, ttl_s: int | None) -> None:
        """Expire it `ttl_s` from now whether it is used or not, or never.

        Raises Conflict if it changed, or another has its name by now.
        """
        expires = None if ttl_s is None else self._clock_ms() + ttl_s * 1000
        if (expires, None) != (checkpoint.expires_ms, checkpoint.idle_s):
            self._change(checkpoint, replace(checkpoint, expires_ms=expires, idle_s=None))

    def used(self, checkpoint: Checkpoint) -> None:
        """Push out the expiry of what lasts as long as it is used; a durable write once an hour at most."""
        if checkpoint.idle_s is None or checkpoint.expires_ms is None:
            return
        expires = self._clock_ms() + checkpoint.idle_s * 1000
        if expires - checkpoint.expires_ms < _USE_NOTED_MS:
            return
        try:
            self._change(checkpoint, replace(checkpoint, expires_ms=expires))
        except Conflict:
            return  # somebody else noted it, or it has just been deleted: the next use finds out

    def _change(self, checkpoint: Checkpoint, changed: Checkpoint) -> None:
        key = checkpoint.item
        put = Put(key, changed.to_body(), checkpoint.version, sealed=checkpoint.ref.sealed_key)
        same = Check(layout.artifact_item(checkpoint.artifact_id), POINTER_VERSION)
        try:
            self._items.write([put, same, *_renoted(checkpoint, changed)])
        except ConditionFailed:
            raise Conflict("the checkpoint is changing; try again") from None

    def delete(self, checkpoint: Checkpoint) -> None:
        """Delete the record with its sealed key, then the ciphertext.

        Raises Conflict if it changed, or another has its name by now.
        """
        writes: list[Write] = [Delete(checkpoint.item, checkpoint.version), *self._replacing(checkpoint)]
        try:
            self._items.write(writes)
        except ConditionFailed:
            raise Conflict("the checkpoint is changing; try again") from None
        self._artifacts.delete(checkpoint.ref)

    def delete_expired(self, artifact_id: str) -> None:
        """Delete the artifact if it is there and its time has come. Raises Conflict if it changed."""
        pointer = self._items.get(layout.artifact_item(artifact_id))
        if pointer is None:
            return
        run_id, kind = str(pointer.body["run"]), CheckpointKind(str(pointer.body["kind"]))
        item = self._items.get(item_key(run_id, kind, str(pointer.body["name"])))
        if item is None:
            return
        checkpoint = Checkpoint.from_item(run_id, item)
        if checkpoint.artifact_id == artifact_id and self._expired(checkpoint):
            self.delete(checkpoint)

    def _replacing(self, checkpoint: Checkpoint, *, still_listed: bool = False) -> list[Write]:
        """Writes that drop what refers to the artifact, and note that its ciphertext is to go.

        They are refused once the artifact has gone, whatever has its name and version since.
        """
        blob_key = checkpoint.ref.blob_key
        writes: list[Write] = [
            Delete(layout.artifact_item(checkpoint.artifact_id), POINTER_VERSION),
            Put(layout.due_blob(self._clock_ms(), blob_key), {"blob": blob_key}, 0),
            *_not_expiring(checkpoint),
        ]
        if not checkpoint.ephemeral and not still_listed:
            writes.append(Delete(_listing(checkpoint.tenant, checkpoint.listing_sort), None))
        return writes

    def _expired(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.expires_ms is not None and checkpoint.expires_ms <= self._clock_ms()


def statement_of(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    """The privacy statement that the artifact was saved with. Raises NotFound for one of before."""
    statement = checkpoint.details.get(STATEMENT)
    if not isinstance(statement, dict):
        raise NotFound("this artifact was saved by a release that made no privacy statements; save it again")
    return statement


def item_key(run_id: str, kind: CheckpointKind, name: str) -> Key:
    """The item that registers a checkpoint."""
    return layout.stream_item(run_id, f"ckpt/{kind.value}/{name}")


def _renoted(checkpoint: Checkpoint, changed: Checkpoint) -> list[Write]:
    if changed.expires_ms == checkpoint.expires_ms:
        return []
    return [*_expiring(changed), *_not_expiring(checkpoint)]


def _expiring(checkpoint: Checkpoint) -> list[Write]:
    """The note that makes an expiring artifact go when its time comes."""
    if checkpoint.expires_ms is None:
        return []
    key = layout.due_artifact(checkpoint.expires_ms, checkpoint.artifact_id)
    return [Put(key, {"artifact_id": checkpoint.artifact_id}, 0)]


def _not_expiring(checkpoint: Checkpoint) -> list[Write]:
    if checkpoint.expires_ms is None:
        return []
    return [Delete(layout.due_artifact(checkpoint.expires_ms, checkpoint.artifact_id), None)]


def _listing(tenant: str, sort: str) -> Key:
    return Key(f"tenant/{tenant}/checkpoints", sort)


def _pointer(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    return {"run": checkpoint.run_id, "kind": checkpoint.kind.value, "name": checkpoint.name}
