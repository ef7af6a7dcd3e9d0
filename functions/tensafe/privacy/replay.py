"""Independent recomputation of a domain's ledger from its rows.

Believes no stored total: verifies the hash chain, recounts every unit's participations from the sealed
tags, recomputes every epsilon, and compares the outcome with the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tensafe.contracts.errors import IntegrityError, NotFound, Unavailable
from tensafe.privacy.amplified import DealtGaussian
from tensafe.privacy.bisr import sensitivity
from tensafe.privacy.counting import open_tags
from tensafe.privacy.dealt_records import AnyRecord, DealtRecord, read_runs
from tensafe.privacy.dealt_rows import DealtRow, read_row
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.records import (
    STEP_MAX,
    Head,
    Row,
    RunRecord,
    RunRef,
    genesis,
    head_item,
    row_sort,
)
from tensafe.privacy.replay_dealt import DealtReplay
from tensafe.privacy.statements import DomainStatement
from tensafe.privacy.totals import domain_epsilon
from tensafe.privacy.units import ParticipationCounts
from tensafe.storage.ports import Item, Items
from tensafe.vault.scope import Scope, domain_scope
from tensafe.vault.vault import Vault

_EPSILON_TOLERANCE: Final = 1e-6
"""Relative; another release of dp-accounting may find the same root with another last digit."""
_SENSITIVITY_TOLERANCE: Final = 1e-9
"""Relative; another processor may add in another order. It is rounded up by 1e-6."""
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class _Link:
    """What the chain's check needs of a row; `participations` is our own count, 0 in dealt runs."""

    row: Row | DealtRow
    row_hash: str
    participations: int


def replay(items: Items, vault: Vault, tenant: str, domain: str) -> DomainStatement:
    """Recompute the domain's statement from its rows; equal to what `Ledger.show` says.

    Raises IntegrityError naming the first row or run that differs, NotFound, Unavailable (steps were
    charged all the while; try again).
    """
    scope = domain_scope(tenant, domain)
    for _ in range(_ATTEMPTS):
        before = _head(items, scope)
        runs = read_runs(items, scope)
        links = [link for run_id, run in runs.items() for link in _links(items, vault, scope, run_id, run)]
        if _head(items, scope).item_version == before.item_version:
            _verify(before, runs, sorted(links, key=lambda link: link.row.seq), scope)
            return DomainStatement.of(tenant, domain, before, runs)
    raise Unavailable(f"privacy domain {domain} is being charged; try again when it is quieter")


def _head(items: Items, scope: Scope) -> Head:
    item = items.get(head_item(scope))
    if item is None:
        raise NotFound(f"there is no such privacy domain: {scope.name}")
    return Head.from_item(item)


def _rows(items: Items, ref: RunRef) -> Iterator[Item]:
    first, last = row_sort(ref.run_id, 0), row_sort(ref.run_id, STEP_MAX)
    while page := items.query(ref.scope.name, first=first, last=last):
        yield from page
        first = page[-1].key.sort + "!"


def _links(items: Items, vault: Vault, scope: Scope, run_id: str, run: AnyRecord) -> Iterator[_Link]:
    ref = RunRef(scope.tenant, run.mechanism.domain, run_id)
    if isinstance(run, DealtRecord):
        for item in _rows(items, ref):
            yield _Link(read_row(item), str(item.body["hash"]), 0)
        return
    counts = ParticipationCounts(run.mechanism.min_separation)
    for item in _rows(items, ref):
        row, tags = open_tags(vault, ref, item)
        if row.version > 1 and row.index != counts.steps:
            raise IntegrityError(f"ledger row {item.key.sort} names the noise of another step")
        if counts.early_positions(tags):
            raise IntegrityError(f"ledger row {item.key.sort} charges a unit before its separation")
        counts.add(tags)
        if len(set(tags)) != len(tags) or counts.largest > run.mechanism.max_participations:
            raise IntegrityError(f"ledger row {item.key.sort} charges a unit beyond its participations")
        yield _Link(row, str(item.body["hash"]), counts.largest)


def _verify(head: Head, runs: dict[str, AnyRecord], links: list[_Link], scope: Scope) -> None:
    previous = genesis(scope, head.delta)
    bounded = {run_id: run for run_id, run in runs.items() if isinstance(run, RunRecord)}
    dealt = DealtReplay({run_id: run for run_id, run in runs.items() if isinstance(run, DealtRecord)})
    for run_id, run in bounded.items():
        _check_sensitivity(run_id, run.mechanism)
    spent = {run_id: run.mechanism.accounted(0) for run_id, run in bounded.items()}
    largest = dict.fromkeys(bounded, 0)
    steps = dict.fromkeys(bounded, 0)
    last = dict.fromkeys(bounded, -1)
    total = 0.0
    for seq, link in enumerate(links, start=1):
        row = link.row
        if (row.seq, row.previous) != (seq, previous):
            raise IntegrityError(f"the ledger's chain breaks at row {seq} (run {row.run_id} step {row.step})")
        previous = link.row_hash
        if isinstance(row, DealtRow):
            if dealt.take(row):
                total = _total(head, spent, dealt.opened)
            _check_epsilon(row, total)
            continue
        mechanism = bounded[row.run_id].mechanism
        largest[row.run_id] = link.participations
        spent[row.run_id] = mechanism.accounted(link.participations)
        total = _total(head, spent, dealt.opened)
        _compare(row, link.participations, mechanism)
        _check_epsilon(row, total)
        steps[row.run_id] += 1
        last[row.run_id] = row.step
    if (head.seq, head.hash) != (len(links), previous):
        raise IntegrityError(f"the ledger's head says {head.seq} rows, the chain has {len(links)}")
    if dict(head.runs) != spent:
        raise IntegrityError("the ledger's head and its rows differ in a run's participations or noise")
    dealt.finish(head)
    if head.epsilon is not None and not math.isclose(head.epsilon, total, rel_tol=_EPSILON_TOLERANCE):
        raise IntegrityError(f"the head states epsilon {head.epsilon:.6f}, its rows give {total:.6f}")
    for run_id, run in bounded.items():
        if (run.steps, run.last_step, run.participations) != (steps[run_id], last[run_id], largest[run_id]):
            raise IntegrityError(f"the record of run {run_id} does not agree with its rows")


def _total(
    head: Head, spent: dict[str, tuple[float, int]], opened: dict[str, tuple[DealtGaussian, int]]
) -> float:
    return domain_epsilon(Head(head.delta, 0, "", spent, dealt=opened))


def _check_epsilon(row: Row | DealtRow, total: float) -> None:
    if not math.isclose(row.epsilon, total, rel_tol=_EPSILON_TOLERANCE):
        raise IntegrityError(f"row {row.seq} states epsilon {row.epsilon:.6f}, its rows give {total:.6f}")


def _compare(row: Row, participations: int, mechanism: Mechanism) -> None:
    if (row.participations, row.noise_multiplier) != (participations, mechanism.noise_multiplier):
        raise IntegrityError(f"row {row.seq} states another count or noise than its run")
    if (row.version, row.mode) != (mechanism.version, mechanism.mode) or (
        row.version > 1 and _correlation(row) != _correlation(mechanism)
    ):
        raise IntegrityError(f"row {row.seq} states another mechanism than its run")
    _check_attested(row, mechanism)


def _correlation(of: Row | Mechanism) -> tuple[object, ...]:
    correlated = (of.max_steps, of.min_separation, of.bisr_bandwidth, of.sensitivity, of.coefficient_hash)
    return (*correlated, of.attested_probability)


def _check_attested(row: Row, mechanism: Mechanism) -> None:
    wanted = None if row.index is None else mechanism.attested_epsilon(row.index + 1)
    stated = row.attested_epsilon
    same = wanted is None or stated is None or math.isclose(stated, wanted, rel_tol=_EPSILON_TOLERANCE)
    if (wanted is None) != (stated is None) or not same:
        raise IntegrityError(f"row {row.seq} states attested epsilon {stated}, its steps give {wanted}")


def _check_sensitivity(run_id: str, mechanism: Mechanism) -> None:
    """Compute it anew from the coefficients: epsilon rests on it."""
    if mechanism.bisr_bandwidth is None or mechanism.sensitivity is None or mechanism.max_steps is None:
        return
    exact = sensitivity(
        mechanism.bisr_bandwidth,
        steps=mechanism.max_steps,
        participations=mechanism.max_participations,
        min_separation=mechanism.min_separation,
    )
    if not math.isclose(mechanism.sensitivity, exact, rel_tol=_SENSITIVITY_TOLERANCE):
        raise IntegrityError(
            f"run {run_id} states sensitivity {mechanism.sensitivity:.9g}, its coefficients give {exact:.9g}"
        )
