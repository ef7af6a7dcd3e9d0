"""Waking the worker of a queue, and those who wait for a result.

A run rings once in each of its free periods (`Leases.free_period`): the number of the period is the
message's dedup id, so that the queue itself drops what rings again, whichever process sends it, for five
minutes after the first. Nothing is lost by that, as long as no message is deleted but by who looked at the
log after the period had ended in which it was sent. An operation is in the log before its process looks
which period it is; so whoever dropped its message for an earlier one has left it to a reader who comes later
than that. Claiming a run ends its period; a worker that receives a message for a run which it may not claim
says `heard` first, looks then, and deletes last.
"""

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


def queue_of(stream: StreamRecord) -> str:
    """The queue whose workers serve the stream."""
    of_kind = train_queue if stream.kind is StreamKind.RUN else sample_queue
    return of_kind(stream.base_model)


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
        either seen by that trainer or finds the lease free and sends the message. One that is free
        needs one message for the whole of its free period.
        """
        if stream.kind is StreamKind.SAMPLER:
            body: dict[str, JsonValue] = {"stream": stream.stream_id, "seq": seq, **_submitted_by()}
            self._queues.send(queue_of(stream), body)
            return
        period = self._leases.free_period(stream.stream_id, margin_s=_LEASE_MARGIN_S)
        if period is not None:
            self._send_run(stream, period)
        self._bell.ring(layout.submitted_topic(queue_of(stream)))

    def remind(self, stream: StreamRecord, seq: int) -> None:
        """Ring again for an open operation, whatever has rung before: that message may be lost."""
        if stream.kind is StreamKind.SAMPLER:
            self.ring(stream, seq)
            return
        self.send_run(stream)
        self._bell.ring(layout.submitted_topic(queue_of(stream)))

    def heard(self, stream_id: str) -> None:
        """A message of the run has come: what is submitted from now on rings anew.

        To be said before the log is looked at.
        """
        self._leases.end_free_period(stream_id, margin_s=_LEASE_MARGIN_S)

    def released(self, stream: StreamRecord) -> None:
        """Ring for a run that its holder released with an operation open, whoever has claimed it since."""
        self._send_run(stream, self._leases.free_period(stream.stream_id, margin_s=_LEASE_MARGIN_S))

    def send_run(self, stream: StreamRecord) -> None:
        """Queue one more message for a run, whoever holds it and whatever has rung."""
        self._send_run(stream, None)

    def _send_run(self, stream: StreamRecord, period: int | None) -> None:
        self._queues.send(
            queue_of(stream),
            {"stream": stream.stream_id, **_submitted_by()},
            group=stream.stream_id,
            dedup_id=None if period is None else _ring_id(stream.stream_id, period),
        )

    def depth(self, queue: str) -> int:
        """About how many messages wait or are in flight, as the queue says."""
        return self._queues.depth(queue)

    def finished(self, stream_id: str) -> None:
        """Wake those who wait for a result of the stream."""
        self._bell.ring(layout.finished_topic(stream_id))


def _ring_id(stream_id: str, period: int) -> str:
    """Dedup id of a run's message in this free period; short enough whatever the run is called."""
    return hashlib.sha256(f"{period}/{stream_id}".encode()).hexdigest()


def _submitted_by() -> dict[str, JsonValue]:
    """The request that rings, for the log lines of whoever hears it; nobody decides by it."""
    request_id = current_request_id()
    return {} if request_id is None else {"request_id": request_id}
