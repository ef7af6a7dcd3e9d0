"""Exclusive, expiring ownership of a run, with fencing.

The version of the `fence` item is the fencing token: it changes with every claim and never with a
heartbeat, so "the token is still mine" is `Check(fence, token)` in the transaction that writes a
result. A process that lost its lease without noticing can therefore compute, but not write.

`claims` counts claims since the run was last restored. With the tries of an operation it tells poison
(a restore, or an operation, that kills every trainer that takes it) from bad luck: a run that was
merely in the hands of a process which something else killed is not counted against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import TensafeError
from tensafe.operations import layout
from tensafe.operations.records import StreamState
from tensafe.operations.streams import now_ms
from tensafe.storage.ports import Check, ConditionFailed, Delete, Item, Items, JsonValue, Key, Put, Write

MAX_TRIES: Final = 3
"""Tries of an operation, or of a restore, before the operation is set aside as poison."""
_PAGE: Final = 100
_FREE: Final[dict[str, JsonValue]] = {"owner": "", "expires_ms": 0}
"""A lease that nobody has."""


class LeaseLost(TensafeError):
    """Another owner has the run, or it was erased; stop and write nothing."""

    code = "lease_lost"


@dataclass(frozen=True, slots=True)
class Lease:
    """A held lease. `token` is the fencing token, `claims` the claims since a restore, ours included."""

    stream_id: str
    owner: str
    token: int
    claims: int

    @property
    def check(self) -> Check:
        """The condition under which this holder may still write."""
        return Check(layout.stream_item(self.stream_id, "fence"), self.token)


class Leases:
    """Claims, extends and releases leases."""

    def __init__(self, items: Items, *, lease_s: float, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = items
        self._lease_ms = int(lease_s * 1000)
        self._clock_ms = clock_ms

    @property
    def lease_s(self) -> float:
        """How long a lease lasts after a claim or an extension."""
        return self._lease_ms / 1000

    def claim(self, stream_id: str, owner: str, *, receipt: str = "", queue: str = "") -> Lease | None:
        """Take the lease if it is free or has run out.

        None if somebody else holds it, or the run takes no operations: blocked, erased, unknown.

        `queue` and `receipt` name the doorbell message in hand, so that a supervisor which saw this
        owner die can hand it back at once.
        """
        meta = self._items.get(layout.stream_item(stream_id, "meta"))
        if meta is None or meta.body["state"] != StreamState.ACTIVE:
            return None
        lease_key, fence_key, claims_key = _keys(stream_id)
        lease, fence, claims = (self._items.get(key) for key in (lease_key, fence_key, claims_key))
        if lease is not None and self._live(lease) and lease.body["owner"] != owner:
            return None
        count = claims_of(claims) + 1
        worker = Key(layout.worker_partition(owner), stream_id)
        present = self._items.get(worker)
        writes: list[Write] = [
            Put(lease_key, self._lease_body(owner), _version(lease)),
            Put(fence_key, {"owner": owner}, _version(fence)),
            Put(claims_key, {**(claims.body if claims else {}), "claims": count}, _version(claims)),
            Put(worker, {"queue": queue, "receipt": receipt}, _version(present)),
            # Erasing and blocking change the fence: a claim that came after would hold a good token.
            Check(meta.key, meta.version),
        ]
        try:
            self._items.write(writes)
        except ConditionFailed:
            return None
        return Lease(stream_id, owner, _version(fence) + 1, count)

    def extend(self, lease: Lease) -> None:
        """Push the expiry out. Raises LeaseLost; the holder must then stop at once."""
        key = layout.stream_item(lease.stream_id, "lease")
        item = self._items.get(key)
        if item is None:
            raise LeaseLost("the lease is gone")
        try:
            self._items.write([Put(key, self._lease_body(lease.owner), item.version), lease.check])
        except ConditionFailed:
            raise LeaseLost("another trainer has claimed the run, or it was erased") from None

    def restored(self, lease: Lease) -> None:
        """The restore did not kill us: the count of claims starts anew. Raises LeaseLost."""
        key = layout.stream_item(lease.stream_id, "claims")
        claims = self._items.get(key)
        try:
            self._items.write([lease.check, Put(key, {"claims": 0}, _version(claims))])
        except ConditionFailed:
            raise LeaseLost("another trainer has claimed the run, or it was erased") from None

    def release(self, lease: Lease) -> None:
        """Give the run up in good order. Raises LeaseLost."""
        self._free(lease, {"claims": 0})

    def abandon(self, lease: Lease, reason: str, *, counted: bool = True) -> None:
        """Give the run up after a failure: free for the next claim, and the count of claims stands.

        `counted` is false if the failure was not the run's. Raises LeaseLost.
        """
        claims = claims_of(self._items.get(layout.stream_item(lease.stream_id, "claims")))
        self._free(lease, {"claims": claims if counted else max(0, claims - 1), "reason": reason})

    def _free(self, lease: Lease, claims_body: dict[str, JsonValue]) -> None:
        lease_key, _, claims_key = _keys(lease.stream_id)
        item, claims = self._items.get(lease_key), self._items.get(claims_key)
        writes: list[Write] = [
            _spent(lease),
            Put(claims_key, claims_body, _version(claims)),
            Put(lease_key, _FREE, _version(item)),
            Delete(Key(layout.worker_partition(lease.owner), lease.stream_id), None),
        ]
        try:
            self._items.write(writes)
        except ConditionFailed:
            raise LeaseLost("another trainer has claimed the run, or it was erased") from None

    def held(self, stream_id: str, *, margin_s: float) -> bool:
        """Whether somebody holds the run and will for `margin_s` more."""
        return self._kept(self._items.get(layout.stream_item(stream_id, "lease")), margin_s)

    def free_period(self, stream_id: str, *, margin_s: float) -> int | None:
        """The number of the free period that the run is in; None if it is held, as in `held`.

        Claims, heartbeats and releases write the lease: its version stands still for as long as the run is
        free, and never comes again.
        """
        item = self._items.get(layout.stream_item(stream_id, "lease"))
        return None if self._kept(item, margin_s) else _version(item)

    def end_free_period(self, stream_id: str, *, margin_s: float) -> None:
        """Let the next free period of the run begin, without a claim; a run that is held is left alone."""
        key = layout.stream_item(stream_id, "lease")
        item = self._items.get(key)
        if self._kept(item, margin_s):
            return
        try:
            self._items.write([Put(key, item.body if item else _FREE, _version(item))])
        except ConditionFailed:
            return  # it has ended: the run was claimed, or somebody else did the same

    def claims(self, stream_id: str) -> int:
        """Claims since the run was last restored."""
        return claims_of(self._items.get(layout.stream_item(stream_id, "claims")))

    def reason(self, stream_id: str) -> str | None:
        """What the last failure said, if the process lived to say it."""
        item = self._items.get(layout.stream_item(stream_id, "claims"))
        return str(item.body["reason"]) if item and item.body.get("reason") else None

    def forgiving(self, stream_id: str) -> list[Write]:
        """Writes that start the count of claims anew; for the transaction that sets the operation aside."""
        key = layout.stream_item(stream_id, "claims")
        item = self._items.get(key)
        return [] if item is None else [Put(key, {"claims": 0}, item.version)]

    def break_all(self, owner: str, *, counted: bool = True) -> list[Item]:
        """Free every lease of an owner that is known to be dead; its `worker/` items. Idempotent.

        Their sort key is the run; their body names the queue and the receipt that it had in hand.
        `counted` is false if its death is no run's fault: then its claims are not counted either.
        """
        partition, first, freed = layout.worker_partition(owner), "", list[Item]()
        while page := self._items.query(partition, first=first, limit=_PAGE):
            for holding in page:
                self._break(holding, owner, counted=counted)
            freed += page
            first = layout.after(page[-1].key.sort)
        return freed

    def _break(self, holding: Item, owner: str, *, counted: bool) -> None:
        lease_key, _, claims_key = _keys(holding.key.sort)
        while True:
            item, claims = self._items.get(lease_key), self._items.get(claims_key)
            writes: list[Write] = [Delete(holding.key, None)]
            if item is not None and item.body["owner"] == owner:
                writes.append(Put(lease_key, _FREE, item.version))
                if not counted and claims is not None:
                    less = {**claims.body, "claims": max(0, claims_of(claims) - 1)}
                    writes.append(Put(claims_key, less, claims.version))
            try:
                self._items.write(writes)
                return
            except ConditionFailed:
                continue  # somebody else has claimed it since: look again

    def _live(self, lease: Item) -> bool:
        return self._kept(lease, 0)

    def _kept(self, lease: Item | None, margin_s: float) -> bool:
        return lease is not None and cast(int, lease.body["expires_ms"]) > self._clock_ms() + margin_s * 1000

    def _lease_body(self, owner: str) -> dict[str, JsonValue]:
        return {"owner": owner, "expires_ms": self._clock_ms() + self._lease_ms}


def _spent(lease: Lease) -> Put:
    """Condition and effect in one: the token is still ours, and from now on nobody's."""
    return Put(layout.stream_item(lease.stream_id, "fence"), {}, lease.token)


def claims_of(item: Item | None) -> int:
    """The count in a `claims` item."""
    return cast(int, item.body["claims"]) if item else 0


def _keys(stream_id: str) -> tuple[Key, Key, Key]:
    return (
        layout.stream_item(stream_id, "lease"),
        layout.stream_item(stream_id, "fence"),
        layout.stream_item(stream_id, "claims"),
    )


def _version(item: Item | None) -> int:
    return item.version if item else 0
