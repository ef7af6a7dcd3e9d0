"""SIGKILL of a key holder's and an adapter holder's process at random moments, read off wire and disks."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.storage.sqlite_items import SqliteItems
from tensafe_gpu.adapter_holder.composition import ITEMS, directory_store
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, TO_KEY_HOLDER, Kind
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.ports import HOLDER_ABSENT, STATE_FAILED, HeUnavailable
from tests.project_files import ROOT
from tests.support.helora import QUICK, TENANT, adapter_holder, peft_files, policy
from tests.support.holder_process import HolderProcess
from tests.support.tap import Tap, indices_sent, split

RANK, WIDTH = 4, 48
OUT = "model.layers.0.self_attn.o"
VICTIMS = ("holder", "asker", "both", "holder", "asker", "both")


class Asker:
    """A process of tests/support/key_holder_loop."""

    def __init__(self, tap: Path, log: Path) -> None:
        self._command = [sys.executable, "-m", "tests.support.key_holder_loop", str(tap), str(log)]
        self._seeds = iter(range(100))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*self._command, TENANT, "a", OUT, str(next(self._seeds))]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[HolderProcess]:
    process = HolderProcess(tmp_path / "h")
    store = directory_store(process.data_dir)
    store.publish(
        "a", peft_files(WIDTH, RANK, leaves=("o",)), base_model="base", policy=policy(tokens_per_site=10**7)
    )
    store.close()
    yield process
    process.kill()


def burned_until(path: Path) -> dict[bytes, int]:
    """Block -> the index up to which the key holder's log says that it is used up."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT block, until FROM burned"))


def accepted_until(data_dir: Path) -> dict[bytes, int]:
    """The same of the adapter holder's."""
    with closing(SqliteItems(data_dir / ITEMS)) as items:
        found = items.query("accepted/a/1/blocks", limit=1000)
    return {bytes.fromhex(one.key.sort.partition("/")[2]): int(one.body["until"]) for one in found}  # type: ignore[arg-type]


def test_wherever_either_side_is_killed_no_index_is_sent_or_answered_twice(
    holder: HolderProcess, tmp_path: Path
) -> None:
    tap, draw = Tap(tmp_path / "tap", holder.socket), random.Random(11)
    asker = Asker(tmp_path / "tap", tmp_path / "burned.db")
    asker.start()
    try:
        for victims in VICTIMS:
            answered = answers(tap)
            deadline = time.monotonic() + 60
            while len(answers(tap)) < len(answered) + 3:  # it goes on by itself
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(draw.random() * 0.2)  # preparing, burning, sending, accepting or answering
            if victims in ("asker", "both"):
                asker.kill()
            if victims in ("holder", "both"):
                holder.kill()
                holder.start()
            if victims in ("asker", "both"):
                asker.start()
    finally:
        asker.kill()
    holder.kill()

    sent = indices_sent(tap)
    tap.close()
    assert len(set(sent)) == len(sent) > 1000
    burned = burned_until(tmp_path / "burned.db")
    assert all(index < burned[block] for block, index in sent)
    accepted = accepted_until(holder.data_dir)
    assert any(accepted.values())
    assert all(until <= burned.get(block, 0) for block, until in accepted.items())
    # Whatever was answered had been metered.
    tokens = sum(answers(tap))
    shown = holder.command("show", "--name", "a")["tokens_by_site_and_tenant"]
    assert sum(sum(tenants.values()) for tenants in shown.values()) >= tokens > 500


def test_what_cannot_be_burned_is_not_sent_and_what_cannot_be_accepted_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The durable thing comes first on both sides: a disk that fails there lets nothing out."""

    def failing(*_: object) -> None:
        raise Unavailable("the disk is full")

    def sent() -> int:
        streams = (up for up, _ in tap.streams())
        frames = (kind for up in streams for kind, _ in split(up, TO_ADAPTER_HOLDER, cut=True))
        return sum(kind is Kind.PRODUCTS for kind in frames)

    x = np.ones((3, WIDTH), dtype=np.float32)
    with adapter_holder(tmp_path / "h") as holder, closing(BurnLog(tmp_path / "burned.db")) as burn_log:
        files = peft_files(WIDTH, RANK, leaves=("o",))
        holder.store.publish("a", files, base_model="base", policy=policy())
        tap = Tap(tmp_path / "tap", holder.socket)
        private = RemoteKeyHolder(unix_connector(tmp_path / "tap"), Wanted(TENANT, "a"), burn_log, QUICK)
        private.prepare(OUT)
        with monkeypatch.context() as full:
            full.setattr(burn_log, "burn", failing)
            with pytest.raises(HeUnavailable) as raised:
                private.products([(OUT, x)])
        assert raised.value.code == STATE_FAILED
        assert (sent(), answers(tap), private.prepared()[OUT]) == (0, [], 0)
        private.prepare(OUT)
        with monkeypatch.context() as full:
            full.setattr(holder.service.accepted, "_reserved", failing)
            with pytest.raises(HeUnavailable) as raised:
                private.products([(OUT, x)])
        assert raised.value.code == HOLDER_ABSENT
        assert (sent(), answers(tap), holder.service.accepted.spent("a", 1, 1)) == (1, [], {})
        private.products([(OUT, x)])
        assert (sent(), answers(tap)) == (2, [3])
        private.close()
        tap.close()


def answers(tap: Tap) -> list[int]:
    """Tokens of each answer that has gone by."""
    return [
        np.frombuffer(payload, dtype="<u4").size // RANK
        for _, down in tap.streams()
        for kind, payload in split(down, TO_KEY_HOLDER, cut=True)
        if kind is Kind.PRODUCTS_REPLY
    ]
