"""Registered privacy domains: created, filled page by page, frozen with a manifest, closed.

Every step is durable and may be repeated. Pages and manifest are sealed under the domain's data key; the
key of its content hashes comes from a secret of the domain, drawn once and sealed beside its terms.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, cast

from tensafe.contracts.domains import MAX_MANIFEST_UNITS, DomainTerms
from tensafe.contracts.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from tensafe.operations.layout import after
from tensafe.operations.streams import now_ms
from tensafe.operations.unclaimed import Announcement
from tensafe.privacy import content
from tensafe.privacy.backing_off import back_off
from tensafe.privacy.domain_records import (
    PAGES_SORT,
    Domain,
    body_of_page,
    check_domain_name,
    domain_item,
    find_domain,
    listing,
    listing_partition,
    manifest_item,
    page_item,
    page_part,
)
from tensafe.privacy.domain_rules import (
    domain_closed,
    domain_not_open,
    refuse_other,
    refuse_unfit,
    require_registering,
    units_of_page,
)
from tensafe.privacy.manifest import ENTRY_BYTES, Manifest, ManifestBuilder
from tensafe.privacy.manifest_cache import ManifestCache
from tensafe.privacy.manifest_store import held_manifest, holding, load_manifest, store_manifest
from tensafe.privacy.records import Head, head_item
from tensafe.privacy.refusals import NOTHING_CHARGED, telling
from tensafe.storage.ports import (
    Check,
    ConditionFailed,
    Delete,
    Item,
    Items,
    Put,
    Write,
)
from tensafe.vault.scope import Scope, domain_scope
from tensafe.vault.vault import Vault

CONTENT_SECRET_PART: Final = "content-secret"  # noqa: S105 - what is sealed, not the secret
_ATTEMPTS: Final = 200
_BUILDS: Final = 5
"""A page that comes while the manifest is built costs another build."""
_PAGES_AT_ONCE: Final = 10

logger = logging.getLogger(__name__)


class Domains:
    """Registry of privacy domains. Thread-safe; any number of processes may use one domain."""

    def __init__(self, items: Items, vault: Vault, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = items
        self._vault = vault
        self._clock_ms = clock_ms
        self._manifests = ManifestCache()

    @telling(NOTHING_CHARGED)
    def create(self, tenant: str, name: str, terms: DomainTerms) -> Domain:
        """Begin to register a domain; again with the same terms, it is the domain as it stands.

        Raises Conflict (other terms; or the name has a ledger with another delta), BudgetExceeded (that
        ledger has spent more than `max_epsilon` already), InvalidRequest (the name).
        """
        scope = domain_scope(tenant, check_domain_name(name))
        for attempt in range(_ATTEMPTS):
            known = find_domain(self._items, scope)
            if known is not None:
                if known.terms != terms:
                    raise Conflict(
                        f"privacy domain {name} is registered with other terms, and terms never change; "
                        "register the data set under another name"
                    )
                return known
            self._vault.ensure_key(scope)
            try:
                self._items.write(
                    self._creating(Domain(tenant, name, "registering", terms, self._clock_ms()))
                )
            except ConditionFailed:
                back_off(attempt)
                continue
            logger.info("privacy domain created", extra={"domain": name})
        raise _busy(name)

    @telling(NOTHING_CHARGED)
    def add_units(self, tenant: str, name: str, page: int, entries: bytes) -> Domain:
        """Keep page `page` (from 0 on, without gaps) of the domain's units, durably.

        `entries`: 1 to 8192 of 40 bytes each, the unit's id (int64, big-endian) and its content hash (32
        bytes). The same page again changes nothing; other entries under its number take its place. Raises
        NotFound, Conflict (not `registering`), InvalidRequest, PayloadTooLarge.
        """
        units = units_of_page(page, entries)
        for attempt in range(_ATTEMPTS):
            domain = self.get(tenant, name)
            require_registering(domain)
            key, part = page_item(domain.scope, page), page_part(page)
            fingerprint = self._vault.fingerprint(domain.scope, part, entries)
            stored = self._items.get(key)
            if stored is not None and stored.body["fingerprint"] == fingerprint:
                return domain
            before = 0 if stored is None else int(cast(int, stored.body["units"]))
            changed = replace(
                domain, units=domain.units + units - before, pages=domain.pages + (stored is None)
            )
            if changed.units > MAX_MANIFEST_UNITS:
                raise PayloadTooLarge(
                    f"a privacy domain may hold {MAX_MANIFEST_UNITS} units; this page would bring it to "
                    f"{changed.units}"
                )
            sealed = self._vault.seal(domain.scope, part, entries)
            body = body_of_page(units, fingerprint)
            try:
                self._items.write(
                    [Put(key, body, 0 if stored is None else stored.version, sealed=sealed), _put(changed)]
                )
            except ConditionFailed:
                back_off(attempt)
                continue
            return self.get(tenant, name)
        raise _busy(name)

    def remove_units(self, tenant: str, name: str, page: int) -> Domain:
        """Take a page away, such as one of an earlier, longer upload; again, it does nothing.

        Raises NotFound, Conflict (not `registering`).
        """
        for attempt in range(_ATTEMPTS):
            domain = self.get(tenant, name)
            require_registering(domain)
            stored = self._items.get(page_item(domain.scope, page))
            if stored is None:
                return domain
            units = domain.units - int(cast(int, stored.body["units"]))
            changed = replace(domain, units=units, pages=domain.pages - 1)
            try:
                self._items.write([Delete(stored.key, stored.version), _put(changed)])
            except ConditionFailed:
                back_off(attempt)
        raise _busy(name)

    @telling(NOTHING_CHARGED)
    def finish(self, tenant: str, name: str, *, units: int | None = None, root: str | None = None) -> Domain:
        """Freeze the domain with the manifest of its pages and open it; again, it does nothing.

        `units` and `root` (hexadecimal): what the caller has computed; another outcome is refused and
        freezes nothing. Raises NotFound, Conflict (closed), InvalidRequest (no units, a page missing, an
        id twice: named by its position over all pages in order; not what the caller expects).
        """
        for attempt in range(_BUILDS):
            domain = self.get(tenant, name)
            if domain.state == "closed":
                raise domain_closed(domain)
            if domain.state == "open":
                refuse_other(domain, units, root)
                self._drop_pages(domain)
                return domain
            manifest = self._build(domain)
            finished = domain.finished(manifest)
            refuse_other(finished, units, root)
            announce = Announcement(self._items, manifest_item(domain.scope), self._clock_ms)
            stored = store_manifest(self._vault, domain.scope, manifest, announce=announce)
            try:
                self._items.write([_put(finished), holding(domain.scope, stored), *announce.claiming])
            except ConditionFailed:
                back_off(attempt)  # a page has come or gone: what was built is not the domain
                continue
            logger.info("privacy domain registered", extra={"domain": name, "units": manifest.units})
        raise _busy(name)

    def find(self, tenant: str, name: str) -> Domain | None:
        """The registered domain, or None; a name that cannot be one's is None too."""
        try:
            return find_domain(self._items, domain_scope(tenant, check_domain_name(name)))
        except InvalidRequest:
            return None

    def get(self, tenant: str, name: str) -> Domain:
        """The registered domain. Raises NotFound."""
        domain = self.find(tenant, name)
        if domain is None:
            raise NotFound(f"no privacy domain {name[:128]!r} is registered")
        return domain

    def names(self, tenant: str, *, limit: int = 100, after_name: str = "") -> list[str]:
        """The tenant's domains in order, those behind `after_name`; with those known by their names alone."""
        first = after(check_domain_name(after_name)) if after_name else ""
        entries = self._items.query(listing_partition(tenant), first=first, limit=limit)
        return [entry.key.sort for entry in entries]

    def manifest(self, domain: Domain) -> Manifest:
        """The manifest that the domain is frozen with; kept for some minutes.

        Raises Conflict (the domain has none), IntegrityError.
        """
        digest = domain.manifest_digest
        if digest is None:
            raise domain_not_open(domain)
        return self._manifests.get(domain.scope, digest, lambda: self._load(domain, digest))

    def content_key(self, domain: Domain) -> bytes:
        """The 32-byte key of the domain's content hashes; for the data's owner alone."""
        secret = self._vault.open(domain.scope, CONTENT_SECRET_PART, domain.sealed_secret)
        return content.content_key(secret)

    def close(self, tenant: str, name: str) -> Domain:
        """Let nothing be charged to the domain any more, for ever; again, it does nothing.

        Whatever is charged afterwards is refused before noise is drawn. Raises NotFound.
        """
        for attempt in range(_ATTEMPTS):
            domain = self.get(tenant, name)
            if domain.state == "closed":
                return domain
            try:
                self._items.write([_put(replace(domain, state="closed", closed_ms=self._clock_ms()))])
            except ConditionFailed:
                back_off(attempt)
                continue
            logger.info("privacy domain closed", extra={"domain": name})
        raise _busy(name)

    def _creating(self, domain: Domain) -> list[Write]:
        """Writes that register it, conditional on the ledger that its name may have already."""
        scope = domain.scope
        item = self._items.get(head_item(scope))
        if item is not None:
            head = Head.from_item(item)
            refuse_unfit(domain, head)
            domain = replace(domain, earlier_rows=head.seq)
        secret = os.urandom(content.CONTENT_KEY_BYTES)
        sealed = self._vault.seal(scope, CONTENT_SECRET_PART, secret)
        return [
            Put(domain_item(scope), domain.to_body(), 0, sealed=sealed),
            *listing(self._items, scope),
            Check(head_item(scope), 0 if item is None else item.version),
        ]

    def _build(self, domain: Domain) -> Manifest:
        builder = ManifestBuilder(domain.terms)
        for number, item in enumerate(self._pages(domain.scope)):
            part = page_part(number)
            if item.key.sort != part:
                raise InvalidRequest(
                    f"page {number} of the domain's units is missing, and later ones are there; send it",
                    field="units",
                )
            entries = self._vault.open(domain.scope, part, item.sealed)
            for at in range(0, len(entries), ENTRY_BYTES):
                entry = entries[at : at + ENTRY_BYTES]
                builder.add(int.from_bytes(entry[:8], "big", signed=True), entry[8:])
        return builder.finish()

    def _pages(self, scope: Scope) -> Iterator[Item]:
        first = PAGES_SORT
        while page := self._items.query(scope.name, first=first, last=f"{PAGES_SORT}~", limit=_PAGES_AT_ONCE):
            yield from page
            first = after(page[-1].key.sort)

    def _drop_pages(self, domain: Domain) -> None:
        """The manifest holds what they held."""
        for item in self._pages(domain.scope):
            self._items.write([Delete(item.key, None)])

    def _load(self, domain: Domain, digest: str) -> Manifest:
        stored = held_manifest(self._items, domain.scope)
        return load_manifest(self._vault, domain.scope, stored, digest)


def _put(domain: Domain) -> Put:
    return Put(domain_item(domain.scope), domain.to_body(), domain.item_version, sealed=domain.sealed_secret)


def _busy(name: str) -> Unavailable:
    return Unavailable(f"privacy domain {name} is being changed by others; try again")
