"""Waking the worker of a queue, and those who wait for a result."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

from tensafe.correlation import current_request_id
from tensafe.operations import layout
from tensafe.operations.leases import Leases
from tensafe.operations.records import StreamKind, StreamRecord
from tensafe.storage.ports import Bell, JsonValue, Queues, QueueSpec

_LEASE_MARGIN_S: Final = 5.0
MAX_RECEIVES: Final = 3


def train_queue(base_model: str) -> str:
    """Name of the FIFO queue (group = run) of a base model's trainers."""
    return f"train-{_slug(base_model)}"


def sample_queue(base_model: str) -> str:
    """Name of the standard queue of a base model's samplers."""
    return f"sample-{_slug(base_model)}"


def queue_specs(base_models: Iterable[str]) -> list[QueueSpec]:
    """Every queue that a deployment with these base models has."""
    specs: list[QueueSpec] = []
    for name in base_models:
        specs.append(QueueSpec(train_queue(name), fifo=True, max_receives=MAX_RECEIVES))
        specs.append(QueueSpec(sample_queue(name), fifo=False, max_receives=MAX_RECEIVES))
    return specs


def _slug(base_model: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", base_model).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(base_model.encode()).hexdigest()[:8]}"


def request_id_in(body: Mapping[str, JsonValue]) -> str | None:
    """The request that rang, as the message says; None if the sweeper or a worker did."""
    found = body.get("request_id")
    return found if isinstance(found, str) else None


class Doorbell:
    """Sends queue messages and rings bells; the log stays the truth."""

    def __init__(self, queues: Queues, bell: Bell, leases: Leases) -> None:
        self._queues = queues
        self._bell = bell
        self._leases = leases

    def ring(self, stream: StreamRecord, seq: int) -> None:
        """Tell a worker that the stream has an open operation.

        A run that a live trainer holds needs no message: the trainer releases its lease first and
        looks at the log again afterwards, so an operation written before this look at the lease is
        either seen by that trainer or finds the lease free and sends the message.
        """
        if stream.kind is StreamKind.SAMPLER:
            body: dict[str, JsonValue] = {"stream": stream.stream_id, "seq": seq, **_submitted_by()}
            self._queues.send(sample_queue(stream.base_model), body)
            return
        queue = train_queue(stream.base_model)
        if not self._leases.held(stream.stream_id, margin_s=_LEASE_MARGIN_S):
            self.send_run(stream)
        self._bell.ring(layout.submitted_topic(queue))

    def send_run(self, stream: StreamRecord) -> None:
        """Queue a message for a run, whoever holds it."""
        self._queues.send(
            train_queue(stream.base_model),
            {"stream": stream.stream_id, **_submitted_by()},
            group=stream.stream_id,
        )

    def finished(self, stream_id: str) -> None:
        """Wake those who wait for a result of the stream."""
        self._bell.ring(layout.finished_topic(stream_id))


def _submitted_by() -> dict[str, JsonValue]:
    """The request that rings, for the log lines of whoever hears it; nobody decides by it."""
    request_id = current_request_id()
    return {} if request_id is None else {"request_id": request_id}
