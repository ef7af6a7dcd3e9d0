"""The service's rooms wired over a set of ports; the same for every mode.

A composition root (one per mode) chooses the adapters and calls `wire`; nothing else constructs a
room, and nothing here knows which platform it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tensafe.auth.callers import Callers
from tensafe.auth.keys import ApiKeys
from tensafe.auth.quotas import Quotas
from tensafe.contracts.errors import NotFound
from tensafe.metrics.port import Metrics, NoMetrics
from tensafe.operations.checkpoints import Checkpoints
from tensafe.operations.dead_letters import DeadLetters
from tensafe.operations.doorbell import Doorbell
from tensafe.operations.kept_weights import Keeping
from tensafe.operations.leases import Leases
from tensafe.operations.outcomes import Outcomes
from tensafe.operations.placements import Placements
from tensafe.operations.progress import Progress
from tensafe.operations.retention import Retention
from tensafe.operations.sessions import Sessions
from tensafe.operations.streams import Stores, Streams, now_ms
from tensafe.operations.submissions import Submissions
from tensafe.operations.sweeper import Sweeper
from tensafe.operations.worker_status import WorkerStatus
from tensafe.privacy.rooms import PrivacyRooms
from tensafe.storage.anchors import Anchors
from tensafe.storage.ports import Bell, Blobs, Items, KeyRing, Queues, QueueSpec
from tensafe.tracing.port import NoTracer, Tracer
from tensafe.vault.artifacts import Artifacts
from tensafe.vault.vault import Vault

if TYPE_CHECKING:  # nobody waits for these before they are used
    from tensafe.auth.tokens import Tokens
    from tensafe.contracts.base_models import ModelInfo
    from tensafe.privacy.deals import Deals
    from tensafe.privacy.domains import Domains
    from tensafe.privacy.reading import DomainReader
    from tensafe.storage.signing import Signer

LEASE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Ports:
    """The adapters of one mode."""

    items: Items
    queues: Queues
    blobs: Blobs
    keyring: KeyRing
    bell: Bell
    signer: Signer
    anchors: Anchors
    queue_specs: tuple[QueueSpec, ...]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the edge, the workers and the supervisor use."""

    ports: Ports
    models: Mapping[str, ModelInfo]
    vault: Vault
    artifacts: Artifacts
    streams: Streams
    sessions: Sessions
    leases: Leases
    doorbell: Doorbell
    submissions: Submissions
    outcomes: Outcomes
    progress: Progress
    dead_letters: DeadLetters
    sweeper: Sweeper
    checkpoints: Checkpoints
    placements: Placements
    keeping: Keeping
    retention: Retention
    api_keys: ApiKeys
    callers: Callers
    quotas: Quotas
    workers: WorkerStatus
    privacy: PrivacyRooms
    metrics: Metrics
    tracer: Tracer

    @property
    def domains(self) -> Domains:
        """The registry of privacy domains."""
        return self.privacy.domains

    @property
    def domain_reader(self) -> DomainReader:
        """What privacy domains have spent."""
        return self.privacy.domain_reader

    @property
    def deals(self) -> Deals:
        """The deals of dealt runs."""
        return self.privacy.deals

    def model(self, name: str) -> ModelInfo:
        """The base model of this name. Raises NotFound listing what there is."""
        info = self.models.get(name)
        if info is None:
            served = ", ".join(sorted(self.models)) or "none"
            raise NotFound(f"no base model {name[:200]!r} here; there are: {served}", field="base_model")
        return info


def wire(
    ports: Ports,
    models: Mapping[str, ModelInfo],
    *,
    lease_s: float = LEASE_S,
    tokens: Tokens | None = None,
    metrics: Metrics | None = None,
    tracer: Tracer | None = None,
    clock_ms: Callable[[], int] = now_ms,
) -> Services:
    """Build the rooms over the ports; all of them read one clock (Unix time in milliseconds).

    Without `tokens`, API keys alone are accepted.
    """

    def clock_s() -> float:
        return clock_ms() / 1000

    vault = Vault(ports.items, ports.blobs, ports.keyring)
    stores = Stores(ports.items, ports.blobs, vault)
    artifacts = Artifacts(vault, ports.blobs)
    streams = Streams(stores, clock_ms=clock_ms)
    leases = Leases(ports.items, lease_s=lease_s, clock_ms=clock_ms)
    doorbell = Doorbell(ports.queues, ports.bell, leases)
    workers = WorkerStatus(ports.items, clock=clock_s)
    outcomes = Outcomes(stores, doorbell, clock_ms=clock_ms)
    checkpoints = Checkpoints(stores, artifacts, clock_ms=clock_ms)
    api_keys = ApiKeys(ports.items, clock=clock_s)
    return Services(
        ports=ports,
        models=models,
        vault=vault,
        artifacts=artifacts,
        streams=streams,
        sessions=Sessions(ports.items, clock_ms=clock_ms),
        leases=leases,
        doorbell=doorbell,
        submissions=Submissions(stores, doorbell, clock_ms=clock_ms),
        outcomes=outcomes,
        progress=Progress(stores, clock_ms=clock_ms),
        dead_letters=DeadLetters(
            stores, streams, outcomes, leases, doorbell, workers, metrics=metrics, clock_ms=clock_ms
        ),
        sweeper=Sweeper(stores, streams, outcomes, leases, doorbell, workers, clock_ms=clock_ms),
        checkpoints=checkpoints,
        placements=Placements(ports.items, clock_ms=clock_ms),
        keeping=Keeping(ports.items, artifacts, clock_ms=clock_ms),
        retention=Retention(stores, checkpoints, clock_ms=clock_ms),
        api_keys=api_keys,
        callers=Callers(api_keys, tokens),
        quotas=Quotas(ports.items, streams, clock_ms=clock_ms),
        workers=workers,
        privacy=PrivacyRooms(ports.items, vault, ports.signer, ports.anchors, clock_ms=clock_ms),
        metrics=metrics or NoMetrics(),
        tracer=tracer or NoTracer(),
    )
