"""A run that this process holds: its lease, its place in the log and its numbers in memory."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

from tensafe.contracts.errors import IntegrityError
from tensafe.operations.leases import Lease
from tensafe.operations.records import Operation, StreamRecord
from tensafe.privacy.dealt_mechanism import DealtMechanism
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.records import RunRef
from tensafe.storage.ports import Message
from tensafe_gpu.trainer.state import RunState

_LENGTH = struct.Struct("<Q")


@dataclass(slots=True)
class PrivateRun:
    """What a DP run needs beside its numbers. `units` are those of the accumulated gradient sum.

    `deal`: of a dealt run, the deal that they belong to; None if nothing has arrived since the last step.
    """

    ref: RunRef
    mechanism: Mechanism | DealtMechanism
    noise_secret: bytes
    units: set[int] = field(default_factory=set)
    deal: int | None = None


@dataclass(slots=True)
class HotRun:
    """Mutable: position and state move together, one operation at a time."""

    stream: StreamRecord
    lease: Lease
    message: Message
    next_seq: int = 0
    snapshot_seq: int = -1
    state: RunState | None = None
    private: PrivateRun | None = None
    last_worked_s: float = 0.0
    last_snapshot_s: float = 0.0
    lost: bool = False
    received_s: float | None = None
    """When the message in hand was received; None while a new one waits in the queue."""
    ahead: int = 1
    """How many operations the next look at the log asks for."""
    looked_behind_s: float = float("-inf")
    """When it was last looked at what waits behind an operation that is missing."""
    begun: Operation | None = None
    """The operation that was begun last, as it stood then."""

    @property
    def size_bytes(self) -> int:
        """Memory that holding the run takes."""
        return self.state.size_bytes if self.state is not None else 0

    @property
    def dirty(self) -> bool:
        """Whether operations have been applied since the last snapshot."""
        return self.next_seq - 1 > self.snapshot_seq


def pack_snapshot(state: RunState, units: set[int], deal: int | None = None) -> bytes:
    """A run's numbers and the units in its accumulator as one blob, sealed by the caller.

    `deal`: that the units belong to, of a dealt run.
    """
    dealt = {} if deal is None else {"deal": deal}
    header = json.dumps({"format": 1, "units": sorted(units), **dealt}).encode()
    return _LENGTH.pack(len(header)) + header + state.dump()


def deal_of_snapshot(data: bytes) -> int | None:
    """The deal that the units of a snapshot belong to; for one that `unpack_snapshot` has read."""
    (length,) = _LENGTH.unpack_from(data)
    deal = json.loads(data[_LENGTH.size : _LENGTH.size + length]).get("deal")
    return None if deal is None else int(deal)


def unpack_snapshot(data: bytes) -> tuple[bytes, set[int]]:
    """The bytes of the state, and the units in its accumulator. Raises IntegrityError."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        header = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        if header["format"] != 1:
            raise IntegrityError(f"the snapshot has format {header['format']!r}; this release reads 1")
        return data[_LENGTH.size + length :], {int(unit) for unit in header["units"]}
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the snapshot is damaged") from error
