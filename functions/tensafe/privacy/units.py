"""Privacy units: checked ids, tags that stand for them in storage, and participation counts.

A unit id is never stored. Its tag is HMAC-SHA256 under a secret of the privacy domain, cut to 16
bytes: equal ids of a domain have equal tags, and nothing links the tags of two domains. For a million
units the chance that any two share a tag is 2**-89, and it would only make the count too high.
"""

from __future__ import annotations

import hmac
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from tensafe.contracts.errors import IntegrityError, InvalidRequest

TAG_BYTES: Final = 16
MAX_UNITS_PER_STEP: Final = 25_000
"""A step's tags, sealed, with its row make one item of at most 400 KB."""
_TAG_LABEL: Final = b"tensafe/privacy/unit/v1\0"
_SET_LABEL: Final = b"tensafe/privacy/unit-set/v1\0"


def unit_tags(domain_secret: bytes, unit_ids: Iterable[int]) -> list[bytes]:
    """The tags of unit ids (each an int64), in order."""
    return [
        hmac.digest(domain_secret, _TAG_LABEL + struct.pack(">q", unit_id), "sha256")[:TAG_BYTES]
        for unit_id in unit_ids
    ]


def unit_tag(domain_secret: bytes, unit_id: int) -> bytes:
    """What stands for a unit in storage: 16 bytes, a pseudonym under the domain's secret."""
    return unit_tags(domain_secret, (unit_id,))[0]


def set_digest(domain_secret: bytes, tags: Iterable[bytes]) -> str:
    """Keyed digest of a set of tags, to recognise a retry of a step with other units."""
    return hmac.digest(domain_secret, _SET_LABEL + pack(tags), "sha256").hex()


def pack(tags: Iterable[bytes]) -> bytes:
    """Tags as one byte string, sorted, so that it tells nothing of their order in the batch."""
    return b"".join(sorted(tags))


def unpack(packed: bytes) -> list[bytes]:
    """The tags that `pack` wrote. Raises IntegrityError."""
    if len(packed) % TAG_BYTES:
        raise IntegrityError(f"packed unit tags have {len(packed)} bytes, not a multiple of {TAG_BYTES}")
    return [packed[at : at + TAG_BYTES] for at in range(0, len(packed), TAG_BYTES)]


def checked_ids(unit_ids: Sequence[int | None]) -> list[int]:
    """The ids of a request's data, one per datum. Raises InvalidRequest naming the position."""
    for position, unit_id in enumerate(unit_ids):
        if unit_id is None:
            raise InvalidRequest(
                "this run is differentially private: every datum needs dp_unit_id, an int64 tensor of "
                "shape [1] that says whose data it is",
                field=unit_field(position),
            )
        if not -(2**63) <= unit_id < 2**63:
            raise InvalidRequest("dp_unit_id must be an int64", field=unit_field(position))
    return [int(unit_id) for unit_id in unit_ids if unit_id is not None]


def checked_set(unit_ids: Collection[int]) -> list[int]:
    """A step's units, each once. Raises InvalidRequest."""
    ids = checked_ids(list(unit_ids))
    if len(set(ids)) != len(ids):
        raise InvalidRequest("a step names each unit once: its examples are summed before clipping")
    if len(ids) > MAX_UNITS_PER_STEP:
        raise InvalidRequest(
            f"a step may hold at most {MAX_UNITS_PER_STEP} units, this one has {len(ids)}; "
            "use more steps of a smaller batch_size"
        )
    return ids


def unit_field(position: int) -> str:
    """Path of a datum's unit id in the request."""
    return f"data[{position}].loss_fn_inputs.dp_unit_id"


class ParticipationCounts:
    """How many steps of one run each unit took part in, and how long ago.

    At most about 130 bytes per unit in memory, and 60 more if `min_separation` is over 1.
    """

    def __init__(self, min_separation: int = 1) -> None:
        self._counts: Counter[bytes] = Counter()
        self._min_separation = min_separation
        self._last: dict[bytes, int] = {}
        """Index of the last step of each unit; empty if there is no separation to hold."""
        self.largest = 0
        """The largest count of any unit: the m of the accountant."""
        self.steps = 0
        """Steps added, with or without units: the index of the next one."""

    def add(self, tags: Sequence[bytes]) -> None:
        """Count one more step, and one more participation of each unit."""
        self._counts.update(tags)
        self.largest = max(self.largest, max(map(self._counts.__getitem__, tags), default=0))
        if self._min_separation > 1:
            self._last.update(dict.fromkeys(tags, self.steps))
        self.steps += 1

    def largest_after(self, tags: Sequence[bytes]) -> int:
        """What `largest` would be after `add`."""
        return max(self.largest, 1 + max(map(self._counts.__getitem__, tags), default=-1))

    def spent_positions(self, tags: Sequence[bytes], limit: int) -> list[int]:
        """Where in `tags` units stand that have no participation left."""
        return [position for position, tag in enumerate(tags) if self._counts[tag] >= limit]

    def early_positions(self, tags: Sequence[bytes]) -> list[int]:
        """Where in `tags` units stand whose last step is less than `min_separation` steps before the next."""
        return [position for position, tag in enumerate(tags) if self.steps_to_wait(tag) > 0]

    def steps_to_wait(self, tag: bytes) -> int:
        """How many steps must be taken without the unit before it may return; 0 if it may now."""
        last = self._last.get(tag)
        return 0 if last is None else max(0, last + self._min_separation - self.steps)
