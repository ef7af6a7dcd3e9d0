"""Forks of a key holder within a reserve: a child sends nothing under its parent's masks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tensafe_gpu.helora.burned import RESERVE, BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.keystream import new_key
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.ports import STATE_FAILED, HeUnavailable
from tests.support.forked import in_child
from tests.support.helora import QUICK, TENANT, PlainReference, adapter_holder, peft_files, policy
from tests.support.tap import Tap, indices_sent

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"


def tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, D)).astype(np.float32)


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(HeUnavailable) as raised:
        work()
    return raised.value.code


BY_LIBC = """
import ctypes, os
from tensafe_gpu.helora.copies import Original
original = Original()
child = ctypes.PyDLL(None).fork()
if child == 0:
    os._exit(0 if original.copied else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and not original.copied
"""


def test_a_fork_that_python_does_not_hear_of_is_seen() -> None:
    """In a process of one thread: after a fork of libc's, locks of other threads stay taken for ever."""
    subprocess.run([sys.executable, "-c", BY_LIBC], check=True, timeout=60)


def test_a_forked_key_holder_sends_nothing_under_the_masks_of_its_parent(
    tmp_path: Path, burn_log: BurnLog
) -> None:
    """Its parent, in the middle of a reserve, goes on; the child may open the adapter for itself."""
    with adapter_holder(tmp_path / "h") as holder:
        files = peft_files(D, RANK, leaves=("o",))
        _, served = holder.store.publish("a", files, base_model="base", policy=policy())
        plain, tap = PlainReference(served), Tap(tmp_path / "tap", holder.socket)
        connector, wanted = unix_connector(tmp_path / "tap"), Wanted(TENANT, "a")
        private = RemoteKeyHolder(connector, wanted, burn_log, QUICK)
        private.prepare(OUT)
        private.products([(OUT, tokens(1))])

        def of_parent() -> tuple[list[str], bool]:
            tried: list[Callable[[], object]] = [
                lambda: private.products([(OUT, tokens(2))]),
                lambda: private.direct_products([(OUT, tokens(2))]),
                lambda: private.prepare(OUT),
                private.connect_again,
            ]
            return [refused(one) for one in tried], private.connected()

        def of_its_own() -> np.ndarray:
            with closing(RemoteKeyHolder(connector, wanted, burn_log, QUICK)) as own:
                own.prepare(OUT)
                return own.products([(OUT, tokens(3))])[0]

        assert in_child(of_parent) == ([STATE_FAILED] * 4, False)
        assert np.array_equal(in_child(of_its_own), plain.products([(OUT, tokens(3))])[0])
        assert private.connected()
        assert np.array_equal(private.products([(OUT, tokens(4))])[0], plain.products([(OUT, tokens(4))])[0])
        private.close()
        tap.close()
        sent = indices_sent(tap)
    assert len({block for block, _ in sent}) == 2
    assert sorted(index for _, index in sent) == [0, 0, 1, 1, 2, 3]
    assert len(set(sent)) == len(sent) < RESERVE


def test_children_of_one_process_draw_different_keys_masks_and_errors() -> None:
    """SEAL's generators are seeded for each use, so even an encryptor that both have makes other errors."""
    block = PreparingBlock(8, 2)

    def drawn() -> list[bytes]:
        words, seeds = block.encrypted(0, 1)
        own = PreparingBlock(8, 2)
        return [
            new_key(), own.block_id, own._key, own.public_halves(bytes(32)).tobytes(), seeds.tobytes(),
            words.tobytes(), block.public_halves(bytes(32)).tobytes(),
        ]  # fmt: skip

    for one, other in zip(in_child(drawn), in_child(drawn), strict=True):
        assert one != other
