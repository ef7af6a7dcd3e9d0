"""Many signatures against few keys, on every core where there are enough of them.

One Ed25519 signature takes about 85 us, most of what verifying a row costs, and holds the interpreter's
lock, so that only processes help.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from tensafe.contracts.errors import IntegrityError
from tensafe.storage.signing import PublicKey

Signed = tuple[str, bytes, bytes]
"""Key id, digest, signature."""
_BATCH: Final = 512
_MAX_PROCESSES: Final = 16


def first_wrong(pems: Mapping[str, str], batch: Sequence[Signed]) -> int | None:
    """Index of the first whose signature is not its key's, or None."""
    keys = {key_id: PublicKey.from_pem(pem) for key_id, pem in pems.items()}
    for index, (key_id, digest, signature) in enumerate(batch):
        try:
            keys[key_id].verify(digest, signature)
        except IntegrityError:
            return index
    return None


@dataclass(slots=True)
class SignatureChecks:
    """Takes signatures in order and says which is the first that is wrong.

    The first batch is checked here; processes begin with the second, so that a small file starts none.
    """

    pems: Mapping[str, str]
    processes: int = field(default_factory=lambda: min(_MAX_PROCESSES, len(os.sched_getaffinity(0))))
    wrong: int | None = None
    """Index of the first wrong one that is known so far."""
    _taken: int = 0
    _batch: list[Signed] = field(default_factory=list)
    _running: list[tuple[int, Future[int | None]]] = field(default_factory=list)
    _pool: ProcessPoolExecutor | None = None

    def add(self, key_id: str, digest: bytes, signature: bytes) -> None:
        """One more; its key must be among `pems`."""
        self._batch.append((key_id, digest, signature))
        if len(self._batch) == _BATCH:
            self._send()

    def finish(self) -> int | None:
        """Wait for all; the index of the first wrong one, or None."""
        self._send()
        self._collect(0)
        return self.wrong

    def __enter__(self) -> SignatureChecks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _send(self) -> None:
        batch, start = self._batch, self._taken
        self._batch, self._taken = [], start + len(batch)
        if self.processes < 2 or start == 0:
            self._note(start, first_wrong(self.pems, batch))
            return
        if self._pool is None:
            # Spawned: a fork would share whatever this process has open.
            self._pool = ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn"))
        self._running.append((start, self._pool.submit(first_wrong, dict(self.pems), batch)))
        self._collect(4 * self.processes)  # what waits is bounded, and so is memory

    def _collect(self, most: int) -> None:
        while len(self._running) > most:
            start, future = self._running.pop(0)
            self._note(start, future.result())

    def _note(self, start: int, index: int | None) -> None:
        if index is not None and self.wrong is None:
            self.wrong = start + index
