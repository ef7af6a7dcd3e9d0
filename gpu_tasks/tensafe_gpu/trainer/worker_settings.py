"""How a trainer's drain loop behaves over time."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How long the loop holds, waits and lets pile up. Times in seconds."""

    visibility_s: float = 60.0
    heartbeat_s: float = 8.0
    look_every_s: float = 1.0
    """Between two looks at the queue, and at the log of a run that has no work, unless a bell rings."""
    idle_snapshot_s: float = 2.0
    idle_release_s: float = 60.0
    snapshot_every_s: float = 30.0
    snapshot_every_operations: int = 256
    missing_seq_s: float = 300.0
    """How long an operation waits for a lower seq that never arrived; the SDK retries for 300 s."""
    max_hot_runs: int = 64
    max_hot_bytes: int = 4 << 30
    """Memory for the adapters and optimizer states of all held runs; one run is held whatever its size."""
    retry_s: float = 1.0
    """Pause before a run is tried again after an unexpected failure, times the tries so far."""
    storage_retry_s: float = 2.0
    """Pause before a run is tried again after storage did not answer."""

    def for_lease(self, lease_s: float) -> WorkerSettings:
        """A dead worker's message comes back soon after its lease ends, however short the lease was made."""
        return replace(self, visibility_s=min(self.visibility_s, 2 * lease_s))
