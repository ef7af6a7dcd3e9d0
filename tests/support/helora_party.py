"""A key holder and an adapter holder of some build, and a real socket between them that is listened to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tensafe_gpu.adapter_holder.opened import OpenedAdapter
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, TO_KEY_HOLDER, Kind
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.keystream import ring_rows
from tests.support.helora import QUICK, TENANT, Holder, adapter_holder, peft_files, policy
from tests.support.tap import Tap, split

QK = "model.layers.0.self_attn.qkv"


@dataclass(frozen=True, slots=True)
class Party:
    """An adapter holder of some build, a key holder that talks to it, and the wire between them."""

    holder: Holder
    private: RemoteKeyHolder
    tap: Tap

    @property
    def a(self) -> np.ndarray:
        return self.holder.store.load("a").adapter.sites[QK].a

    def shares(self, block_id: bytes, first: int, count: int) -> np.ndarray:
        """The adapter holder's own s."""
        service = self.holder.service
        (salt,) = {
            one.salt for (_, known), one in service.accepted._known.blocks.items() if known == block_id
        }
        key = OpenedAdapter(self.holder.store.load("a")).share_key(QK, block_id, salt)
        return ring_rows(key, first, count, len(self.a))

    def sent(self, kind: Kind) -> list[memoryview]:
        return self._frames(0, TO_ADAPTER_HOLDER, kind)

    def answered(self, kind: Kind) -> list[memoryview]:
        return self._frames(1, TO_KEY_HOLDER, kind)

    def _frames(self, way: int, limits: object, kind: Kind) -> list[memoryview]:
        streams = (pair[way] for pair in self.tap.streams())
        return [memoryview(body) for one in streams for k, body in split(one, limits, cut=True) if k is kind]  # type: ignore[arg-type]


@contextmanager
def parties(build: type[BlockEvaluation], d: int, rows: int) -> Iterator[Party]:
    """`rows` are those of q and k together."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name)
        with adapter_holder(folder / "h", evaluation=build) as holder:
            files = peft_files(d, rows // 2, leaves=("q", "k"), seed=7)
            holder.store.publish("a", files, base_model="base", policy=policy())
            tap, burned = Tap(folder / "tap", holder.socket), BurnLog(folder / "burned.db")
            private = RemoteKeyHolder(unix_connector(folder / "tap"), Wanted(TENANT, "a"), burned, QUICK)
            yield Party(holder, private, tap)
            private.close()
            tap.close()
            burned.close()
