"""Deals of a run as its owner sees them: issued, shown, abandoned.

The seed of a run's deals is drawn once, sealed under the run's own data key, and committed to in the ledger
before the first deal. A deal is never stored: whoever may open the seed draws it again, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import Conflict, IntegrityError
from tensafe.operations import layout
from tensafe.operations.records import StreamRecord
from tensafe.privacy.arrival import Arrival
from tensafe.privacy.deal_record import DealRecord
from tensafe.privacy.dealing import Deal, deal, new_deal_seed, verify_opening
from tensafe.privacy.dealt_ledger import DealtLedger, Issued
from tensafe.privacy.dealt_records import DealtRecord
from tensafe.privacy.domains import Domains
from tensafe.privacy.manifest import Manifest
from tensafe.privacy.records import RunRef
from tensafe.storage.ports import ConditionFailed, Items, Put
from tensafe.vault.vault import Vault

SEED_PART: Final = "deal-seed"
NOT_DEALT: Final = "not_a_dealt_run"


@dataclass(frozen=True, slots=True)
class DealtUnits:
    """A deal that is charged: its step, its units' ids, ascending, and the domain's epsilon."""

    step: int
    unit_ids: tuple[int, ...]
    epsilon: float
    row_hash: str
    record: DealtRecord


class Deals:
    """Draws what is charged. Thread-safe; any number of processes may serve one run."""

    def __init__(self, items: Items, vault: Vault, ledger: DealtLedger, domains: Domains) -> None:
        self._items = items
        self._vault = vault
        self._domains = domains
        self.ledger: Final = ledger

    def issue(self, run: StreamRecord, step: int) -> DealtUnits:
        """Charge and draw the deal of `step`; again, the same one. Raises as `DealtLedger.deal`."""
        return self._shown(run, self.ledger.deal(dealt_ref(run), step))

    def shown(self, run: StreamRecord) -> DealRecord:
        """What has become of the run's deals. Raises Conflict for a run that is not dealt, NotFound."""
        return self.ledger.get(dealt_ref(run)).deals

    def abandon(self, run: StreamRecord, step: int) -> DealRecord:
        """Give the open deal up; it stays charged. Raises as `DealtLedger.abandon`."""
        return self.ledger.abandon(dealt_ref(run), step).deals

    def seed(self, run: StreamRecord) -> bytes:
        """The run's deal seed: 32 bytes, made once, sealed. For whoever opens the run in the ledger."""
        key = layout.stream_item(run.stream_id, SEED_PART)
        item = self._items.get(key)
        if item is None:
            sealed = self._vault.seal(run.scope, SEED_PART, new_deal_seed())
            with suppress(ConditionFailed):  # another process was faster: its seed is the run's
                self._items.write([Put(key, {}, 0, sealed=sealed)])
            item = self._items.get(key)
        if item is None:
            raise IntegrityError("the run's deal seed is missing")
        return self._vault.open(run.scope, SEED_PART, item.sealed)

    def arrival(self, run: StreamRecord, record: DealtRecord, step: int) -> Arrival:
        """What is expected of a charged deal, with nothing arrived yet."""
        manifest = self.manifest(run, record)
        return Arrival.of(self._draw(run, record, step), manifest)

    def content_key(self, run: StreamRecord) -> bytes:
        """The key of the domain's content hashes."""
        ref = dealt_ref(run)
        return self._domains.content_key(self._domains.get(ref.tenant, ref.domain))

    def manifest(self, run: StreamRecord, record: DealtRecord) -> Manifest:
        """The manifest that the run was opened with. Raises IntegrityError if the domain has another."""
        ref = dealt_ref(run)
        manifest = self._domains.manifest(self._domains.get(ref.tenant, ref.domain))
        if manifest.digest != record.mechanism.manifest_digest:
            raise IntegrityError(f"privacy domain {ref.domain} holds another manifest than that of its run")
        return manifest

    def _shown(self, run: StreamRecord, issued: Issued) -> DealtUnits:
        manifest = self.manifest(run, issued.record)
        drawn = self._draw(run, issued.record, issued.charge.index)
        unit_ids = tuple(manifest.ids[drawn.indices].tolist())
        return DealtUnits(
            issued.charge.index, unit_ids, issued.epsilon, issued.charge.row_hash, issued.record
        )

    def _draw(self, run: StreamRecord, record: DealtRecord, step: int) -> Deal:
        terms, seed = record.mechanism.deal_terms(run.stream_id), self.seed(run)
        verify_opening(record.deal_commitment, seed, terms)
        return deal(seed, step, terms)


def dealt_ref(run: StreamRecord) -> RunRef:
    """The dealt run in the ledger. Raises Conflict for a run of another mode."""
    optimizer = run.spec.get("optimizer")
    chosen: Mapping[str, object] = (
        cast(Mapping[str, object], optimizer) if isinstance(optimizer, dict) else {}
    )
    if chosen.get("mode") != "dealt":
        raise Conflict(
            "this run is not dealt: its client chooses the batches. Deals are for runs that are created with "
            "mode='dealt' in their optimizer",
            code=NOT_DEALT,
        )
    return RunRef(run.tenant, str(chosen["domain"]), run.stream_id)
