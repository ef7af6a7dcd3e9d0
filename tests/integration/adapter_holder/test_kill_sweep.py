"""SIGKILL before and after every durable write of either party, one by one: no index is used twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tensafe.storage.sqlite_items import SqliteItems
from tensafe_gpu.adapter_holder.composition import directory_store
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.accepted_records import Offer, Range
from tensafe_gpu.helora.burned import RESERVE
from tensafe_gpu.helora.ports import HeUnavailable
from tests.integration.adapter_holder.test_kills import OUT, RANK, WIDTH, answers, burned_until
from tests.project_files import ROOT
from tests.support.helora import TENANT, peft_files, policy
from tests.support.holder_process import HolderProcess
from tests.support.killing_ports import FATAL, Killer
from tests.support.tap import Tap, indices_sent

FIRST, SECOND, LATER, FRESH = (bytes([n]) * 16 for n in range(4))
SITE, OTHER = "qkv", "o"
OFFER, NEXT_EPOCH = (Offer("a", 1, epoch, "t", 10_000) for epoch in (1, 2))
Answer = tuple[str, int, list[str]]
"""What was asked, from which index or how many tokens, and the salts of the shares that hide the answer."""


def requests(log: AcceptLog, say: Callable[[Answer], None]) -> None:
    """What a key holder asks for; an answer is said when it may leave, and what is refused has none."""

    def ask(name: str, number: int, call: Callable[[], list[bytes] | bytes | None]) -> None:
        with suppress(HeUnavailable):
            found = call() or []
            say((name, number, [salt.hex() for salt in (found if isinstance(found, list) else [found])]))

    ask("opened", 0, lambda: log.open_block(OFFER, SITE, FIRST))
    ask("opened", 0, lambda: log.open_block(OFFER, OTHER, SECOND))
    for first in range(0, 3 * RESERVE, 100):  # of two sites at once; what is reserved is used up three times
        both = [Range(FIRST, first, 100), Range(SECOND, first, 100)]
        ask("accepted", first, lambda both=both: log.accept(OFFER, both))  # type: ignore[misc]
    for _ in range(2):
        ask("metered", 200, lambda: log.meter(OFFER, {SITE: 200}))
    ask("opened", 0, lambda: log.open_block(NEXT_EPOCH, SITE, LATER))
    ask("accepted", 0, lambda: log.accept(NEXT_EPOCH, [Range(LATER, 0, 100)]))
    log.forget_blocks_before("a", 1, 2)


def life(path: Path, said: Path, kill_at: int | None, *, after: bool) -> int:
    """A process that answers all requests: how many writes it made, or less than 0 if it was killed."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            killer = Killer(kill_at, after=after)
            log = AcceptLog(killer.wrapped(SqliteItems(path), FATAL["items"]))
            with said.open("a", buffering=1) as file:
                requests(log, lambda answer: file.write(f"{json.dumps(answer)}\n"))
            code = killer.calls
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def answers_in(said: Path) -> list[Answer]:
    return [tuple(json.loads(line)) for line in said.read_text().splitlines()]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_adapter_holder_killed_at_any_write_leaves_one_that_answers_no_index_again(
    tmp_path: Path, after: bool
) -> None:
    """Its successor is asked everything from the beginning, as by a key holder that wants it twice."""
    writes = life(tmp_path / "whole.db", tmp_path / "whole", None, after=after)
    assert [name for name, *_ in answers_in(tmp_path / "whole")].count("accepted") == 8 + 1
    assert 9 <= writes < 255
    for kill_at in range(1, writes + 1):
        path, said, then = (tmp_path / f"{kill_at}{end}" for end in (".db", "", "-then"))
        assert life(path, said, kill_at, after=after) == -signal.SIGKILL
        assert 0 < life(path, then, None, after=after) < 255
        both = answers_in(said) + answers_in(then)
        shares = [(salt, first) for name, first, salts in both if name == "accepted" for salt in salts]
        assert len(set(shares)) == len(shares) > 2 * 2, kill_at
        tokens = sum(100 if name == "accepted" else number for name, number, _ in both)
        with closing(SqliteItems(path)) as items:
            log = AcceptLog(items)
            spent = sum(log.spent("a", 1, epoch).get(SITE, {}).get("t", 0) for epoch in (1, 2))
            assert spent >= tokens, kill_at
            log.open_block(NEXT_EPOCH, SITE, FRESH)
            assert log.accept(NEXT_EPOCH, [Range(FRESH, 0, 10)])


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[HolderProcess]:
    process = HolderProcess(tmp_path / "h")
    with closing(directory_store(process.data_dir)) as store:
        files = peft_files(WIDTH, RANK, leaves=("o",))
        store.publish("a", files, base_model="base", policy=policy(tokens_per_site=10**7))
    yield process
    process.kill()


BURNS = (1, 2, 3, 16, 17)
"""The first ones of a block, its last one, and the first one of the next block."""


def test_a_key_holder_killed_around_any_burn_sends_no_index_again(
    holder: HolderProcess, tmp_path: Path
) -> None:
    """Before it nothing was sent under its indices; after it they are lost, and never sent."""
    tap, log = Tap(tmp_path / "tap", holder.socket), tmp_path / "burned.db"
    command = [sys.executable, "-m", "tests.support.key_holder_loop", str(tmp_path / "tap"), str(log)]
    command += [TENANT, "a", OUT]
    for number, (burn, moment) in enumerate(itertools.product(BURNS, ("before", "after"))):
        known = set(burned_until(log)) if log.exists() else set()
        killed = subprocess.run(
            [*command, str(number), f"{moment}:{burn}"], cwd=ROOT, check=False, timeout=60
        )
        assert killed.returncode == -signal.SIGKILL
        new = {block: until for block, until in burned_until(log).items() if block not in known}
        assert sum(new.values()) == RESERVE * (burn - (moment == "before")), (burn, moment)
        sent = [index for block, index in indices_sent(tap) if block not in known]
        assert len(sent) <= RESERVE * (burn - 1)
        assert burn == 1 or len(sent) > RESERVE * (burn - 2)
    begun = len(answers(tap))
    asker = subprocess.Popen([*command, "7"], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while len(answers(tap)) < begun + 10:  # it goes on by itself
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        asker.kill()
        asker.wait()
    sent_by_all = indices_sent(tap)
    tap.close()
    assert len(set(sent_by_all)) == len(sent_by_all) > 800
    burned = burned_until(log)
    assert all(index < burned[block] for block, index in sent_by_all)
