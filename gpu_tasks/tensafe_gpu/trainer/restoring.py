"""Bringing a run to where its log stands: the last snapshot, then every completed operation after it."""

from __future__ import annotations

import logging
import time
from typing import Final

from tensafe.operations import layout
from tensafe.operations.records import OpState
from tensafe.services import Services
from tensafe_gpu.trainer.execute import Executor
from tensafe_gpu.trainer.hot_run import HotRun
from tensafe_gpu.trainer.private_steps import PrivateSteps
from tensafe_gpu.trainer.snapshots import Snapshots

log = logging.getLogger(__name__)

_PAGE: Final = 32


class Restorer:
    """Restores hot runs; exact, since a replay does what the first application did."""

    def __init__(
        self, services: Services, executor: Executor, snapshots: Snapshots, private_steps: PrivateSteps
    ) -> None:
        self._services = services
        self._executor = executor
        self._snapshots = snapshots
        self._private = private_steps

    def restore(self, run: HotRun) -> None:
        """Load and replay; nothing is written. Leaves `run` before its first operation without outcome."""
        began = time.monotonic()
        if self._has_snapshot(run):
            self._private.restore(run)
        self._snapshots.load(run)
        replayed = self._replay(run)
        log.info(
            "run restored",
            extra={
                "stream": run.stream.stream_id,
                "snapshot_seq": run.snapshot_seq,
                "replayed": replayed,
                "duration_ms": round((time.monotonic() - began) * 1000, 1),
            },
        )

    def _replay(self, run: HotRun) -> int:
        """Apply what is completed in order of seq, up to the first gap or open operation; how many."""
        outcomes, replayed = self._services.outcomes, 0
        while page := outcomes.operations(run.stream.stream_id, first_seq=run.next_seq, limit=_PAGE):
            for operation in page:
                if operation.seq != run.next_seq or not operation.state.final:
                    return replayed
                if operation.state is OpState.COMPLETED:
                    payload = outcomes.payload(run.stream, operation.seq, operation)
                    self._executor.replay(run, operation, payload)
                    replayed += 1
                run.next_seq += 1
        return replayed

    def _has_snapshot(self, run: HotRun) -> bool:
        key = layout.stream_item(run.stream.stream_id, "snapshot")
        return self._services.ports.items.get(key) is not None
