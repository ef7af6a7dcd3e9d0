"""Privacy domains from the side of the data's owner: hashed at home, registered over HTTPS.

The data never leave: the service is sent each unit's id and a keyed hash of its content, and both sides
compute the same Merkle root or nothing is frozen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensafe.client.examples import as_datum
from tensafe.client.service import Service, quoted
from tensafe.contracts.domains import MAX_PAGE_UNITS, DomainTerms
from tensafe.contracts.errors import Conflict, InvalidRequest
from tensafe.privacy.manifest import Manifest
from tensafe.privacy.unit_hashes import UnitHashes

_PATH: Final = "/v1/privacy/domains"


@dataclass(frozen=True, slots=True)
class RegisteredDomain:
    """A domain as the service tells it; `epsilon` at `delta` of everything its runs have released.

    `warnings`: what its terms allow and every statement repeats, such as a delta of 1/N or more.
    """

    name: str
    state: str
    terms: DomainTerms | None
    units: int | None
    root: str | None
    manifest_digest: str | None
    warnings: tuple[str, ...]
    epsilon: float
    delta: float

    @classmethod
    def of(cls, told: dict[str, Any]) -> RegisteredDomain:
        terms = told["terms"]
        return cls(
            name=told["name"],
            state=told["state"],
            terms=None if terms is None else DomainTerms.model_validate(terms),
            units=told["units"],
            root=told["root"],
            manifest_digest=told["manifest_digest"],
            warnings=tuple(told["warnings"]),
            epsilon=told["epsilon"],
            delta=told["delta"],
        )


class PrivacyDomains:
    """The privacy domains of one tenant."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def register(
        self,
        name: str,
        data: Iterable[object],
        terms: DomainTerms,
        *,
        unit_ids: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RegisteredDomain:
        """Register a data set; again with the same data and terms, it does nothing.

        `data`: the SDK's `Datum`s, or mappings with `tokens` and `loss_fn_inputs` (`examples.as_datum`); each
        names its unit with `dp_unit_id`, or `unit_ids` names them, one per datum. `progress` is told units
        sent and units in all. Interrupted, call it again. Raises InvalidRequest (the data), Conflict (other
        data or terms have the name), ServiceError, Unavailable.
        """
        hashes = _hashes_of(data, terms, unit_ids)
        told = self._service.post(_PATH, {"name": name, **terms.model_dump()})
        known = RegisteredDomain.of(told)
        manifest = hashes.manifest(self.content_key(name))
        if known.state == "registering":
            known = self._send(name, manifest, int(told["pages"]), progress)
        if known.root != manifest.root.hex():
            raise Conflict(
                f"privacy domain {name} is {known.state} with other data ({known.units} units, these are "
                f"{manifest.units}); register these under another name"
            )
        return known

    def _send(
        self, name: str, manifest: Manifest, there: int, progress: Callable[[int, int], None] | None
    ) -> RegisteredDomain:
        """Send every page and finish; `there` pages may be left of an earlier upload."""
        path, number = f"{_PATH}/{quoted(name)}", 0
        for number, entries in enumerate(manifest.pages(MAX_PAGE_UNITS), start=1):
            self._service.put(f"{path}/units/{number - 1}", entries)
            if progress is not None:
                progress(min(number * MAX_PAGE_UNITS, manifest.units), manifest.units)
        for left in range(number, there):
            self._service.delete(f"{path}/units/{left}")
        expected = {"units": manifest.units, "root": manifest.root.hex()}
        return RegisteredDomain.of(self._service.post(f"{path}/finish", expected))

    def show(self, name: str) -> RegisteredDomain:
        """The domain as it stands. Raises ServiceError."""
        return RegisteredDomain.of(self._service.get(f"{_PATH}/{quoted(name)}"))

    def close(self, name: str) -> RegisteredDomain:
        """Let nothing be charged to it any more, for ever. Raises ServiceError."""
        return RegisteredDomain.of(self._service.post(f"{_PATH}/{quoted(name)}/close", {}))

    def content_key(self, name: str) -> bytes:
        """The 32-byte key of the domain's content hashes; keep it as you keep the data."""
        return bytes.fromhex(self._service.get(f"{_PATH}/{quoted(name)}/content_key")["content_key"])

    def export(self, name: str, output: Path) -> None:
        """Write the domain's signed ledger to a new file (mode 0600), for `tensafe privacy verify`."""
        data = self._service.call("GET", f"{_PATH}/{quoted(name)}/export")
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)

    def artifact_statement(self, artifact_id: str) -> dict[str, Any]:
        """The privacy statement of a saved artifact. Raises ServiceError."""
        told: dict[str, Any] = self._service.get(f"/v1/artifacts/{quoted(artifact_id)}/privacy_statement")
        return told


def manifest_of(
    key: bytes, data: Iterable[object], terms: DomainTerms, *, unit_ids: Sequence[int] | None = None
) -> Manifest:
    """The manifest of a data set under a domain's content key, computed here. Raises InvalidRequest."""
    return _hashes_of(data, terms, unit_ids).manifest(key)


def _hashes_of(data: Iterable[object], terms: DomainTerms, unit_ids: Sequence[int] | None) -> UnitHashes:
    hashes = UnitHashes(terms)
    for example in data:
        position = hashes.data
        if unit_ids is not None and position >= len(unit_ids):
            raise InvalidRequest(
                f"there are more data than unit_ids ({len(unit_ids)}); give one id per datum"
            )
        try:
            datum = as_datum(example, unit_id=None if unit_ids is None else unit_ids[position])
        except InvalidRequest as error:
            raise InvalidRequest(f"data[{position}]: {error.message}", field=f"data[{position}]") from None
        hashes.add(datum)
    if unit_ids is not None and hashes.data != len(unit_ids):
        raise InvalidRequest(f"there are {len(unit_ids)} unit_ids and {hashes.data} data; give one per datum")
    hashes.require_some()
    return hashes
