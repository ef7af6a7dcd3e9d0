"""What is stored of a registered privacy domain, beside its ledger.

In the domain's partition `domain/<tenant>/<name>`:

    domain                    terms, state, counts, what the manifest is; sealed: the content secret
    units/<page>              while it is registered: a page of entries, sealed
    manifest                  the sealed manifest, or the blob that holds it

A domain without the item `domain` is known by its name alone: its ledger has no manifest and no budget
but those of its runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast, get_args

from pydantic import ValidationError

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy.manifest import Manifest
from tensafe.storage.ports import Item, Items, JsonValue, Key, Put, Write
from tensafe.vault.scope import Scope, domain_scope

_VERSION: Final = 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
PAGES_SORT: Final = "units/"
DomainState = Literal["registering", "open", "closed"]


@dataclass(frozen=True, slots=True)
class Domain:
    """A registered privacy domain.

    `registering`: units are still added, nothing may be charged. `open`: `units` (N), `manifest_digest`
    and `root` (hexadecimal) are final. `closed`: nothing is charged any more, for ever; a domain that was
    closed before it was finished has no manifest. `warnings` are what the terms allow and must be told
    (`manifest.DELTA_TOO_LARGE`). `pages` counts pages of units; `item_version` is what a transaction
    checks that relies on the rest.
    """

    tenant: str
    name: str
    state: DomainState
    terms: DomainTerms
    created_ms: int
    units: int = 0
    pages: int = 0
    manifest_digest: str | None = None
    root: str | None = None
    warnings: tuple[str, ...] = ()
    closed_ms: int | None = None
    earlier_rows: int = 0
    """Rows of the ledger that the name had when it was registered: no manifest held their units."""
    item_version: int = 0
    sealed_secret: bytes = field(default=b"", repr=False)

    @property
    def scope(self) -> Scope:
        """What its manifest, pages and secret are sealed under."""
        return domain_scope(self.tenant, self.name)

    def finished(self, manifest: Manifest) -> Domain:
        """The domain once this manifest is its own."""
        return replace(
            self,
            state="open",
            units=manifest.units,
            manifest_digest=manifest.digest,
            root=manifest.root.hex(),
            warnings=manifest.warnings,
        )

    def to_body(self) -> dict[str, JsonValue]:
        """JSON for durable storage."""
        return {
            "version": _VERSION,
            "state": self.state,
            "terms": self.terms.model_dump(),
            "created_ms": self.created_ms,
            "units": self.units,
            "pages": self.pages,
            "manifest_digest": self.manifest_digest,
            "root": self.root,
            "warnings": list(self.warnings),
            "closed_ms": self.closed_ms,
            **({"earlier_rows": self.earlier_rows} if self.earlier_rows else {}),
        }

    @classmethod
    def from_item(cls, tenant: str, name: str, item: Item) -> Domain:
        """Read a stored record. Raises IntegrityError."""
        body = item.body
        try:
            domain = cls(
                tenant=tenant,
                name=name,
                state=cast(DomainState, body["state"]),
                terms=DomainTerms.model_validate(body["terms"]),
                created_ms=int(cast(int, body["created_ms"])),
                units=int(cast(int, body["units"])),
                pages=int(cast(int, body["pages"])),
                manifest_digest=cast("str | None", body["manifest_digest"]),
                root=cast("str | None", body["root"]),
                warnings=tuple(cast("list[str]", body["warnings"])),
                closed_ms=cast("int | None", body["closed_ms"]),
                earlier_rows=int(cast(int, body.get("earlier_rows", 0))),
                item_version=item.version,
                sealed_secret=item.sealed,
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise IntegrityError(f"the record of privacy domain {name} is damaged: {error!r}") from error
        known = body.get("version") == _VERSION and domain.state in get_args(DomainState)
        if not known or (domain.state == "open" and domain.manifest_digest is None):
            raise IntegrityError(f"the record of privacy domain {name} is not one that this version reads")
        return domain


def check_domain_name(name: str) -> str:
    """Return `name` if it can name a privacy domain, else raise InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "a privacy domain's name has 1 to 128 letters, digits, '.', '_' or '-', and begins with a letter "
            "or digit",
            field="name",
        )
    return name


def domain_item(scope: Scope) -> Key:
    """The record of a registered domain."""
    return Key(scope.name, "domain")


def manifest_item(scope: Scope) -> Key:
    """Where the domain's sealed manifest is."""
    return Key(scope.name, "manifest")


def page_item(scope: Scope, page: int) -> Key:
    """A page of units that are being registered."""
    return Key(scope.name, page_part(page))


def page_part(page: int) -> str:
    """Names a page in its associated data; ordered as its number."""
    return f"{PAGES_SORT}{page:06d}"


def listing(items: Items, scope: Scope) -> list[Write]:
    """The write that lists the domain among its tenant's, by name; none if it is listed."""
    entry = Key(listing_partition(scope.tenant), name_of(scope))
    return [] if items.get(entry) is not None else [Put(entry, {}, 0)]


def listing_partition(tenant: str) -> str:
    """The tenant's domains, registered or known by their names alone."""
    return f"tenant/{tenant}/domains"


def name_of(scope: Scope) -> str:
    """The domain's name."""
    return scope.name.removeprefix(f"domain/{scope.tenant}/")


def find_domain(items: Items, scope: Scope) -> Domain | None:
    """The registered domain of this scope; None for one that is known by its name alone."""
    item = items.get(domain_item(scope))
    if item is None:
        return None
    return Domain.from_item(scope.tenant, name_of(scope), item)


def body_of_page(units: int, fingerprint: str) -> Mapping[str, JsonValue]:
    """What is in clear of a page: its number of units, and a keyed digest that recognises it again."""
    return {"units": units, "fingerprint": fingerprint}
