"""A domain's ledger as a file that a third party can check: JSON lines, each canonical.

    header    tenant, domain, delta, adjacency, public keys, every run's frozen mechanism, head, and of a
              registered domain its terms, N, Merkle root and manifest digest; signed
    row       the row's text as it was hashed, its hash, its units' tags, key id, signature; one a line
    trailer   number of rows, head, digest of all bytes before it; signed, so that a cut shows

Rows of dealt runs bring no tags (`dealt_rows`). The others' are the ledger's own keyed pseudonyms. They
show which steps one unknown unit took part in, and are the same in every export of the domain; without
the domain's secret they lead to no id.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping
from typing import Final

from tensafe.contracts.errors import IntegrityError, NotFound
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.counting import open_tags
from tensafe.privacy.dealt_records import AnyRecord, DealtRecord, read_runs
from tensafe.privacy.dealt_rows import DealtRow, read_row
from tensafe.privacy.domain_records import Domain, find_domain
from tensafe.privacy.mechanism import ADJACENCY
from tensafe.privacy.records import (
    STEP_MAX,
    Head,
    Row,
    RunRef,
    canonical,
    genesis,
    head_item,
    row_sort,
)
from tensafe.privacy.signing import header_digest, trailer_digest
from tensafe.privacy.units import pack
from tensafe.storage.ports import Item, Items
from tensafe.storage.signing import Signer
from tensafe.vault.scope import Scope, domain_scope
from tensafe.vault.vault import Vault

FORMAT: Final = "tensafe-privacy-ledger"
FORMAT_VERSION: Final = 1
"""Of a domain that is known by its name alone; with `registered` in its header it is 2."""


class Exporter:
    """Writes the ledgers of one store."""

    def __init__(self, items: Items, vault: Vault, signer: Signer, anchoring: Anchoring) -> None:
        self._items = items
        self._vault = vault
        self._signer = signer
        self._anchoring = anchoring

    def lines(self, tenant: str, domain: str, *, at_ms: int) -> Iterator[bytes]:
        """The lines of the export, as far as the ledger goes now; rows that follow meanwhile are left out.

        `at_ms`: Unix milliseconds, for the header. Raises NotFound, IntegrityError naming the row that is
        missing, unsigned or damaged, or if the store is older than its anchor.
        """
        scope = domain_scope(tenant, domain)
        self._anchoring.check(scope)
        item = self._items.get(head_item(scope))
        if item is None and find_domain(self._items, scope) is not None:
            raise NotFound(f"no run was opened in privacy domain {domain!r} yet: it has no ledger to export")
        if item is None:
            raise NotFound(f"there is no privacy domain {domain!r}")
        # The head before runs and rows: rows are only ever added, and its runs are there by then.
        head = Head.from_item(item)
        named = {*head.runs, *head.dealt}
        runs = {name: run for name, run in read_runs(self._items, scope).items() if name in named}
        digest = hashlib.sha256()
        for line in self._body(scope, tenant, domain, head, runs, at_ms):
            digest.update(line)
            yield line
        trailer = {"type": "trailer", "rows": head.seq, "head": head.hash, "sha256": digest.hexdigest()}
        yield self._sealed(trailer, trailer_digest(self._text(trailer)))

    def _body(
        self,
        scope: Scope,
        tenant: str,
        domain: str,
        head: Head,
        runs: Mapping[str, AnyRecord],
        at_ms: int,
    ) -> Iterator[bytes]:
        # After the head, too: a domain is registered before any of its dealt rows.
        registered = _registered(find_domain(self._items, scope))
        header: dict[str, object] = {
            "type": "header",
            "format": FORMAT,
            "version": FORMAT_VERSION if registered is None else FORMAT_VERSION + 1,
            "tenant": tenant,
            "domain": domain,
            "delta": head.delta,
            "adjacency": _adjacency(runs),
            "exported_at_ms": at_ms,
            "keys": [
                {
                    "kind": self._signer.kind,
                    "key_id": self._signer.key_id,
                    "public_key": self._signer.public_key,
                }
            ],
            "runs": {run_id: _described(run) for run_id, run in sorted(runs.items())},
            "head": {"rows": head.seq, "hash": head.hash},
            **({} if registered is None else {"registered": registered}),
        }
        yield self._sealed(header, header_digest(self._text(header)))
        previous, seq = genesis(scope, head.delta), 0
        for item in rows_in_order(self._items, scope, up_to=head.seq):
            row = read_row(item)
            seq += 1
            if (row.seq, row.previous) != (seq, previous):
                raise IntegrityError(f"row {seq} of the ledger is missing or altered; nothing is exported")
            previous = str(item.body["hash"])
            yield self._row(RunRef(tenant, domain, row.run_id), row, item)
        if (seq, previous) != (head.seq, head.hash):
            raise IntegrityError(f"row {seq + 1} of the ledger is missing; nothing is exported")

    def _row(self, ref: RunRef, row: Row | DealtRow, item: Item) -> bytes:
        if "signature" not in item.body:
            raise IntegrityError(f"row {row.seq} is not signed; `tensafe privacy upgrade` signs older rows")
        tags = [] if isinstance(row, DealtRow) else open_tags(self._vault, ref, item)[1]
        fields = {
            "type": "row",
            "row": str(item.body["row"]),
            "hash": str(item.body["hash"]),
            "tags": pack(tags).hex(),
            "key_id": str(item.body["key_id"]),
            "signature": str(item.body["signature"]),
        }
        return (canonical(fields) + "\n").encode()

    def _text(self, fields: Mapping[str, object]) -> str:
        return canonical({**fields, "key_id": self._signer.key_id})

    def _sealed(self, fields: Mapping[str, object], digest: bytes) -> bytes:
        signature = self._signer.sign(digest).hex()
        return (canonical({**fields, "key_id": self._signer.key_id, "signature": signature}) + "\n").encode()


def _registered(domain: Domain | None) -> dict[str, object] | None:
    """What the domain's name is bound to; None while it has no manifest."""
    if domain is None or domain.manifest_digest is None:
        return None
    return {
        "terms": domain.terms.model_dump(),
        "units": domain.units,
        "root": domain.root,
        "manifest_digest": domain.manifest_digest,
        "earlier_rows": domain.earlier_rows,
    }


def _described(run: AnyRecord) -> dict[str, object]:
    described: dict[str, object] = {"mechanism": run.mechanism.to_body(), "noise_key_id": run.noise_key_id}
    if isinstance(run, DealtRecord):
        described["deal_commitment"] = run.deal_commitment
    return described


def _adjacency(runs: Mapping[str, AnyRecord]) -> str:
    """The domain's terms name it, and dealt runs state it; bounds of bounded runs hold for both."""
    dealt = {run.mechanism.adjacency for run in runs.values() if isinstance(run, DealtRecord)}
    return dealt.pop() if dealt else ADJACENCY


def rows_in_order(items: Items, scope: Scope, *, up_to: int | None = None) -> Iterator[Item]:
    """The domain's stored rows by their number, up to `up_to`; holds a page of each run in memory."""
    runs = [_numbered(items, scope, run_id, up_to) for run_id in read_runs(items, scope)]
    return (item for _, item in heapq.merge(*runs, key=lambda one: one[0]))


def _numbered(items: Items, scope: Scope, run_id: str, up_to: int | None) -> Iterator[tuple[int, Item]]:
    """A run's rows: their numbers only grow with their steps."""
    first, last = row_sort(run_id, 0), row_sort(run_id, STEP_MAX)
    while page := items.query(scope.name, first=first, last=last):
        for item in page:
            seq = read_row(item).seq
            if up_to is not None and seq > up_to:
                return
            yield seq, item
        first = page[-1].key.sort + "!"
