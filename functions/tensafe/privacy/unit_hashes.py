"""A data set's units and their content hashes, gathered datum by datum: what its owner registers."""

from __future__ import annotations

from typing import Final

from tensafe.contracts.domains import MAX_MANIFEST_UNITS, DomainTerms
from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge
from tensafe.contracts.training import Datum
from tensafe.privacy.content import datum_digest, unit_hash_of_digests
from tensafe.privacy.manifest import Manifest, ManifestBuilder

MAX_DATA: Final = 2 * MAX_MANIFEST_UNITS
"""Of all units together: 32 bytes of each are held until the last has come."""


class UnitHashes:
    """Takes the data of all units in any order; holds digests, never the data.

    It needs the domain's key at the end alone: what is wrong with the data is told before there is a domain,
    whose terms would never change.
    """

    def __init__(self, terms: DomainTerms) -> None:
        self._terms = terms
        self._digests: dict[int, list[bytes]] = {}
        self._data = 0

    @property
    def data(self) -> int:
        """How many data have come."""
        return self._data

    def add(self, datum: Datum) -> None:
        """One more datum of the unit that it names.

        Raises InvalidRequest for one without `dp_unit_id`, and for a second one of a record.
        """
        position, unit_id = self._data, datum.unit_id
        if unit_id is None:
            raise InvalidRequest(
                "every datum needs dp_unit_id, an int64 that says whose it is", field=f"data[{position}]"
            )
        if position >= MAX_DATA:
            raise PayloadTooLarge(f"at most {MAX_DATA} data are registered in one domain")
        owned = self._digests.setdefault(unit_id, [])
        if owned and self._terms.unit == "record":
            raise InvalidRequest(
                f"unit {unit_id} has a second datum at position {position}, and a unit of this domain is one "
                "record: give every datum an id of its own, or register units of the kind 'user'",
                field=f"data[{position}]",
            )
        owned.append(datum_digest(datum))
        self._data += 1

    def require_some(self) -> None:
        """Raises InvalidRequest if nothing has come: a domain has at least one unit."""
        if not self._digests:
            raise InvalidRequest(
                "there are no data, and a privacy domain has at least one unit", field="units"
            )

    def manifest(self, key: bytes) -> Manifest:
        """The manifest of all that has come, as the service will build it under the domain's content key.

        Raises InvalidRequest.
        """
        builder = ManifestBuilder(self._terms)
        for unit_id, digests in self._digests.items():
            builder.add(unit_id, unit_hash_of_digests(key, unit_id, digests))
        return builder.finish()
