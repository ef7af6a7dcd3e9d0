"""Whether what arrives is what was dealt: the units of the deal, whole, unchanged, each once.

A refused request changes nothing: the deal stays open and charged, and the right data may follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import Datum
from tensafe.privacy.content import same_hash, unit_content_hash
from tensafe.privacy.dealing import Deal
from tensafe.privacy.manifest import Manifest
from tensafe.privacy.refusals import telling
from tensafe.privacy.units import checked_ids, unit_field

STAYS: Final = "The deal stays open; it is charged once, whatever becomes of it"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A deal and what of it has arrived. `expected`: unit id -> content hash of the manifest."""

    step: int
    expected: Mapping[int, bytes]
    one_datum_each: bool
    arrived: frozenset[int] = frozenset()

    @classmethod
    def of(cls, dealt: Deal, manifest: Manifest) -> Arrival:
        """Nothing has arrived yet."""
        indices = dealt.indices.tolist()
        ids = manifest.ids[dealt.indices].tolist()
        expected = {
            unit_id: manifest.content_hash(index) for unit_id, index in zip(ids, indices, strict=True)
        }
        return cls(dealt.step, expected, manifest.terms.unit == "record")

    @property
    def missing(self) -> int:
        """How many units have not arrived."""
        return len(self.expected) - len(self.arrived)


@telling(STAYS)
def received(arrival: Arrival, key: bytes, data: Sequence[Datum]) -> Arrival:
    """What has arrived after a request with these data; `key` is the domain's content key.

    A deal may come in several requests; all data of one unit come in one. Raises InvalidRequest, field
    `data[i].loss_fn_inputs.dp_unit_id` of the first datum that is at fault.
    """
    ids = checked_ids([datum.unit_id for datum in data])
    positions: dict[int, list[int]] = {}
    for position, unit_id in enumerate(ids):
        _refuse_unit(arrival, unit_id, position, positions)
        positions.setdefault(unit_id, []).append(position)
    for unit_id, where in positions.items():
        content = unit_content_hash(key, unit_id, [data[position] for position in where])
        if not same_hash(content, arrival.expected[unit_id]):
            raise InvalidRequest(
                f"the data of this unit are not those of the manifest ({len(where)} datum(s) came): "
                "send all of the unit's data in one request, as registered",
                field=unit_field(where[0]),
            )
    return replace(arrival, arrived=arrival.arrived | positions.keys())


@telling(STAYS)
def refuse_incomplete(arrival: Arrival) -> None:
    """Refuse the step while units are missing. Raises InvalidRequest that says how many."""
    if arrival.missing:
        raise InvalidRequest(
            f"the deal of step {arrival.step} has {len(arrival.expected)} units, of which {arrival.missing} "
            "have not arrived: send them, or abandon the deal",
            field="data",
        )


def _refuse_unit(arrival: Arrival, unit_id: int, position: int, met: Mapping[int, list[int]]) -> None:
    if unit_id not in arrival.expected:
        raise InvalidRequest(
            f"this unit is not in the deal of step {arrival.step}: send exactly the dealt units",
            field=unit_field(position),
        )
    if unit_id in arrival.arrived:
        raise InvalidRequest(
            f"this unit has arrived in an earlier request of step {arrival.step}; a unit comes once, "
            "with all its data: send only the units that have not arrived",
            field=unit_field(position),
        )
    if arrival.one_datum_each and unit_id in met:
        raise InvalidRequest(
            f"this unit is that of data[{met[unit_id][0]}] again, and a unit of this domain is one record: "
            "send each record once",
            field=unit_field(position),
        )
