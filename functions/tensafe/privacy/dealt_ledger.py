"""Charges dealt runs: whole when they are opened, and each deal before anybody sees it.

    open    noise secret claimed, mechanism frozen, seed committed to, all deals charged: one row
    deal    one row more, durable and anchored before the units are told; again, the same deal
    end     complete with the step's result in one transaction, or abandoned: charged all the same

What a row says of epsilon is computed at the opening, by the trainer. Whoever deals compares integers, so
an edge that issues deals needs no loss distributions.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tensafe.contracts.errors import (
    BudgetExceeded,
    Conflict,
    IntegrityError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from tensafe.contracts.training import PrivateConfig
from tensafe.operations.streams import now_ms
from tensafe.privacy import amplified, deal_record
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.backing_off import back_off
from tensafe.privacy.deal_record import DealRecord
from tensafe.privacy.dealing import seed_commitment
from tensafe.privacy.dealt_mechanism import resolve_dealt
from tensafe.privacy.dealt_records import DealtRecord, config_digest, read_record
from tensafe.privacy.dealt_rows import NOT_TOLD, DealtCharge, DealtRow, read_row, row_step, stated
from tensafe.privacy.domain_records import Domain, domain_item, find_domain
from tensafe.privacy.domain_rules import require_open
from tensafe.privacy.records import Head, RunRef, genesis, head_item, noise_item, sha256_hex
from tensafe.privacy.refusals import FROZEN, NOTHING_CHARGED, NOTHING_MORE_CHARGED, telling
from tensafe.privacy.rules import LATE, MAX_RUNS_PER_DOMAIN
from tensafe.privacy.signing import row_digest
from tensafe.privacy.totals import domain_epsilon, spent_of
from tensafe.storage.anchors import Anchors
from tensafe.storage.ports import Check, ConditionFailed, Items, JsonValue, Put, Write
from tensafe.storage.signing import Signer
from tensafe.vault.vault import Vault

NO_DEAL: Final = "no_open_deal"
_ATTEMPTS: Final = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Issued:
    """A deal that is charged: its row, and the domain's epsilon with every dealt run whole."""

    record: DealtRecord
    charge: DealtCharge
    epsilon: float


class DealtLedger:
    """Charges dealt runs. Thread-safe; any number of processes may use one domain."""

    def __init__(
        self,
        items: Items,
        vault: Vault,
        signer: Signer,
        anchors: Anchors,
        *,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._items = items
        self._vault = vault
        self._signer = signer
        self._anchoring = Anchoring(items, anchors)
        self._clock_ms = clock_ms

    def open_run(
        self, ref: RunRef, config: PrivateConfig, *, noise_key_id: str, deal_seed: bytes
    ) -> DealtRecord:
        """Freeze the run's mechanism and charge all its deals; again with the same arguments, nothing more.

        Raises InvalidRequest (the domain is not registered; other outputs are known and the run is not
        declared as fixed in advance), Conflict (the domain is not open; another configuration or secret),
        BudgetExceeded (nothing was charged), IntegrityError (the store is older than the domain's anchor).
        """
        self._anchoring.check(ref.scope)
        for attempt in range(_ATTEMPTS):
            known = self.find(ref)
            if known is not None:
                return self._opened(ref, known, config, noise_key_id)
            with telling(NOTHING_CHARGED):
                domain, head = self._open_domain(ref), self._head(ref)
                _refuse_late(ref, head, config)
                mechanism = resolve_dealt(config, domain, spent_of(head))
            self._anchoring.begin(ref.scope, head.delta)
            commitment = seed_commitment(deal_seed, mechanism.deal_terms(ref.run_id))
            record = DealtRecord(
                mechanism=mechanism,
                config_digest=config_digest(config),
                noise_key_id=noise_key_id,
                deal_commitment=commitment,
                epsilon=amplified.epsilon(mechanism.gaussian, mechanism.max_steps, mechanism.delta),
                deals=DealRecord(mechanism.max_steps),
            )
            dealt = {**head.dealt, ref.run_id: (mechanism.gaussian, mechanism.max_steps)}
            head = dataclasses.replace(head, dealt=dealt)
            row = self._row(ref, record, head, domain_epsilon(head), step=0, index=None)
            claim: dict[str, JsonValue] = {"domain": ref.domain, "run_id": ref.run_id}
            try:
                self._charge(
                    ref,
                    domain,
                    head,
                    record,
                    row,
                    first=[Put(noise_item(ref.tenant, noise_key_id), claim, 0)],
                )
            except ConditionFailed as error:
                if error.index == 0 and self.find(ref) is None:
                    raise Conflict(
                        "another run draws its noise from this secret; a run needs its own"
                    ) from None
                back_off(attempt)
                continue
            ids = {"run_id": ref.run_id, "domain": ref.domain}
            logger.info("dealt run charged whole", extra={**ids, "steps": mechanism.max_steps})
        raise _busy(ref)

    def deal(self, ref: RunRef, step: int) -> Issued:
        """Charge the deal of `step`, durably and anchored; the open one again changes nothing.

        The next one while one is open abandons that. Raises NotFound, Conflict (another step than the next;
        the domain is not open), BudgetExceeded (all deals are charged), IntegrityError, Unavailable.
        """
        self._anchoring.check(ref.scope)
        for attempt in range(_ATTEMPTS):
            record = self.get(ref)
            with telling(NOTHING_MORE_CHARGED):
                deals = deal_record.dealt(record.deals, step)
            if deals == record.deals:
                return self._issued(ref, record, step)
            with telling(NOTHING_MORE_CHARGED):
                domain = self._open_domain(ref)
            head = self._head(ref)
            if head.epsilon is None:
                raise IntegrityError(f"privacy domain {ref.domain} has a dealt run and states no epsilon")
            after = dataclasses.replace(record, deals=deals)
            row = self._row(ref, after, head, head.epsilon, step=row_step(step), index=step)
            try:
                self._charge(ref, domain, head, after, row)
            except ConditionFailed:
                back_off(attempt)
                continue
            ids = {"run_id": ref.run_id, "domain": ref.domain, "step": step}
            logger.info("deal charged", extra={**ids, "abandoned": deals.abandoned})
        raise _busy(ref)

    def abandon(self, ref: RunRef, step: int) -> DealtRecord:
        """Give the open deal of `step` up; it stays charged. Again, nothing. Raises NotFound, Conflict."""
        for attempt in range(_ATTEMPTS):
            record = self.get(ref)
            with telling(NOTHING_MORE_CHARGED):
                deals = deal_record.abandon(record.deals, step)
            if deals == record.deals:
                return record
            changed = dataclasses.replace(record, deals=deals)
            try:
                self._items.write([Put(ref.run_item, changed.to_body(), record.item_version)])
            except ConditionFailed:
                back_off(attempt)
                continue
            logger.info("deal abandoned", extra={"run_id": ref.run_id, "domain": ref.domain, "step": step})
        raise _busy(ref)

    def open_deal(self, ref: RunRef) -> Issued | None:
        """The deal that waits for its data, anchored; None if there is none. Raises NotFound."""
        record = self.get(ref)
        step = record.deals.open_step
        return None if step is None else self._issued(ref, record, step)

    def charge(self, ref: RunRef, step: int) -> DealtCharge:
        """The charge of a deal whatever became of it, to draw its one noise again. Raises NotFound."""
        return self._issued(ref, self.get(ref), step).charge

    def completion(self, ref: RunRef, step: int) -> list[Write]:
        """Writes that end the deal as complete, for the transaction that makes the step's result durable.

        They lose against whoever abandons the deal meanwhile. Raises Conflict if it is not the open one.
        """
        record = self.get(ref)
        done = dataclasses.replace(record, deals=deal_record.complete(record.deals, step))
        item = self._items.get(ref.row_item(row_step(step)))
        if item is None:
            raise IntegrityError(f"deal {step} of run {ref.run_id} is open and was never charged")
        return [
            Put(ref.run_item, done.to_body(), record.item_version),
            Put(item.key, {**item.body, "state": "applied"}, item.version, sealed=item.sealed),
        ]

    def find(self, ref: RunRef) -> DealtRecord | None:
        """The dealt run, or None if nothing is known of it. Raises Conflict for a bounded run."""
        item = self._items.get(ref.run_item)
        record = None if item is None else read_record(item)
        if record is None or isinstance(record, DealtRecord):
            return record
        raise Conflict(f"run {ref.run_id} is in the privacy ledger with bounded participation")

    def get(self, ref: RunRef) -> DealtRecord:
        """Raises NotFound."""
        record = self.find(ref)
        if record is None:
            raise NotFound(f"run {ref.run_id} is not in the privacy ledger of domain {ref.domain}")
        return record

    def epsilon(self, ref: RunRef) -> float:
        """Of the run's whole domain, as its last row states it."""
        stated_epsilon = self._head(ref).epsilon
        if stated_epsilon is None:
            raise IntegrityError(f"privacy domain {ref.domain} has a dealt run and states no epsilon")
        return stated_epsilon

    def budget_used(self, ref: RunRef) -> float:
        """The domain's epsilon over the smaller of its own limit and the run's, as charged: all deals."""
        domain, own = find_domain(self._items, ref.scope), self.get(ref).mechanism.max_epsilon
        if domain is None:
            raise IntegrityError(f"privacy domain {ref.domain} has a dealt run and is not registered")
        limit = domain.terms.max_epsilon
        return self.epsilon(ref) / (limit if own is None else min(own, limit))

    def _opened(
        self, ref: RunRef, known: DealtRecord, config: PrivateConfig, noise_key_id: str
    ) -> DealtRecord:
        if (known.config_digest, known.noise_key_id) != (config_digest(config), noise_key_id):
            raise Conflict(
                f"run {ref.run_id} was created with another privacy configuration, and that never changes; "
                f"{charged_so_far(known.deals)}. Create another run. {FROZEN}",
                field="optimizer",
            )
        self._cover(ref, 0)
        return known

    def _issued(self, ref: RunRef, record: DealtRecord, step: int) -> Issued:
        row, row_hash = self._cover(ref, row_step(step))
        return Issued(record, DealtCharge.of(ref, row, row_hash), row.epsilon)

    def _cover(self, ref: RunRef, step: int) -> tuple[DealtRow, str]:
        """A stored row, anchored: the crash may have come between the two."""
        item = self._items.get(ref.row_item(step))
        row = None if item is None else read_row(item)
        if item is None or not isinstance(row, DealtRow):
            raise IntegrityError(f"the ledger lacks row {step} of dealt run {ref.run_id}")
        row_hash = str(item.body["hash"])
        self._anchoring.cover(ref, row, row_hash)
        return row, row_hash

    def _row(
        self,
        ref: RunRef,
        record: DealtRecord,
        head: Head,
        epsilon: float,
        *,
        step: int,
        index: int | None,
    ) -> DealtRow:
        common = stated(
            record.mechanism,
            run_epsilon=record.epsilon,
            deal_commitment=record.deal_commitment,
            noise_key_id=record.noise_key_id,
        )
        return DealtRow(
            seq=head.seq + 1,
            previous=head.hash,
            run_id=ref.run_id,
            kind="opening" if index is None else "deal",
            step=step,
            index=index,
            abandoned=record.deals.abandoned,
            # An export shows rows to those who must not learn how many units a deal had: the time between
            # two deals would tell them.
            at_ms=self._clock_ms() if index is None else NOT_TOLD,
            epsilon=epsilon,
            **common,
        )

    def _charge(
        self,
        ref: RunRef,
        domain: Domain,
        head: Head,
        record: DealtRecord,
        row: DealtRow,
        *,
        first: list[Write] | None = None,
    ) -> None:
        """Row, record and head in one transaction, on the domain as it is: closing cannot race with it."""
        text = row.to_text()
        row_hash = sha256_hex(text)
        body: Mapping[str, JsonValue] = {
            "row": text,
            "hash": row_hash,
            "state": "reserved",
            "key_id": self._signer.key_id,
            "signature": self._signer.sign(row_digest(row_hash, b"")).hex(),
        }
        sealed = self._vault.seal(ref.scope, ref.tags_part(row.step), b"")
        after = dataclasses.replace(head, seq=row.seq, hash=row_hash, epsilon=row.epsilon)
        self._items.write(
            [
                *(first or ()),
                Put(ref.run_item, record.to_body(), record.item_version),
                Put(ref.row_item(row.step), body, 0, sealed=sealed),
                Put(head_item(ref.scope), after.to_body(), head.item_version),
                Check(domain_item(ref.scope), domain.item_version),
            ]
        )

    def _open_domain(self, ref: RunRef) -> Domain:
        domain = find_domain(self._items, ref.scope)
        if domain is None:
            raise InvalidRequest(
                f"privacy domain {ref.domain!r} is not registered, so nothing can be dealt from it; register "
                "its units first (POST /v1/privacy/domains, or tensafe privacy create)",
                field="optimizer.domain",
            )
        require_open(domain)
        return domain

    def _head(self, ref: RunRef) -> Head:
        item = self._items.get(head_item(ref.scope))
        if item is not None:
            return Head.from_item(item)
        delta = self._open_domain(ref).terms.delta
        return Head(delta, 0, genesis(ref.scope, delta))


def charged_so_far(deals: DealRecord) -> str:
    """What an error says of the run's charge."""
    return (
        f"all {deals.max_steps} deals of the run are charged since it was created; {deals.dealt} were made, "
        f"{deals.abandoned} of them abandoned"
    )


def _refuse_late(ref: RunRef, head: Head, config: PrivateConfig) -> None:
    if len(head.runs) + len(head.dealt) >= MAX_RUNS_PER_DOMAIN:
        raise BudgetExceeded(
            f"domain {ref.domain} has {MAX_RUNS_PER_DOMAIN} runs, which is the most it can hold; use "
            "another domain",
            field="optimizer.domain",
        )
    if head.has_released and not config.fixed_in_advance:
        raise InvalidRequest(LATE.format(domain=ref.domain), field="optimizer.fixed_in_advance")


def _busy(ref: RunRef) -> Unavailable:
    return Unavailable(f"privacy domain {ref.domain} is busy with other runs; nothing was charged; try again")
