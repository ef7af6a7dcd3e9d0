"""Streams and operations as values, and how they are kept in items."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

from tensafe.contracts.errors import Category, TensafeError
from tensafe.storage.ports import Item, JsonValue
from tensafe.vault.scope import Scope, stream_scope
from tensafe.vault.vault import Stored


class StreamKind(StrEnum):
    """A run is ordered by seq; a sampling session is not."""

    RUN = "run"
    SAMPLER = "sampler"


class StreamState(StrEnum):
    """Blocked: an operation died and was set aside. Erased: the data key is gone."""

    ACTIVE = "active"
    BLOCKED = "blocked"
    ERASED = "erased"


class OpState(StrEnum):
    """Pending and running are open; the rest are final, except that a redrive reopens a failure."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (OpState.PENDING, OpState.RUNNING)


class OpKind(StrEnum):
    """What an operation asks a GPU task to do."""

    CREATE = "create"
    LOAD = "load"
    FORWARD_BACKWARD = "forward_backward"
    OPTIM_STEP = "optim_step"
    SAVE = "save"
    SAVE_SAMPLER = "save_sampler"
    SAVE_EXTERNAL = "save_external"
    SAMPLE = "sample"
    TEXT = "text"
    NOOP = "noop"


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A run (Tinker `model_id`) or a sampling session. `spec` holds no training data."""

    stream_id: str
    tenant: str
    kind: StreamKind
    base_model: str
    state: StreamState
    created_ms: int
    version: int
    spec: Mapping[str, JsonValue] = field(default_factory=dict)
    cause: str | None = None
    session_id: str | None = None

    @property
    def scope(self) -> Scope:
        return stream_scope(self.tenant, self.stream_id)

    @classmethod
    def from_item(cls, stream_id: str, item: Item) -> StreamRecord:
        body = item.body
        return cls(
            stream_id=stream_id,
            tenant=str(body["tenant"]),
            kind=StreamKind(str(body["kind"])),
            base_model=str(body["base_model"]),
            state=StreamState(str(body["state"])),
            created_ms=cast(int, body["created_ms"]),
            version=item.version,
            spec=cast(Mapping[str, JsonValue], body.get("spec") or {}),
            cause=cast("str | None", body.get("cause")),
            session_id=cast("str | None", body.get("session_id")),
        )

    def to_body(self) -> dict[str, JsonValue]:
        return {
            "tenant": self.tenant,
            "kind": self.kind.value,
            "base_model": self.base_model,
            "state": self.state.value,
            "created_ms": self.created_ms,
            "spec": dict(self.spec),
            "cause": self.cause,
            "session_id": self.session_id,
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation failed, safe to show to its owner."""

    code: str
    message: str
    category: Category
    field: str | None = None

    @classmethod
    def of(cls, error: TensafeError) -> Failure:
        return cls(error.code, error.message, error.category, error.field)

    @classmethod
    def from_body(cls, body: Mapping[str, JsonValue]) -> Failure:
        return cls(
            str(body["code"]),
            str(body["message"]),
            "user" if body["category"] == "user" else "server",
            cast("str | None", body.get("field")),
        )

    def to_body(self) -> dict[str, JsonValue]:
        return {"code": self.code, "message": self.message, "category": self.category, "field": self.field}


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of a stream's log; immutable but for its state and outcome."""

    stream_id: str
    seq: int
    kind: OpKind
    state: OpState
    created_ms: int
    fingerprint: str
    version: int
    content_type: str = "application/json"
    finished_ms: int | None = None
    failure: Failure | None = None
    result_type: str | None = None
    result_size_bytes: int = 0
    tries: int = 0
    """Times that a worker began it; more than one means that a worker died or failed on it."""
    owner: str | None = None
    """The worker that runs it, or ran it last."""
    request_id: str | None = None
    """The HTTP request that submitted it."""
    traceparent: str | None = None
    """The client's span around that request."""
    payload_inline: bool = False
    """Whether its payload is all in its item, with no blob to delete besides."""

    @classmethod
    def from_item(cls, stream_id: str, seq: int, item: Item) -> Operation:
        body = item.body
        failure = body.get("failure")
        return cls(
            stream_id=stream_id,
            seq=seq,
            kind=OpKind(str(body["kind"])),
            state=OpState(str(body["state"])),
            created_ms=cast(int, body["created_ms"]),
            fingerprint=str(body["fingerprint"]),
            version=item.version,
            content_type=str(body["content_type"]),
            finished_ms=cast("int | None", body.get("finished_ms")),
            failure=Failure.from_body(cast(Mapping[str, JsonValue], failure)) if failure else None,
            result_type=cast("str | None", body.get("result_type")),
            result_size_bytes=cast(int, body.get("result_size_bytes") or 0),
            tries=cast(int, body.get("tries") or 0),
            owner=cast("str | None", body.get("owner")),
            request_id=cast("str | None", body.get("request_id")),
            traceparent=cast("str | None", body.get("traceparent")),
            payload_inline=bool(body.get("inline")),
        )

    def to_body(self) -> dict[str, JsonValue]:
        return {
            "kind": self.kind.value,
            "state": self.state.value,
            "created_ms": self.created_ms,
            "fingerprint": self.fingerprint,
            "content_type": self.content_type,
            "finished_ms": self.finished_ms,
            "failure": self.failure.to_body() if self.failure else None,
            "result_type": self.result_type,
            "result_size_bytes": self.result_size_bytes,
            "tries": self.tries,
            "owner": self.owner,
            "request_id": self.request_id,
            **({"traceparent": self.traceparent} if self.traceparent else {}),
            **({"inline": True} if self.payload_inline else {}),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What a completed operation returned."""

    content_type: str
    data: bytes


def stored_to_body(stored: Stored) -> dict[str, JsonValue]:
    """Body of an item that keeps a payload or result; inline bytes go to the item's `sealed`."""
    return {"blob": stored.blob_key, "size_bytes": stored.size_bytes}


def stored_from_item(item: Item) -> Stored:
    """The payload or result that an item keeps."""
    blob = item.body.get("blob")
    return Stored(item.sealed, str(blob) if blob else None, cast(int, item.body["size_bytes"]))


def seq_of(item: Item) -> int:
    """The sequence number in an `op/`, `pay/` or `res/` sort key."""
    return int(item.key.sort.split("/", 1)[1])


def b64(data: bytes) -> str:
    """Bytes as text for a JSON body."""
    return base64.b64encode(data).decode()
