"""A store that was put back to an older copy is refused; a crash or a race is not."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tensafe.contracts.errors import IntegrityError, Unavailable
from tensafe.privacy.anchoring import Anchoring, check_all
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.records import RunRef, canonical, genesis, head_item, sha256_hex
from tensafe.privacy.replay import replay
from tensafe.storage.anchors import Anchors, Mark
from tensafe.storage.file_anchors import FileAnchors
from tensafe.storage.ports import Delete, Items, Put
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.vault.vault import Vault
from tests.fakes import MemoryAnchors, MemoryItems
from tests.unit.privacy.support import SIGNER, new_vault, open_run


class Site:
    """One installation: items, their vault, anchors elsewhere. `process()` is another process of it."""

    def __init__(self, items: Items, anchors: Anchors) -> None:
        self.items, self.anchors, self.vault = items, anchors, new_vault(items)

    def process(self, anchors: Anchors | None = None) -> Ledger:
        return Ledger(self.items, self.vault, SIGNER, anchors or self.anchors)

    def mark(self, ref: RunRef) -> Mark:
        found = self.anchors.get(ref.scope.name)
        assert found is not None
        return found


@pytest.fixture
def site() -> Site:
    return Site(MemoryItems(), MemoryAnchors())


class FailingAnchors:
    """The process ends, or the disk fails, where a mark would be moved."""

    def __init__(self, inner: Anchors, *, after: bool = False) -> None:
        self.get, self.all, self._inner, self._after = inner.get, inner.all, inner, after
        self.failing = True

    def put(self, mark: Mark, *, after: Mark | None) -> None:
        if self._after or not self.failing:
            self._inner.put(mark, after=after)
        if self.failing:
            raise Unavailable("the anchors did not answer")


def test_the_mark_stands_at_the_row_before_its_charge_is_told(site: Site) -> None:
    ledger = site.process()
    run = open_run(ledger)
    assert site.mark(run).position == 0
    for step in range(3):
        charge = ledger.reserve(run, step, {step})
        mark = site.mark(run)
        assert (mark.position, mark.body["hash"], mark.body["step"]) == (step + 1, charge.row_hash, step)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_the_charge_and_its_mark_bricks_nothing(site: Site, after: bool) -> None:
    ledger = site.process()
    run = open_run(ledger)
    ledger.reserve(run, 0, {1})
    with pytest.raises(Unavailable):
        site.process(FailingAnchors(site.anchors, after=after)).reserve(run, 1, {2})
    assert site.mark(run).position == (2 if after else 1)
    assert replay(site.items, site.vault, "acme", "letters").steps == 2
    charge = site.process().reserve(run, 1, {2})
    assert (site.mark(run).position, site.mark(run).body["hash"]) == (2, charge.row_hash)


def test_the_charge_of_a_retry_is_told_only_once_it_is_anchored(site: Site) -> None:
    """The crash came before the mark; a store rolled back after that retry must still be noticed."""
    run = open_run(site.process())
    failing = site.process(FailingAnchors(site.anchors))
    for _ in range(2):
        with pytest.raises(Unavailable):
            failing.reserve(run, 0, {1})
    assert site.mark(run).position == 0


def test_a_start_catches_up_with_rows_that_nobody_marked(site: Site) -> None:
    failing = FailingAnchors(site.anchors)
    ledger = site.process(failing)
    failing.failing = False
    one, two = open_run(ledger, "one"), open_run(ledger, "two")
    ledger.check_units(one, [1])  # its first look; from then on it sees what it writes
    failing.failing = True
    for step, run in enumerate((one, two, two, one)):
        with pytest.raises(Unavailable):
            ledger.reserve(run, step, {step})
    assert site.mark(one).position == 0
    check_all(site.items, site.anchors)
    assert site.mark(one).position == 4


def test_another_process_may_be_ahead(site: Site) -> None:
    first, second = site.process(), site.process()
    run, other = open_run(first, "one"), open_run(second, "two")
    charge = first.reserve(run, 0, {1})
    second.reserve(other, 0, {1})
    second.reserve(other, 1, {2})
    assert first.reserve(run, 0, {1}) == charge
    assert first.reserve(run, 1, {2}).participations == 1
    assert site.mark(run).position == 4


def test_many_processes_at_once_leave_the_mark_at_the_head(site: Site) -> None:
    runs = [open_run(site.process(), f"run-{n}") for n in range(4)]
    errors: list[BaseException] = []

    def work(run: RunRef) -> None:
        ledger = site.process()
        try:
            for step in range(10):
                ledger.reserve(run, step, {step})
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert site.mark(runs[0]).position == 40
    check_all(site.items, site.anchors)


# Rollback


@pytest.fixture
def disk(tmp_path: Path) -> Site:
    (tmp_path / "anchors").mkdir()
    return Site(SqliteItems(tmp_path / "items.db"), FileAnchors(tmp_path / "anchors"))


def _backup(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "items.db") as source, sqlite3.connect(tmp_path / "old.db") as target:
        source.backup(target)


def _restore(disk: Site, tmp_path: Path) -> Site:
    """The older copy in the database's place, opened by new processes; the same keys and anchors."""
    assert isinstance(disk.items, SqliteItems)
    disk.items.close()
    for name in ("items.db-wal", "items.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "old.db").replace(tmp_path / "items.db")
    older = Site(SqliteItems(tmp_path / "items.db"), FileAnchors(tmp_path / "anchors"))
    older.vault = Vault(older.items, disk.vault._blobs, disk.vault._keyring)
    return older


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_an_older_copy_of_the_database_is_refused(disk: Site, tmp_path: Path, kept: int) -> None:
    ledger = disk.process()
    run = open_run(ledger)
    for step in range(3):
        if step == kept:
            _backup(tmp_path)
        ledger.reserve(run, step, {1})
    older = _restore(disk, tmp_path)
    acts: list[Callable[[], object]] = [
        lambda: check_all(older.items, older.anchors),
        lambda: older.process().show("acme", "letters"),
        lambda: older.process().check_units(run, [1]),
        lambda: older.process().reserve(run, kept, {1}),
        lambda: older.process().reserve(run, 9, {1}),
        lambda: open_run(older.process(), "run-2"),
    ]
    for act in acts:
        with pytest.raises(IntegrityError, match=rf"'letters' of tenant acme ends at row {kept}, and row 3"):
            act()
    assert replay(older.items, older.vault, "acme", "letters").steps == kept, "nothing was charged"


def test_a_copy_from_before_the_domain_is_refused(disk: Site, tmp_path: Path) -> None:
    _backup(tmp_path)
    run = open_run(disk.process())
    disk.process().reserve(run, 0, {1})
    older = _restore(disk, tmp_path)
    with pytest.raises(IntegrityError, match="ends at row 0, and row 1 was charged"):
        open_run(older.process())


def test_an_older_copy_that_has_been_charged_again_is_refused(disk: Site, tmp_path: Path) -> None:
    """By a service without its anchors: as many rows or more, but other ones."""
    ledger = disk.process()
    run = open_run(ledger)
    _backup(tmp_path)
    ledger.reserve(run, 0, {1})
    ledger.reserve(run, 1, {2})
    older = _restore(disk, tmp_path)
    astray = Ledger(older.items, older.vault, SIGNER, lost := MemoryAnchors())
    lost.put(Mark(run.scope.name, 0, {**_genesis(disk, run)}), after=None)
    for step in range(4):
        if step in (2, 3):
            with pytest.raises(IntegrityError, match="not the one that was anchored"):
                check_all(older.items, older.anchors)
        astray.reserve(run, step, {step})
    with pytest.raises(IntegrityError, match="not the one that was anchored"):
        older.process().reserve(run, 9, {1})


def _genesis(site: Site, run: RunRef) -> dict[str, object]:
    return {"hash": genesis(run.scope, 1e-5), "run_id": "", "step": -1, "state": "open"}


def test_a_store_that_is_exchanged_under_a_running_process_draws_no_noise(site: Site) -> None:
    ledger = site.process()
    run = open_run(ledger)
    ledger.reserve(run, 0, {1})
    site.anchors.put(
        Mark(run.scope.name, 1, {**site.mark(run).body, "hash": sha256_hex("another")}), after=site.mark(run)
    )
    with pytest.raises(IntegrityError, match="not the one that was anchored"):
        ledger.reserve(run, 1, {2})


def test_a_lost_anchor_is_refused_and_not_made_anew(site: Site) -> None:
    run = open_run(site.process())
    site.process().reserve(run, 0, {1})
    lost = MemoryAnchors()
    for act in (lambda: site.process(lost).reserve(run, 1, {1}), lambda: open_run(site.process(lost))):
        with pytest.raises(IntegrityError, match="1 rows and no anchor"):
            act()
    assert lost.marks == {}


def test_a_row_under_the_mark_that_was_removed_is_noticed_by_whoever_is_behind(site: Site) -> None:
    slow = site.process()
    run, other = open_run(slow, "one"), open_run(slow, "two")
    slow.reserve(run, 0, {1})
    site.process().reserve(other, 0, {1})
    site.items.write([Delete(other.row_item(0), None)])
    with pytest.raises(IntegrityError, match="put back to an older copy"):
        slow.reserve(run, 0, {1})


def test_an_abandoned_domain_is_charged_nothing_and_stops_no_start(site: Site) -> None:
    run = open_run(site.process())
    site.process().reserve(run, 0, {1})
    Anchoring(site.items, site.anchors).abandon(run.scope)
    check_all(site.items, site.anchors)
    for act in (
        lambda: site.process().reserve(run, 1, {1}),
        lambda: open_run(site.process(), "run-2"),
        lambda: site.process().show("acme", "letters"),
    ):
        with pytest.raises(IntegrityError, match="abandoned"):
            act()


def test_a_domain_whose_creation_was_cut_short_can_be_opened_with_another_delta(site: Site) -> None:
    run = open_run(site.process())
    site.items.write([Delete(item.key, None) for item in site.items.query(run.scope.name)])
    site.items.write([Delete(item.key, None) for item in site.items.query("dp-noise/acme")])
    site.vault.forget(run.scope)
    ledger = site.process()
    again = open_run(ledger, delta=1e-6)
    ledger.reserve(again, 0, {1})
    assert site.mark(again).position == 1


def test_a_forged_row_ahead_of_the_mark_is_refused(site: Site) -> None:
    """The head says one row more; the row that is there does not follow the marked one."""
    ledger = site.process()
    run = open_run(ledger)
    ledger.reserve(run, 0, {1})
    with pytest.raises(Unavailable):
        site.process(FailingAnchors(site.anchors)).reserve(run, 1, {1})
    item, head = site.items.get(run.row_item(1)), site.items.get(head_item(run.scope))
    assert item is not None
    assert head is not None
    text = canonical({**json.loads(str(item.body["row"])), "previous": "0" * 64})
    forged = {**item.body, "row": text, "hash": sha256_hex(text)}
    site.items.write(
        [
            Put(item.key, forged, item.version, item.sealed),
            Put(head.key, {**head.body, "hash": sha256_hex(text)}, head.version),
        ]
    )
    with pytest.raises(IntegrityError, match="not the one that was anchored"):
        check_all(site.items, site.anchors)
