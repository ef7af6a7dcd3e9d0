"""The durable privacy ledger: charge first, draw noise afterwards, never refund.

The order of a step is: `reserve` (signed, durable, anchored) -> draw noise -> apply -> `commit`. A crash
after reserve counts as spent, and the retry gets the stored charge, so that it regenerates the same noise
for the same sum. Scope is the privacy domain: forks, reruns and sweeps are runs of one domain and compose.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Final

from tensafe.contracts.errors import (
    BudgetExceeded,
    Conflict,
    IntegrityError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from tensafe.operations.streams import now_ms
from tensafe.privacy import rules, units
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.backing_off import back_off
from tensafe.privacy.counting import RunCounts
from tensafe.privacy.dealt_records import DealtRecord, read_record, read_runs
from tensafe.privacy.domain_records import find_domain, listing
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.records import (
    STEP_MAX,
    Head,
    Row,
    RunRecord,
    RunRef,
    genesis,
    head_item,
    noise_item,
    sha256_hex,
)
from tensafe.privacy.refusals import FROZEN, NOTHING_CHARGED, telling
from tensafe.privacy.registration import Registration
from tensafe.privacy.signing import row_digest
from tensafe.privacy.statements import Charge, DomainStatement
from tensafe.privacy.totals import stated_epsilon
from tensafe.storage.anchors import Anchors
from tensafe.storage.ports import ConditionFailed, Item, Items, JsonValue, Put, Write
from tensafe.storage.signing import Signer
from tensafe.vault.scope import Scope, domain_scope
from tensafe.vault.vault import Vault

MAX_EXTRA_WRITES: Final = 90
MAX_BINDING_CHARS: Final = 128
_ATTEMPTS: Final = 200

logger = logging.getLogger(__name__)


class Ledger:
    """Charges steps of private runs. Thread-safe; any number of processes may use one domain."""

    def __init__(
        self,
        items: Items,
        vault: Vault,
        signer: Signer,
        anchors: Anchors,
        *,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        """`signer` vouches for every row; `anchors` remember, outside `items`, how far the chain has come."""
        self._items = items
        self._vault = vault
        self._signer = signer
        self._anchoring = Anchoring(items, anchors)
        self._checked: set[Scope] = set()
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._counts = RunCounts(items, vault)
        self._registration = Registration(items, vault)

    def open_run(
        self,
        tenant: str,
        run_id: str,
        mechanism: Mechanism,
        *,
        noise_key_id: str,
        fixed_in_advance: bool = False,
    ) -> RunRef:
        """Register a run in its domain; again with the same arguments, it does nothing.

        `noise_key_id` names the run's noise secret (`noise.noise_key_id`), which no run may share.
        `fixed_in_advance`: the owner's declaration, which a domain with dealt runs may ask for.
        Raises Conflict (another mechanism or secret; a registered domain that is not open), InvalidRequest
        (another delta than the domain's, too many runs), BudgetExceeded (no participation fits what the
        domain has left), IntegrityError (the store is older than the domain's anchor).
        """
        ref = RunRef(tenant, mechanism.domain, run_id)
        self._anchoring.check(ref.scope)
        record = RunRecord(mechanism, noise_key_id, fixed_in_advance=fixed_in_advance)
        for attempt in range(_ATTEMPTS):
            stored = self._items.get(ref.run_item)
            if stored is not None:
                known = _bounded(ref, read_record(stored))
                if (known.mechanism, known.noise_key_id) != (mechanism, noise_key_id):
                    raise Conflict(
                        f"run {run_id} is in the privacy ledger with another mechanism or secret; create "
                        f"another run. {FROZEN}"
                    )
                self._anchoring.begin(ref.scope, mechanism.delta)
                return ref
            try:
                self._items.write(self._opening(ref, record))
            except ConditionFailed as error:
                if error.index == 0:
                    self._refuse_shared_secret(ref, noise_key_id)
                back_off(attempt)
                continue
            self._anchoring.begin(ref.scope, mechanism.delta)
            logger.info("privacy run opened", extra={"run_id": run_id, "domain": mechanism.domain})
            return ref
        raise _busy(ref)

    def mechanism(self, ref: RunRef) -> Mechanism:
        """The run's frozen mechanism. Raises NotFound."""
        return self._record(ref).mechanism

    @telling(NOTHING_CHARGED)
    def check_units(
        self, ref: RunRef, unit_ids: Sequence[int | None], *, accumulated: Collection[int] = ()
    ) -> None:
        """Refuse data that a later `reserve` could not charge; one id per datum, repeats allowed.

        `accumulated` are the units of earlier calls of the same step: none of them may return, since
        its contribution would be clipped twice. Raises InvalidRequest or BudgetExceeded, naming a
        position of the request and nothing of other units, and Conflict (the domain is closed).
        """
        ids = units.checked_ids(unit_ids)
        self._registration.admits_units(ref.scope, ids)
        present = set(accumulated)
        if len(present | set(ids)) > units.MAX_UNITS_PER_STEP:
            raise InvalidRequest(
                f"one step has at most {units.MAX_UNITS_PER_STEP} units; this call would bring it to "
                f"{len(present | set(ids))}: call optim_step first, or send fewer",
                field="data",
            )
        for position, unit_id in enumerate(ids):
            if unit_id in present:
                raise InvalidRequest(
                    f"the unit at position {position} is already in this step from an earlier "
                    "forward_backward; send all data of a unit in one call, or in another step",
                    field=units.unit_field(position),
                )
        self._check_once(ref.scope)
        tags = units.unit_tags(self._secret(ref.scope), ids)
        with self._lock:
            record = self._record(ref)
            limit = record.mechanism.max_participations
            counts = self._counts.up_to(ref, record)
            spent, early = counts.spent_positions(tags, limit), counts.early_positions(tags)
            wait = counts.steps_to_wait(tags[early[0]]) if early else 0
        if spent:
            raise BudgetExceeded(
                f"{len(spent)} of {len(tags)} data, the first at position {spent[0]}, belong to units that "
                f"have taken part in max_participations={limit} steps of this run; leave them out",
                field=units.unit_field(spent[0]),
            )
        if early:
            raise InvalidRequest(
                f"{len(early)} of {len(tags)} data belong to units whose last step in this run is less than "
                f"min_separation={record.mechanism.min_separation} steps ago; the first, at position "
                f"{early[0]}, may return after {wait} more step(s) without it: leave them out until then",
                field=units.unit_field(early[0]),
            )

    def reserve(
        self,
        ref: RunRef,
        step: int,
        unit_ids: Collection[int],
        *,
        binding: str = "",
        extra_writes: Sequence[Write] = (),
    ) -> Charge:
        """Charge a step, durably, before its noise is drawn; the same step again returns its charge.

        `step` names the release for ever, such as the operation's number in the run's log: never a
        counter that a checkpoint resets. `unit_ids`: the units of the accumulator, each once; none
        charges nothing. `binding`: digest of what the step sums, so that a retry with another sum is
        refused. `extra_writes` (such as the fence's Check) share the transaction.

        Raises BudgetExceeded (nothing was written), Conflict (the step is taken by other units or
        another binding, or lies before the run's last; the domain is closed), ConditionFailed (an extra
        write lost; `index` counts in `extra_writes`), InvalidRequest, NotFound, IntegrityError (the store is
        older than the domain's anchor), Unavailable (if only the anchor could not be moved, the step stays
        charged).
        """
        _check_arguments(step, binding, extra_writes)
        self._check_once(ref.scope)
        secret = self._secret(ref.scope)
        ids = units.checked_set(unit_ids)
        tags = units.unit_tags(secret, ids)
        asked = rules.Step(ref.run_id, step, tags, units.set_digest(secret, tags), binding)
        packed = units.pack(tags)
        sealed = self._vault.seal(ref.scope, ref.tags_part(step), packed)
        for attempt in range(_ATTEMPTS):
            with self._lock:
                # The record before the row: a row that is absent afterwards was absent then.
                state = self._state(ref)
                stored = self._items.get(ref.row_item(step))
                if stored is not None:
                    return self._stored_charge(ref, stored, asked)
                row = rules.next_row(state, asked, self._clock_ms())
            admitted = self._registration.admits_charge(ref.scope, ids, row)
            text = row.to_text()
            row_hash = sha256_hex(text)
            body = {"row": text, "hash": row_hash, "state": "reserved", **self._signed(row_hash, packed)}
            charging = [*_charging(ref, state, row, row_hash), admitted]
            try:
                self._items.write([*extra_writes, Put(ref.row_item(step), body, 0, sealed=sealed), *charging])
            except ConditionFailed as error:
                if error.index < len(extra_writes):
                    raise
                back_off(attempt)
                continue
            told = {"run_id": ref.run_id, "domain": ref.domain, "step": step}
            logger.info("privacy step charged", extra={**told, "epsilon": row.epsilon})
            self._anchoring.cover(ref, row, row_hash)
            return Charge.of(ref, row, row_hash)
        raise _busy(ref)

    def commit(self, ref: RunRef, step: int, *, extra_writes: Sequence[Write] = ()) -> None:
        """Mark a charged step applied; again, it does nothing (the extra writes still happen).

        Raises NotFound for a step that was never charged, ConditionFailed for a write that lost.
        """
        writes = [*extra_writes, *self.commit_writes(ref, step)]
        if writes:
            self._items.write(writes)

    def commit_writes(self, ref: RunRef, step: int) -> list[Write]:
        """The writes of `commit`, for the transaction that makes the step's result durable."""
        item = self._items.get(ref.row_item(step))
        if item is None:
            raise NotFound(f"step {step} of run {ref.run_id} was never charged")
        if item.body["state"] == "applied":
            return []
        return [Put(item.key, {**item.body, "state": "applied"}, item.version, sealed=item.sealed)]

    def spent(self, ref: RunRef) -> float:
        """Epsilon of the run's whole domain so far. Raises NotFound."""
        head = self._head(ref.scope)
        if head is None:
            raise NotFound(f"there is no privacy domain {ref.domain!r}")
        return stated_epsilon(head)

    def budget_used(self, charge: Charge, own: float | None) -> float | None:
        """The domain's epsilon with this charge over the smaller of its registered limit and the run's `own`.

        None where neither has one.
        """
        domain = find_domain(self._items, charge.run.scope)
        limits = [] if own is None else [own]
        if domain is not None:
            limits.append(domain.terms.max_epsilon)
        return charge.epsilon / min(limits) if limits else None

    def show(self, tenant: str, domain: str) -> DomainStatement:
        """`show_domain` of this ledger's store."""
        return show_domain(self._items, self._anchoring, tenant, domain)

    def _opening(self, ref: RunRef, record: RunRecord) -> list[Write]:
        """Writes that register a run; the claim on its noise secret is the first."""
        mechanism = record.mechanism
        claim = {"domain": ref.domain, "run_id": ref.run_id}
        writes: list[Write] = [
            Put(noise_item(ref.tenant, record.noise_key_id), {**claim}, 0),
            Put(ref.run_item, record.to_body(), 0),
        ]
        head = self._head(ref.scope)
        if head is None:
            head = Head(mechanism.delta, 0, genesis(ref.scope, mechanism.delta))
            if self._items.get(ref.scope.key_item) is None:
                writes.append(self._vault.new_key(ref.scope))
            writes += listing(self._items, ref.scope)
        rules.refuse_unfit(head, mechanism, fixed_in_advance=record.fixed_in_advance)
        admitted = self._registration.admits_run(ref.scope, mechanism, head)
        head = head.with_run(ref.run_id, *mechanism.accounted(0))
        writes += [Put(head_item(ref.scope), head.to_body(), head.item_version), admitted]
        return writes

    def _refuse_shared_secret(self, ref: RunRef, noise_key_id: str) -> None:
        claim = self._items.get(noise_item(ref.tenant, noise_key_id))
        if claim is not None and (claim.body["domain"], claim.body["run_id"]) != (ref.domain, ref.run_id):
            raise Conflict("another run draws its noise from this secret; a run needs a fresh one")

    def _state(self, ref: RunRef) -> rules.State:
        record = self._record(ref)
        head = self._head(ref.scope)
        if head is None:
            raise IntegrityError(f"privacy domain {ref.domain} has runs and no head")
        return rules.State(head, record, self._counts.up_to(ref, record))

    def _record(self, ref: RunRef) -> RunRecord:
        item = self._items.get(ref.run_item)
        if item is None:
            raise NotFound(f"run {ref.run_id} is not in the privacy ledger of domain {ref.domain}")
        return _bounded(ref, read_record(item))

    def _head(self, scope: Scope) -> Head | None:
        item = self._items.get(head_item(scope))
        return None if item is None else Head.from_item(item)

    def _signed(self, row_hash: str, packed_tags: bytes) -> dict[str, JsonValue]:
        signature = self._signer.sign(row_digest(row_hash, packed_tags))
        return {"key_id": self._signer.key_id, "signature": signature.hex()}

    def _check_once(self, scope: Scope) -> None:
        """Hold the domain to its anchor at its first use here; every charge is held to it afterwards."""
        if scope not in self._checked:
            self._anchoring.check(scope)
            self._checked.add(scope)

    def _stored_charge(self, ref: RunRef, item: Item, asked: rules.Step) -> Charge:
        """The charge that a row proves; anchored first, for the crash may have come before that."""
        row, row_hash = Row.from_item(item), str(item.body["hash"])
        if (row.units_digest, row.binding) != (asked.digest, asked.binding):
            raise Conflict(
                f"step {row.step} of run {ref.run_id} is charged for other units or another sum; "
                "its noise must not be used twice"
            )
        self._anchoring.cover(ref, row, row_hash)
        return Charge.of(ref, row, row_hash)

    def _secret(self, scope: Scope) -> bytes:
        """32-byte secret of the domain's unit tags: a keyed digest under the domain's data key."""
        return bytes.fromhex(self._vault.fingerprint(scope, "privacy/unit-tags/v1", b""))


def show_domain(items: Items, anchoring: Anchoring, tenant: str, domain: str) -> DomainStatement:
    """What the domain has spent, and each run's part.

    Raises NotFound, IntegrityError (also if the store is older than the anchor: it would say too little).
    """
    scope = domain_scope(tenant, domain)
    anchoring.check(scope)
    item = items.get(head_item(scope))
    if item is None:
        raise NotFound(f"there is no privacy domain {domain!r}")
    return DomainStatement.of(tenant, domain, Head.from_item(item), read_runs(items, scope))


def _bounded(ref: RunRef, record: RunRecord | DealtRecord) -> RunRecord:
    if isinstance(record, DealtRecord):
        raise Conflict(f"run {ref.run_id} is in the privacy ledger as a dealt run")
    return record


def _check_arguments(step: int, binding: str, extra_writes: Sequence[Write]) -> None:
    if not 0 <= step <= STEP_MAX:
        raise InvalidRequest(f"step must be from 0 to {STEP_MAX}, got {step}", field="step")
    if len(binding) > MAX_BINDING_CHARS:
        raise InvalidRequest(f"binding must be a digest of at most {MAX_BINDING_CHARS} characters")
    if len(extra_writes) > MAX_EXTRA_WRITES:
        raise InvalidRequest(f"at most {MAX_EXTRA_WRITES} extra writes, got {len(extra_writes)}")


def _charging(ref: RunRef, state: rules.State, row: Row, row_hash: str) -> list[Write]:
    """What changes beside the new row, each conditional on what the row was computed from."""
    record, head = rules.advanced(state, row, row_hash)
    return [
        Put(ref.run_item, record.to_body(), record.item_version),
        Put(head_item(ref.scope), head.to_body(), head.item_version),
    ]


def _busy(ref: RunRef) -> Unavailable:
    return Unavailable(f"privacy domain {ref.domain} is busy with other runs; nothing was charged; try again")
