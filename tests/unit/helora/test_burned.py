"""The key holder's log of used indices: nothing is used again, and nothing of an ended epoch is kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tensafe_gpu.helora.burned import Burn, BurnLog, IndexBurned

ADAPTER, SITE = "unix:/s a@1", "model.layers.0.self_attn.o"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "burned.db"


@pytest.fixture
def log(path: Path) -> Iterator[BurnLog]:
    log = BurnLog(path)
    yield log
    log.close()


def burn(number: int, digest: str, *, since: int = 0, epoch: int = 1) -> Burn:
    return Burn(bytes([number] * 16), digest, epoch, SITE, since, since + 256)


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM burned").fetchone()[0])


def test_rows_of_an_ended_epoch_go_and_no_copy_uses_their_indices(path: Path, log: BurnLog) -> None:
    log.begin_epoch(ADAPTER, 1, "one")
    log.burn([burn(number, "one") for number in range(20)])
    log.begin_epoch("unix:/other a@1", 1, "theirs")
    log.burn([burn(100, "theirs")])
    log.begin_epoch(ADAPTER, 1, "one")  # a restart in the same epoch
    assert rows(path) == 21
    log.begin_epoch(ADAPTER, 2, "two")
    assert rows(path) == 1
    for copied in (burn(3, "one"), burn(3, "one", since=256), burn(50, "one")):
        with pytest.raises(IndexBurned):
            log.burn([copied])
    log.burn([burn(60, "two", epoch=2), burn(100, "theirs", since=256)])
    again = BurnLog(path)
    with pytest.raises(IndexBurned):
        again.burn([burn(3, "one")])
    again.begin_epoch(ADAPTER, 1, "one")  # an adapter holder that tells of an epoch before
    with pytest.raises(IndexBurned):
        again.burn([burn(61, "one")])
    again.burn([burn(60, "two", epoch=2, since=256)])
    again.close()


def test_it_does_not_grow_with_the_epochs_blocks(path: Path, log: BurnLog) -> None:
    for epoch in range(1, 30):
        log.begin_epoch(ADAPTER, epoch, f"digest {epoch}")
        log.burn([burn(number, f"digest {epoch}", epoch=epoch) for number in range(50)])
        assert rows(path) == 50
