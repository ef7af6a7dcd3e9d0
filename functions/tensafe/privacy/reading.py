"""What is told of a privacy domain: its registration and what its runs have spent, its rows, its export."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tensafe.contracts.errors import IntegrityError, InvalidRequest, NotFound
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.dealt_records import read_runs
from tensafe.privacy.dealt_rows import read_row
from tensafe.privacy.domain_records import Domain, DomainState, check_domain_name
from tensafe.privacy.domains import Domains
from tensafe.privacy.export import Exporter
from tensafe.privacy.ledger import show_domain
from tensafe.privacy.records import Head, head_item, row_sort
from tensafe.privacy.statements import DomainStatement
from tensafe.privacy.totals import stated_epsilon
from tensafe.storage.anchors import Anchors
from tensafe.storage.ports import Item, Items, JsonValue
from tensafe.storage.signing import Signer
from tensafe.vault.scope import Scope, domain_scope
from tensafe.vault.vault import Vault


@dataclass(frozen=True, slots=True)
class Summary:
    """A domain in a listing. `epsilon` at `delta` of everything its runs have released; `units` is N."""

    name: str
    state: DomainState | Literal["unregistered"]
    delta: float
    epsilon: float
    steps: int
    runs: int
    units: int | None = None
    max_epsilon: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Overview:
    """A domain as it is registered, and what its ledger says; one of the two may be None, not both."""

    tenant: str
    name: str
    registered: Domain | None
    spent: DomainStatement | None

    @property
    def delta(self) -> float:
        """The domain's delta, from its terms or its ledger."""
        if self.registered is not None:
            return self.registered.terms.delta
        if self.spent is None:
            raise IntegrityError(f"privacy domain {self.name} has neither terms nor a ledger")
        return self.spent.delta


class DomainReader:
    """Reads the domains of one store. Whatever it tells of a ledger is held to its anchor first."""

    def __init__(
        self, items: Items, vault: Vault, signer: Signer, anchors: Anchors, domains: Domains
    ) -> None:
        self._items = items
        self._anchoring = Anchoring(items, anchors)
        self._exporter = Exporter(items, vault, signer, self._anchoring)
        self._domains = domains

    def show(self, tenant: str, name: str) -> Overview:
        """The domain. Raises NotFound, IntegrityError (the store is older than its anchor)."""
        registered = self._domains.find(tenant, _possible(name))
        try:
            spent = show_domain(self._items, self._anchoring, tenant, name)
        except NotFound:
            spent = None
        if registered is None and spent is None:
            raise _absent(name)
        return Overview(tenant, name, registered, spent)

    def summaries(self, tenant: str, *, limit: int = 100, after_name: str = "") -> list[Summary]:
        """The tenant's domains by name, those behind `after_name`."""
        names = self._domains.names(tenant, limit=limit, after_name=after_name)
        return [self._summary(tenant, name) for name in names]

    def rows(self, tenant: str, name: str, *, after: int = 0, limit: int = 100) -> list[dict[str, JsonValue]]:
        """Rows `after` + 1 and on, in order, at most `limit`. Raises as `show`.

        Beside a row's own fields: its `state`, `hash`, `key_id` and `signature`.
        """
        spent = self.show(tenant, name).spent
        if spent is None:
            return []
        # The head before the runs: rows that are charged meanwhile come with the next page, none is skipped.
        found = _rows_between(self._items, domain_scope(tenant, name), after, spent.steps)
        return [row_fields(item) for item in itertools.islice(found, limit)]

    def export(self, tenant: str, name: str, *, at_ms: int) -> Iterator[bytes]:
        """The lines that `tensafe privacy verify` takes. Raises NotFound for a ledger without a run."""
        return self._exporter.lines(tenant, _possible(name), at_ms=at_ms)

    def _summary(self, tenant: str, name: str) -> Summary:
        domain = self._domains.find(tenant, name)
        item = self._items.get(head_item(domain_scope(tenant, name)))
        head = None if item is None else Head.from_item(item)
        if head is not None:
            delta = head.delta
        elif domain is not None:
            delta = domain.terms.delta
        else:
            raise IntegrityError(f"privacy domain {name} is listed, and has neither terms nor a ledger")
        return Summary(
            name=name,
            state="unregistered" if domain is None else domain.state,
            delta=delta,
            epsilon=0.0 if head is None else stated_epsilon(head),
            steps=0 if head is None else head.seq,
            runs=0 if head is None else len(head.runs) + len(head.dealt),
            units=None if domain is None else domain.units,
            max_epsilon=None if domain is None else domain.terms.max_epsilon,
            warnings=() if domain is None else domain.warnings,
        )


def _possible(name: str) -> str:
    """The name if any domain could have it. Raises NotFound."""
    try:
        return check_domain_name(name)
    except InvalidRequest:
        raise _absent(name) from None


def _absent(name: str) -> NotFound:
    return NotFound(f"there is no privacy domain {name[:128]!r}")


def row_fields(item: Item) -> dict[str, JsonValue]:
    """A stored row as it is told: its own fields, and what is kept beside it."""
    return {
        **json.loads(str(item.body["row"])),
        "state": item.body["state"],
        "hash": item.body["hash"],
        "key_id": item.body.get("key_id"),
        "signature": item.body.get("signature"),
    }


def _rows_between(items: Items, scope: Scope, after: int, last: int) -> Iterator[Item]:
    """The domain's rows behind row `after` up to `last`, in order; a run's are found by bisection."""
    runs = [
        _run_after(items, scope, run_id, run.last_step, after)
        for run_id, run in read_runs(items, scope).items()
        if run.last_step >= 0
    ]
    rows = heapq.merge(*runs, key=lambda one: one[0])
    return (item for _, item in itertools.takewhile(lambda one: one[0] <= last, rows))


def _run_after(
    items: Items, scope: Scope, run_id: str, last_step: int, after: int
) -> Iterator[tuple[int, Item]]:
    """A run's rows behind row `after` with their numbers, which only grow with their steps."""
    low, high = 0, last_step + 1  # the first step behind it is in low..high
    last = row_sort(run_id, last_step)
    while low < high:
        middle = (low + high) // 2
        page = items.query(scope.name, first=row_sort(run_id, middle), last=last, limit=1)
        row = read_row(page[0])  # there is one: the last step has a row
        if row.seq > after:
            high = middle
        else:
            low = row.step + 1
    first = row_sort(run_id, low)
    while page := items.query(scope.name, first=first, last=last):
        for item in page:
            yield read_row(item).seq, item
        first = page[-1].key.sort + "!"
