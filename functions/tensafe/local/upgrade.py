"""`tensafe privacy upgrade`: takes a data directory from before the ledger was signed and anchored further.

Never done by itself: whoever put back an old store and lost its anchors must not get new ones by a
start. A domain whose newest row is signed had an anchor, so it gets no new one here. Every step can be
repeated; a domain is anchored before its rows are signed, so that an interruption is not mistaken for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from tensafe.auth.keys import ApiKeys
from tensafe.contracts.errors import ConfigurationError, IntegrityError
from tensafe.local import evidence
from tensafe.local.composition import ITEMS, check_directory, check_key, open_services
from tensafe.local.lock import DirectoryLock
from tensafe.local.settings import LocalSettings
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.counting import open_tags
from tensafe.privacy.export import rows_in_order
from tensafe.privacy.records import Head, RunRef, head_item
from tensafe.privacy.replay import replay
from tensafe.privacy.signing import row_digest
from tensafe.privacy.units import pack
from tensafe.services import Services
from tensafe.storage.ports import Items, Put
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.vault.scope import Scope, domain_scope


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What was done for a domain."""

    tenant: str
    domain: str
    rows: int
    signed_now: int
    anchored_now: bool


def upgrade(settings: LocalSettings, *, new_key: bool = False) -> list[Upgraded]:
    """Make what is missing; what was done, a domain each.

    Raises ConfigurationError while the service runs, or if the signing key is missing and had signed
    rows (unless `new_key`); IntegrityError for a ledger that does not add up or whose anchor was lost.
    """
    data_dir = settings.data_dir
    check_directory(data_dir)
    keyring = check_key(settings)
    with DirectoryLock(data_dir):
        if not evidence.signing_key_path(data_dir).exists():
            with closing(SqliteItems(data_dir / ITEMS)) as items:
                _refuse_lost_key(items, new_key)
            evidence.make_signing_key(data_dir, keyring)
        evidence.make_anchors(data_dir, None)
        services = open_services(settings)
        return [_upgrade_domain(services, scope) for scope in domains(services.ports.items)]


def domains(items: Items) -> Iterator[Scope]:
    """Every privacy domain that a run was ever opened in."""
    for tenant in sorted({key.tenant for key in ApiKeys(items).list()}):
        found: set[str] = set()
        first = ""
        while page := items.query(f"dp-noise/{tenant}", first=first):
            found |= {str(item.body["domain"]) for item in page}
            first = page[-1].key.sort + "!"
        yield from (domain_scope(tenant, domain) for domain in sorted(found))


def _refuse_lost_key(items: Items, new_key: bool) -> None:
    if new_key:
        return
    for scope in domains(items):
        if any("signature" in item.body for item in rows_in_order(items, scope)):
            raise ConfigurationError(
                f"the signing key is missing and has signed rows of {scope.name}: put it back from your "
                "backup. `--new-key` goes on under another one: what is signed already is then verified with "
                "the old public key alone"
            )


def _upgrade_domain(services: Services, scope: Scope) -> Upgraded:
    items, vault, signer, anchors = (
        services.ports.items,
        services.vault,
        services.ports.signer,
        services.ports.anchors,
    )
    domain = scope.name.removeprefix(f"domain/{scope.tenant}/")
    replay(items, vault, scope.tenant, domain)
    rows = list(rows_in_order(items, scope))
    anchored_now = anchors.get(scope.name) is None
    if anchored_now and rows and "signature" in rows[-1].body:
        head = items.get(head_item(scope))
        seq = 0 if head is None else Head.from_item(head).seq
        raise IntegrityError(
            f"the anchor of {scope.name} is lost: its {seq} rows are signed, so it had one. Put the anchors' "
            "folder back, or close the domain with `tensafe privacy abandon`"
        )
    Anchoring(items, anchors).adopt(scope)
    signed_now = 0
    for item in rows:
        if "signature" in item.body:
            continue
        run_id = item.key.sort.split("/")[1]
        _, tags = open_tags(vault, RunRef(scope.tenant, domain, run_id), item)
        signature = signer.sign(row_digest(str(item.body["hash"]), pack(tags)))
        body = {**item.body, "key_id": signer.key_id, "signature": signature.hex()}
        items.write([Put(item.key, body, item.version, sealed=item.sealed)])
        signed_now += 1
    return Upgraded(scope.tenant, domain, len(rows), signed_now, anchored_now)
