"""What a domain's registration asks of its runs and of every charge.

Each decision comes with a Check of the domain's record for the transaction that relies on it: a domain
that is registered, finished or closed meanwhile makes that transaction lose, and it is decided anew. A
domain that is known by its name alone asks nothing, and is checked to be so still.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import BudgetExceeded, InvalidRequest
from tensafe.privacy import units
from tensafe.privacy.domain_records import Domain, domain_item, find_domain
from tensafe.privacy.domain_rules import require_open
from tensafe.privacy.domains import Domains
from tensafe.privacy.manifest import Manifest
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.records import Head, Row
from tensafe.privacy.refusals import NOTHING_CHARGED, telling
from tensafe.privacy.totals import domain_epsilon
from tensafe.storage.ports import Check, Items
from tensafe.vault.scope import Scope
from tensafe.vault.vault import Vault

UNIT_NOT_REGISTERED: Final = "unit_not_registered"


class Registration:
    """Holds the ledger's domains to what they were registered with. Thread-safe."""

    def __init__(self, items: Items, vault: Vault) -> None:
        self._items = items
        self._domains = Domains(items, vault)

    @telling(NOTHING_CHARGED)
    def admits_run(self, scope: Scope, mechanism: Mechanism, head: Head) -> Check:
        """The check of a run that joins its domain, whose ledger stands at `head`.

        Raises Conflict (the domain is closed or not finished), InvalidRequest (another delta than the
        domain's), BudgetExceeded (no participation fits what the domain has left).
        """
        domain = find_domain(self._items, scope)
        if domain is not None:
            require_open(domain)
            _refuse_unfit(domain, mechanism, head)
        return _check(scope, domain)

    def admits_units(self, scope: Scope, unit_ids: Sequence[int]) -> None:
        """Refuse units that the domain does not hold, naming the position of the first; nothing durable.

        Raises InvalidRequest, Conflict (the domain is closed or not finished).
        """
        domain = find_domain(self._items, scope)
        if domain is None:
            return
        require_open(domain)
        absent = _absent(self._domains.manifest(domain), unit_ids)
        if absent.size:
            raise _not_registered(domain, int(absent.size), len(unit_ids), units.unit_field(int(absent[0])))

    @telling(NOTHING_CHARGED)
    def admits_charge(self, scope: Scope, unit_ids: Collection[int], row: Row) -> Check:
        """The check of the transaction that writes `row`, the charge of a step with these units.

        Raises as `admits_units` (without a position), BudgetExceeded (over the domain's `max_epsilon`).
        """
        domain = find_domain(self._items, scope)
        if domain is None:
            return _check(scope, domain)
        require_open(domain)
        if unit_ids:
            absent = _absent(self._domains.manifest(domain), list(unit_ids))
            if absent.size:
                raise _not_registered(domain, int(absent.size), len(unit_ids), None)
            if row.epsilon > domain.terms.max_epsilon:
                raise BudgetExceeded(
                    f"this step would bring domain {domain.name} to epsilon {row.epsilon:.4f} at delta="
                    f"{row.delta:g}; the domain's max_epsilon, over all its runs, is "
                    f"{domain.terms.max_epsilon:g}: drop the accumulated sum with load_state, or go on in a "
                    "run with more noise. No noise was drawn and nothing was applied"
                )
        return _check(scope, domain)


def _check(scope: Scope, domain: Domain | None) -> Check:
    return Check(domain_item(scope), 0 if domain is None else domain.item_version)


def _absent(manifest: Manifest, unit_ids: Sequence[int]) -> npt.NDArray[np.intp]:
    """Where in `unit_ids` units stand that the manifest does not hold."""
    wanted = np.asarray(unit_ids, dtype=np.int64)
    at = np.searchsorted(manifest.ids, wanted)
    found = manifest.ids[np.minimum(at, manifest.units - 1)] == wanted
    return np.flatnonzero(~found)


def _refuse_unfit(domain: Domain, mechanism: Mechanism, head: Head) -> None:
    terms = domain.terms
    if mechanism.delta != terms.delta:
        raise InvalidRequest(
            f"privacy domain {domain.name} is registered with delta={terms.delta!r}; all its runs "
            "must use it: give it, or another domain",
            field="optimizer.delta",
        )
    first = domain_epsilon(head.with_run("", *mechanism.accounted(1)))
    if first > terms.max_epsilon:
        raise BudgetExceeded(
            f"privacy domain {domain.name} stands at epsilon {domain_epsilon(head):.4f}; the first "
            f"step of this run would bring it to {first:.4f}, over the domain's max_epsilon="
            f"{terms.max_epsilon:g}: use more noise",
            field="optimizer.noise_multiplier",
        )


def _not_registered(domain: Domain, absent: int, of: int, field: str | None) -> InvalidRequest:
    first = "" if field is None else f", the first of them {field.split('.')[0]},"
    return InvalidRequest(
        f"{absent} of {of} data{first} belong to units that are not among the {domain.units} registered ones "
        f"of privacy domain {domain.name}; leave them out, or register them under another name",
        field=field,
        code=UNIT_NOT_REGISTERED,
    )
