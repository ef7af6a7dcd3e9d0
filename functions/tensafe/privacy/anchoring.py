"""Holds the ledger to its anchor, so that a store that is put back to an older copy is refused.

After a charge is durable and before its noise is drawn, the domain's mark is moved to its row. So at
every moment the store is at the mark or ahead of it: ahead by what a crash left between the two, or
by what another process is about to mark. A store that lacks the row that the mark names is another
one, or older; nothing is charged on it and no noise is drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from tensafe.contracts.errors import IntegrityError, NotFound, Unavailable
from tensafe.privacy.dealt_records import read_runs
from tensafe.privacy.dealt_rows import DealtRow, read_row
from tensafe.privacy.records import STEP_MAX, Head, Row, RunRef, genesis, head_item, row_sort
from tensafe.storage.anchors import Anchors, Mark
from tensafe.storage.ports import ConditionFailed, Item, Items, JsonValue, Key
from tensafe.vault.scope import Scope, domain_scope

_ATTEMPTS: Final = 200
_PAGE: Final = 100
ABANDONED: Final = "abandoned"
_RESTORE: Final = (
    "Put the newer store back. If it is lost, so is the record of what the domain spent: "
    "`tensafe privacy abandon` closes this domain for ever and lets the service start"
)

logger = logging.getLogger(__name__)


class Anchoring:
    """Checks and moves the marks of privacy domains. Thread-safe; any number of processes."""

    def __init__(self, items: Items, anchors: Anchors) -> None:
        self._items = items
        self._anchors = anchors

    def check(self, scope: Scope) -> None:
        """Raise IntegrityError unless the domain's head is the anchored one or extends it.

        A head that extends it is anchored. A domain that nobody has charged may have no mark yet.
        """
        for _ in range(_ATTEMPTS):
            mark = self._mark(scope)  # before the head: a head that is read later is never behind it
            item = self._items.get(head_item(scope))
            head = None if item is None else Head.from_item(item)
            seq = 0 if head is None else head.seq
            if mark is None and seq > 0:
                # The mark comes before a domain's first row: if it was begun meanwhile, it is there now.
                if self._mark(scope) is None:
                    raise _no_mark(scope, seq)
                continue
            if mark is not None and mark.position > seq:
                raise _rolled_back(scope, seq, mark)
            if mark is None or head is None or seq == 0:
                return
            try:
                self._extend(scope, mark, seq, head.hash)
            except ConditionFailed:
                continue
            return
        raise _busy(scope)

    def begin(self, scope: Scope, delta: float) -> None:
        """Mark a domain without rows; nothing if it has rows. For a domain that `check` has passed."""
        first = Mark(scope.name, 0, _body(genesis(scope, delta), "", -1))
        for _ in range(_ATTEMPTS):
            mark = self._mark(scope)
            if mark is not None and (mark.position > 0 or mark == first):
                return
            try:
                self._anchors.put(first, after=mark)
            except ConditionFailed:
                continue
            return
        raise _busy(scope)

    def cover(self, ref: RunRef, row: Row | DealtRow, row_hash: str) -> None:
        """Return once the mark stands at this durable row or at one that follows it, durably.

        Raises IntegrityError if the store holds another chain than the one that was anchored, Unavailable.
        """
        scope = ref.scope
        for _ in range(_ATTEMPTS):
            mark = self._mark(scope)
            if mark is None:
                raise IntegrityError(f"the anchor of privacy domain {ref.domain} has gone")
            try:
                self._extend(scope, mark, row.seq, row_hash, row)
            except ConditionFailed:
                continue
            return
        raise _busy(scope)

    def adopt(self, scope: Scope) -> None:
        """Mark a domain that was charged before there were anchors; its rows must have been replayed.

        Nothing if it has a mark: that one is to be held to. Raises NotFound.
        """
        item = self._items.get(head_item(scope))
        if item is None:
            raise NotFound(f"there is no such privacy domain: {scope.name}")
        head = Head.from_item(item)
        if self._mark(scope) is not None:
            return
        rows = self._rows_after(scope, head.seq - 1, head.seq) if head.seq else {}
        run_id, step = (rows[head.seq][0].run_id, rows[head.seq][0].step) if rows else ("", -1)
        self._anchors.put(Mark(scope.name, head.seq, _body(head.hash, run_id, step)), after=None)

    def abandon(self, scope: Scope) -> None:
        """Close the domain for ever: nothing is charged to it any more. Again, it does nothing."""
        for _ in range(_ATTEMPTS):
            mark = self._anchors.get(scope.name)
            known = mark or Mark(scope.name, 0, _body("", "", -1))
            try:
                self._anchors.put(replace(known, body={**known.body, "state": ABANDONED}), after=mark)
            except ConditionFailed:
                continue
            return
        raise _busy(scope)

    def _extend(
        self, scope: Scope, mark: Mark, seq: int, row_hash: str, row: Row | DealtRow | None = None
    ) -> None:
        """Move the mark to the row `seq`, which must extend it; nothing if it stands there or beyond.

        `row` is that row, where it is at hand. Raises ConditionFailed if the mark has moved meanwhile.
        """
        anchored = str(mark.body["hash"])
        if mark.position == seq:
            if anchored != row_hash:
                raise _another_chain(scope, mark)
            return
        if mark.position > seq:
            self._require_row(scope, mark, seq)
            return
        if row is None or mark.position < seq - 1:
            rows = self._rows_after(scope, mark.position, seq)
            row = _check_links(scope, mark, rows, seq, row_hash)
        elif row.previous != anchored:
            raise _another_chain(scope, mark)
        body = _body(row_hash, row.run_id, row.step)
        self._anchors.put(Mark(scope.name, seq, body), after=mark)

    def _require_row(self, scope: Scope, mark: Mark, seq: int) -> None:
        """The mark is ahead of a row just written: right if another process has charged since."""
        item = self._items.get(Key(scope.name, row_sort(str(mark.body["run_id"]), _step(mark))))
        if item is None:
            raise _rolled_back(scope, seq, mark)
        if item.body["hash"] != mark.body["hash"]:
            raise _another_chain(scope, mark)

    def _rows_after(self, scope: Scope, position: int, seq: int) -> dict[int, tuple[Row | DealtRow, str]]:
        """Rows `position` + 1 to `seq` by their number; read from the end of each run."""
        found: dict[int, tuple[Row | DealtRow, str]] = {}
        for run_id in read_runs(self._items, scope):
            for item in self._backwards(scope, run_id):
                row = read_row(item)
                if row.seq <= position:
                    break
                if row.seq <= seq:
                    found[row.seq] = (row, str(item.body["hash"]))
        return found

    def _backwards(self, scope: Scope, run_id: str) -> Iterator[Item]:
        """The run's rows, newest first; a page at a time."""
        first, last, limit = row_sort(run_id, 0), row_sort(run_id, STEP_MAX), 1
        while page := self._items.query(scope.name, first=first, last=last, limit=limit, descending=True):
            yield from page
            step = read_row(page[-1]).step
            if step == 0:
                return
            last, limit = row_sort(run_id, step - 1), _PAGE

    def _mark(self, scope: Scope) -> Mark | None:
        mark = self._anchors.get(scope.name)
        if mark is not None and mark.body["state"] == ABANDONED:
            raise IntegrityError(
                f"privacy domain {_name(scope)} was abandoned, since its store had lost rows; nothing is "
                "charged to it any more: use another domain"
            )
        return mark


def is_abandoned(mark: Mark) -> bool:
    """Whether an operator has closed the domain for ever."""
    return mark.body["state"] == ABANDONED


def check_all(items: Items, anchors: Anchors) -> None:
    """Hold every domain that was ever charged to its mark, as a start does. Raises IntegrityError."""
    anchoring = Anchoring(items, anchors)
    for mark in anchors.all():
        if is_abandoned(mark):
            logger.warning("abandoned privacy domain", extra={"domain": mark.name})
        else:
            anchoring.check(scope_of(mark))


def scope_of(mark: Mark) -> Scope:
    """The domain that a mark belongs to."""
    _, tenant, domain = mark.name.split("/", 2)
    return domain_scope(tenant, domain)


def _body(row_hash: str, run_id: str, step: int) -> Mapping[str, JsonValue]:
    return {"hash": row_hash, "run_id": run_id, "step": step, "state": "open"}


def _step(mark: Mark) -> int:
    step = mark.body["step"]
    if not isinstance(step, int):
        raise IntegrityError(f"the anchor of {mark.name} is damaged")
    return step


def _check_links(
    scope: Scope, mark: Mark, rows: Mapping[int, tuple[Row | DealtRow, str]], seq: int, row_hash: str
) -> Row | DealtRow:
    """The last of the rows that lead from the mark to (`seq`, `row_hash`). Raises IntegrityError."""
    previous = str(mark.body["hash"])
    for number in range(mark.position + 1, seq + 1):
        if number not in rows or rows[number][0].previous != previous:
            raise _another_chain(scope, mark)
        previous = rows[number][1]
    if previous != row_hash:
        raise _another_chain(scope, mark)
    return rows[seq][0]


def _name(scope: Scope) -> str:
    return repr(scope.name.removeprefix(f"domain/{scope.tenant}/")) + f" of tenant {scope.tenant}"


def _rolled_back(scope: Scope, seq: int, mark: Mark) -> IntegrityError:
    return IntegrityError(
        f"the store has been put back to an older copy: the ledger of privacy domain {_name(scope)} ends at "
        f"row {seq}, and row {mark.position} was charged. {_RESTORE}"
    )


def _another_chain(scope: Scope, mark: Mark) -> IntegrityError:
    return IntegrityError(
        f"the ledger of privacy domain {_name(scope)} is not the one that was anchored: its rows do not "
        f"lead to or from the anchored row {mark.position}. {_RESTORE}"
    )


def _no_mark(scope: Scope, seq: int) -> IntegrityError:
    return IntegrityError(
        f"privacy domain {_name(scope)} has {seq} rows and no anchor: nothing tells whether its store is "
        "the newest. Put the anchors' folder back; for a data directory from before there were anchors "
        "run `tensafe privacy upgrade`"
    )


def _busy(scope: Scope) -> Unavailable:
    return Unavailable(f"the anchor of privacy domain {_name(scope)} is being moved; try again")
