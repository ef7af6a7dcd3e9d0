"""A data directory's signing key and anchors: made by init, missed at the start, added by upgrade alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError, IntegrityError
from tensafe.local.composition import initialise, local_services
from tensafe.local.lock import DirectoryLock
from tensafe.local.settings import LocalSettings
from tensafe.local.upgrade import Upgraded, upgrade
from tensafe.privacy.anchoring import check_all
from tensafe.privacy.ledger import Ledger
from tensafe.services import Services
from tensafe.storage.ports import Key, Put
from tensafe.storage.sqlite_items import SqliteItems
from tests.unit.privacy.support import open_run


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    initialise(tmp_path / "data")
    return tmp_path / "data"


@contextmanager
def opened(data_dir: Path) -> Iterator[Services]:
    with local_services(LocalSettings(data_dir=data_dir)) as services:
        yield services


def ledger_of(services: Services) -> Ledger:
    ports = services.ports
    return Ledger(ports.items, services.vault, ports.signer, ports.anchors)


def charge(data_dir: Path, *steps: int) -> None:
    with opened(data_dir) as services:
        if not services.api_keys.list():
            services.api_keys.create("acme", ["train"])
        ledger = ledger_of(services)
        run = open_run(ledger)
        for step in steps:
            ledger.reserve(run, step, {step})


def make_old(data_dir: Path) -> None:
    """As an earlier release left it: no key, no anchors, rows without signatures."""
    with opened(data_dir) as services:
        items = services.ports.items
        for item in items.query("domain/acme/letters", first="row/", last="row/~"):
            body = {name: value for name, value in item.body.items() if name not in ("key_id", "signature")}
            items.write([Put(item.key, body, item.version, item.sealed)])
    (data_dir / "signing-key.json").unlink()
    shutil.rmtree(data_dir / "anchors")


@pytest.mark.parametrize(
    ("name", "problem"), [("signing-key.json", "there is no signing key"), ("anchors", "is missing")]
)
def test_nothing_starts_without_them_and_a_start_makes_none(data_dir: Path, name: str, problem: str) -> None:
    (data_dir / name).rename(data_dir.parent / name)
    with pytest.raises(ConfigurationError, match=f"{problem}.*tensafe privacy upgrade"), opened(data_dir):
        pass
    assert not (data_dir / name).exists()
    (data_dir.parent / name).rename(data_dir / name)
    with opened(data_dir):
        pass


def test_the_private_key_is_nowhere_in_clear(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    data_dir = tmp_path / "data"
    initialise(data_dir, tmp_path / "keys" / "key.json")
    with opened(data_dir) as services:
        seed = services.ports.signer._key.private_bytes_raw()  # type: ignore[attr-defined]
    for path in data_dir.rglob("*"):
        if path.is_file():
            assert seed not in path.read_bytes()
            assert seed.hex().encode() not in path.read_bytes()
    assert (data_dir / "signing-key.json").stat().st_mode & 0o777 == 0o600


def test_the_anchors_may_lie_elsewhere_and_a_whole_older_data_directory_is_refused(tmp_path: Path) -> None:
    data_dir, anchors = tmp_path / "data", tmp_path / "anchors"
    initialise(data_dir, anchor_dir=anchors)
    assert not (data_dir / "anchors").exists()
    assert anchors.stat().st_mode & 0o777 == 0o700
    charge(data_dir, 0)
    shutil.copytree(data_dir, tmp_path / "backup", ignore=shutil.ignore_patterns("*.bell"))
    charge(data_dir, 1)
    shutil.rmtree(data_dir)
    (tmp_path / "backup").rename(data_dir)
    with opened(data_dir) as services:
        with pytest.raises(IntegrityError, match="ends at row 1, and row 2 was charged"):
            check_all(services.ports.items, services.ports.anchors)
        with pytest.raises(IntegrityError, match="ends at row 1, and row 2 was charged"):
            ledger_of(services).show("acme", "letters")


def test_init_refuses_anchors_of_another_installation(tmp_path: Path) -> None:
    initialise(tmp_path / "one", anchor_dir=tmp_path / "anchors")
    charge(tmp_path / "one", 0)
    with pytest.raises(ConfigurationError, match="is not empty"):
        initialise(tmp_path / "two", anchor_dir=tmp_path / "anchors")
    assert not (tmp_path / "two").exists()


def test_an_init_that_was_cut_short_before_its_signing_key_is_finished_by_upgrade(data_dir: Path) -> None:
    (data_dir / "signing-key.json").unlink()
    assert upgrade(LocalSettings(data_dir=data_dir)) == []
    charge(data_dir, 0)


def test_upgrade_signs_and_anchors_what_an_earlier_release_left(data_dir: Path) -> None:
    charge(data_dir, 0, 1)
    make_old(data_dir)
    settings = LocalSettings(data_dir=data_dir)
    assert upgrade(settings) == [Upgraded("acme", "letters", 2, 2, True)]
    assert upgrade(settings) == [Upgraded("acme", "letters", 2, 0, False)]
    charge(data_dir, 2)
    with opened(data_dir) as services:
        (mark,) = services.ports.anchors.all()
        assert mark.position == 3
        assert ledger_of(services).show("acme", "letters").steps == 3


def test_an_upgrade_that_was_cut_short_is_finished(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charge(data_dir, 0, 1, 2)
    make_old(data_dir)
    settings = LocalSettings(data_dir=data_dir)

    def cut(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tensafe.local.upgrade.row_digest", cut)
        with pytest.raises(KeyboardInterrupt):
            upgrade(settings)
    assert upgrade(settings) == [Upgraded("acme", "letters", 3, 3, False)]


def test_upgrade_gives_no_new_anchor_for_a_lost_one(data_dir: Path) -> None:
    """Else losing the anchors and upgrading would pass any older copy off as the newest."""
    charge(data_dir, 0, 1)
    shutil.rmtree(data_dir / "anchors")
    with pytest.raises(IntegrityError, match="the anchor of domain/acme/letters is lost"):
        upgrade(LocalSettings(data_dir=data_dir))
    with opened(data_dir) as services, pytest.raises(IntegrityError, match="2 rows and no anchor"):
        ledger_of(services).show("acme", "letters")


def test_upgrade_makes_no_new_key_for_a_lost_one_unless_it_is_told_to(data_dir: Path) -> None:
    charge(data_dir, 0)
    (data_dir / "signing-key.json").unlink()
    settings = LocalSettings(data_dir=data_dir)
    with pytest.raises(ConfigurationError, match=r"put it back from your backup\. `--new-key`"):
        upgrade(settings)
    assert not (data_dir / "signing-key.json").exists()
    assert upgrade(settings, new_key=True) == [Upgraded("acme", "letters", 1, 0, False)]
    charge(data_dir, 1)


def test_upgrade_waits_for_the_service_to_be_stopped(data_dir: Path) -> None:
    with DirectoryLock(data_dir), pytest.raises(ConfigurationError, match="another supervisor"):
        upgrade(LocalSettings(data_dir=data_dir))


def test_upgrade_signs_nothing_that_does_not_add_up(data_dir: Path) -> None:
    charge(data_dir, 0, 1)
    make_old(data_dir)
    items = SqliteItems(data_dir / "items.db")
    item = items.get(Key("domain/acme/letters", "row/run-1/000000000000001"))
    assert item is not None
    row = str(item.body["row"]).replace('"units":1', '"units":0')
    items.write([Put(item.key, {**item.body, "row": row}, item.version, item.sealed)])
    items.close()
    with pytest.raises(IntegrityError, match="does not match its hash"):
        upgrade(LocalSettings(data_dir=data_dir))
    assert list((data_dir / "anchors").glob("*.anchor")) == []
