"""Which saved weights are private: held by an adapter holder, and sampled under their old path.

A placement stands where the checkpoint of `tinker://RUN/sampler_weights/NAME` stood; it holds no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, cast

from tensafe.contracts.errors import Conflict, InvalidRequest, NotFound
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.operations import layout
from tensafe.operations.records import StreamRecord
from tensafe.operations.streams import now_ms
from tensafe.storage.ports import ConditionFailed, Delete, Item, Items, JsonValue, Key, Put, Write

_LISTED: Final = 10_000
_TEXTS: Final = ("run_id", "name", "tenant", "base_model", "address", "adapter", "holder_tenant")


@dataclass(frozen=True, slots=True)
class Placement:
    """A private adapter as the service knows it.

    `address` is the adapter holder's (`unix:PATH` or `tcp:HOST:PORT`), `adapter` and `version` what it
    calls these weights, `holder_tenant` for whom it is asked. `digest` is SHA-256 (hex) of the quantised
    adapter in its `epoch`, as the adapter holder said when it was published or rotated: nothing else is
    sampled from. None for what an older release placed, until it is rotated.
    """

    run_id: str
    name: str
    tenant: str
    base_model: str
    policy: ExecutionPolicy
    address: str
    adapter: str
    version: int
    holder_tenant: str
    created_ms: int
    epoch: int | None = None
    digest: str | None = None
    saved_ms: int | None = None
    """When the weights were saved; None for what an older release placed."""

    @property
    def path(self) -> str:
        return f"tinker://{self.run_id}/sampler_weights/{self.name}"

    @classmethod
    def from_item(cls, item: Item) -> Placement:
        body = dict(item.body)
        policy, version = ExecutionPolicy(str(body.pop("policy"))), int(cast(int, body.pop("version")))
        created_ms = int(cast(int, body.pop("created_ms")))
        epoch, digest = cast("int | None", body.pop("epoch", None)), body.pop("digest", None)
        saved_ms = cast("int | None", body.pop("saved_ms", None))
        # What a later release may add is passed over.
        texts = {key: str(body[key]) for key in _TEXTS}
        told = {"epoch": epoch, "saved_ms": saved_ms, "digest": None if digest is None else str(digest)}
        return cls(policy=policy, version=version, created_ms=created_ms, **texts, **told)  # type: ignore[arg-type]


def check_address(address: str) -> None:
    """Raise InvalidRequest unless samplers can look for an adapter holder there.

    Not asked of what is read back: an older release placed what it could not connect to.
    """
    from tensafe.contracts import holder_address  # noqa: PLC0415 - a function that starts places nothing

    found = holder_address.parse(address)
    if isinstance(found, Path) and not found.is_absolute():
        raise InvalidRequest(
            f"{str(found)[:200]!r} would be another socket in each sampler's directory: give the path from "
            "the root, unix:/...",
            field="holder",
        )


class Placements:
    """Reads and writes placements."""

    def __init__(self, items: Items, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = items
        self._clock_ms = clock_ms

    def peek(self, run_id: str, name: str) -> Placement | None:
        """The placement whatever its owner."""
        item = self._items.get(layout.placement_item(run_id, name))
        return None if item is None else Placement.from_item(item)

    def find(self, run_id: str, name: str) -> Placement:
        """As `peek`. Raises NotFound."""
        found = self.peek(run_id, name)
        if found is None:
            raise NotFound("there is no private adapter at this path; `tensafe adapters list` shows them")
        return found

    def everybodys(self) -> list[Placement]:
        """Those of all tenants, by path; what an older release placed is in its tenant's list alone."""
        return self._listed(layout.PLACED)

    def of_tenant(self, tenant: str) -> list[Placement]:
        """All of a tenant's, by path."""
        return self._listed(layout.placements_of(tenant))

    def _listed(self, partition: str) -> list[Placement]:
        entries = self._items.query(partition, limit=_LISTED)
        found = (self.peek(*entry.key.sort.split("/", 1)) for entry in entries)
        return [one for one in found if one is not None]

    def of_run(self, run: StreamRecord) -> list[Placement]:
        """All of a run's, by path."""
        return [one for one in self.of_tenant(run.tenant) if one.run_id == run.stream_id]

    def holds(self, adapter: str, version: str) -> bool:
        """Whether any placement names this version of an adapter."""
        partition, first = layout.placed_versions(adapter), f"{version}/"
        return bool(self._items.query(partition, first=first, last=f"{first}~", limit=1))

    def add(self, placement: Placement, also: Sequence[Write] = ()) -> Placement:
        """Again with the same content it does nothing. Raises Conflict if the path has another placement, or
        a condition of `also` does not hold; InvalidRequest for an address that is none.

        `also` is written in the same transaction.
        """
        check_address(placement.address)
        body = cast("dict[str, JsonValue]", asdict(placement) | {"created_ms": self._clock_ms()})
        try:
            keys = enumerate(_keys(placement))
            self._items.write([*(Put(key, body if i == 0 else {}, 0) for i, key in keys), *also])
        except ConditionFailed:
            present = self.peek(placement.run_id, placement.name)
            if present is None:
                raise Conflict("what was to be placed was changed meanwhile") from None
            if (present.adapter, present.version, present.address) != (
                placement.adapter,
                placement.version,
                placement.address,
            ):
                raise Conflict("another private adapter has this path") from None
            return present
        return self.find(placement.run_id, placement.name)

    def renew(self, placement: Placement, *, epoch: int, digest: str) -> Placement:
        """It is in another epoch at its adapter holder; again is fine.

        Raises NotFound, Conflict if it was changed meanwhile.
        """
        return self._change(placement, replace(placement, epoch=epoch, digest=digest))

    def move(self, placement: Placement, address: str) -> Placement:
        """Its adapter holder is at another address, with the same weights; again is fine.

        Raises NotFound, InvalidRequest for an address that is none, Conflict if it was changed meanwhile.
        """
        check_address(address)
        return self._change(placement, replace(placement, address=address))

    def _change(self, placement: Placement, changed: Placement) -> Placement:
        key = layout.placement_item(placement.run_id, placement.name)
        item = self._items.get(key)
        present = self.find(placement.run_id, placement.name) if item is None else Placement.from_item(item)
        meanwhile = Conflict("the private adapter was changed meanwhile; try again")
        if present == changed:
            return present
        if item is None or present != placement:
            raise meanwhile
        try:
            self._items.write([Put(key, cast("dict[str, JsonValue]", asdict(changed)), item.version)])
        except ConditionFailed:
            raise meanwhile from None
        return changed

    def remove(self, placement: Placement) -> None:
        """Nobody samples from it any more; absent is fine."""
        self._items.write([Delete(key, None) for key in _keys(placement)])


def _keys(placement: Placement) -> tuple[Key, ...]:
    run_id, name = placement.run_id, placement.name
    return (
        layout.placement_item(run_id, name),
        layout.placement_listing(placement.tenant, run_id, name),
        layout.placed_adapter(placement.adapter, str(placement.version), run_id, name),
        layout.placed_listing(run_id, name),
    )
