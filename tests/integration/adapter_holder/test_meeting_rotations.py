"""Who meets a rotation or a revocation halfway, at any read or write of the store, hears what is so then."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensafe.contracts.errors import Conflict
from tensafe.storage.ports import Write
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.ports import HOLDER_ABSENT, NOT_ALLOWED, VERSION_MISMATCH, HeUnavailable
from tests.support.helora import Holder, adapter_holder, peft_files, policy

D, RANK = 64, 4
OUT = "model.layers.0.self_attn.o"
READS = (("_items", "query"), ("_blobs", "get"))


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    with adapter_holder(tmp_path / "holder") as holder:
        files = peft_files(D, RANK, leaves=("o",))
        holder.store.publish("a", files, base_model="base", policy=policy())
        yield holder


class Meeting:
    """`done` is called within the store's next reads: before the one with number `at`, or before all."""

    def __init__(self, holder: Holder, done: Callable[[], object], at: int | None) -> None:
        self._done, self._at, self.reads, self._within = done, at, 0, False
        self._patched = [(getattr(holder.store, port), name) for port, name in READS]

    def __enter__(self) -> Meeting:
        for port, name in self._patched:
            setattr(port, name, self._met(getattr(port, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for port, name in self._patched:
            delattr(port, name)

    def _met(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def met(*args: Any, **more: Any) -> Any:
            if not self._within:
                number, self.reads = self.reads, self.reads + 1
                if self._at in (None, number):
                    self._within = True
                    self._done()
                    self._within = False
            return read(*args, **more)

        return met


def greeted(holder: Holder, burn_log: BurnLog) -> int | str:
    """The epoch that can be used, or a code."""
    try:
        private = holder.key_holder(burn_log)
    except HeUnavailable as error:
        return error.code
    try:
        private.b_matrices()
        return private.info().epoch
    except HeUnavailable as error:
        return error.code
    finally:
        private.close()


def test_a_greeting_and_its_first_request_read_the_store_so_often(holder: Holder, burn_log: BurnLog) -> None:
    """The record, that again and the weights, blocks of epochs before; then the record for the request."""
    with Meeting(holder, lambda: None, None) as meeting:
        assert greeted(holder, burn_log) == 1
    assert meeting.reads == 5


@pytest.mark.parametrize("number", range(3))
def test_a_greeting_that_meets_a_rotation_is_answered_in_the_new_epoch(
    holder: Holder, burn_log: BurnLog, number: int
) -> None:
    """A rotation deletes what an opening has just read the name of."""
    with Meeting(holder, lambda: holder.store.rotate("a"), number):
        assert greeted(holder, burn_log) == 2


@pytest.mark.parametrize("number", [3, 4])
def test_a_request_that_meets_a_rotation_is_told_to_greet_again(
    holder: Holder, burn_log: BurnLog, number: int
) -> None:
    with Meeting(holder, lambda: holder.store.rotate("a"), number):
        assert greeted(holder, burn_log) == VERSION_MISMATCH
    assert greeted(holder, burn_log) == 2


@pytest.mark.parametrize("number", range(5))
def test_a_greeting_that_meets_a_revocation_is_refused_at_once(
    holder: Holder, burn_log: BurnLog, number: int
) -> None:
    with Meeting(holder, lambda: holder.store.revoke("a"), number) as meeting:
        assert greeted(holder, burn_log) == NOT_ALLOWED
    assert meeting.reads <= number + 2


def test_one_that_meets_nothing_but_rotations_may_come_again(holder: Holder, burn_log: BurnLog) -> None:
    with Meeting(holder, lambda: holder.store.rotate("a"), None) as meeting:
        assert greeted(holder, burn_log) == HOLDER_ABSENT
    assert meeting.reads < 20
    assert greeted(holder, burn_log) == holder.store.get("a").epoch


def test_no_greeting_is_refused_as_not_allowed_beside_rotations(holder: Holder, burn_log: BurnLog) -> None:
    found: Counter[int | str] = Counter()
    stop, lock = threading.Event(), threading.Lock()

    def greet() -> None:
        while not stop.is_set():
            one = greeted(holder, burn_log)
            with lock:
                found[one] += 1

    threads = [threading.Thread(target=greet) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            holder.store.rotate("a")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    codes = {one for one in found if isinstance(one, str)}
    assert codes <= {VERSION_MISMATCH, HOLDER_ABSENT}, found
    assert sum(isinstance(one, int) for one in found) > 5


def test_a_new_epoch_is_answered_at_once_though_an_old_connection_has_just_looked(
    holder: Holder, burn_log: BurnLog
) -> None:
    old = holder.key_holder(burn_log)
    old.b_matrices()
    holder.store.rotate("a")
    new = holder.key_holder(burn_log)
    assert new.b_matrices()
    new.prepare(OUT)
    assert len(new.products([(OUT, np.ones((1, D), dtype=np.float32))])) == 1
    for private in (old, new):
        private.close()


@pytest.mark.parametrize("meetings", [1, 3])
def test_a_revocation_that_meets_rotations_revokes_what_they_made(
    holder: Holder, monkeypatch: pytest.MonkeyPatch, meetings: int
) -> None:
    beside_writes(holder, monkeypatch, meetings)
    revoked = holder.store.revoke("a")
    assert (revoked.active, revoked.epoch) == (False, 1 + meetings)
    assert [path for path in (holder.data_dir / "blobs").rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    assert not holder.store.get("a", 1).active


def test_a_revocation_that_meets_nothing_but_rotations_says_what_to_do(
    holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside_writes(holder, monkeypatch, 100)
    with pytest.raises(Conflict, match="a version 1 is changed all the time; revoke it again"):
        holder.store.revoke("a")
    monkeypatch.undo()
    assert not holder.store.revoke("a").active


def beside_writes(holder: Holder, monkeypatch: pytest.MonkeyPatch, meetings: int) -> None:
    """Rotate before each of the next writes, so many times."""
    left, within, write = [meetings], [False], holder.store._items.write

    def met(writes: Sequence[Write]) -> None:
        if left[0] and not within[0]:
            left[0], within[0] = left[0] - 1, True
            holder.store.rotate("a")
            within[0] = False
        write(writes)

    monkeypatch.setattr(holder.store._items, "write", met)
