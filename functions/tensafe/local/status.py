"""What `tensafe status` tells, read from the data directory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tensafe.local.lock import running_supervisor
from tensafe.operations.worker_status import WorkerReport
from tensafe.services import Services
from tensafe.storage.ports import JsonValue

Row = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """`ready`: a supervisor runs, and each model that it serves has a live trainer and sampler."""

    data_dir: str
    key_id: str
    pid: int | None
    url: str | None
    ready: bool
    models: list[str]
    dead_letters: int
    workers: Sequence[Row]
    queues: Sequence[Row]

    def facts(self) -> Row:
        """All but the tables."""
        return {
            "data_dir": self.data_dir,
            "key_id": self.key_id,
            "running": self.pid is not None,
            "pid": self.pid,
            "url": self.url,
            "ready": self.ready,
            "models": list(self.models),
            "dead_letters": self.dead_letters,
        }

    def to_json(self) -> Row:
        """Everything, for scripts."""
        return {**self.facts(), "workers": list(self.workers), "queues": list(self.queues)}


def all_workers_announced(services: Services) -> bool:
    """Whether every model of these services has a live trainer and sampler; one cheap read."""
    return _complete(services.workers.list(), services.models)


def read_status(services: Services, data_dir: Path) -> ServiceStatus:
    """Look at the supervisor's lock, the workers' announcements and the queues."""
    noted = running_supervisor(data_dir) or {}
    models = [str(name) for name in cast("list[object]", noted.get("models") or [])]
    alive = services.workers.list() if noted else []
    queues = services.ports.queues
    return ServiceStatus(
        data_dir=str(data_dir),
        key_id=services.ports.keyring.key_id,
        pid=cast("int | None", noted.get("pid")),
        url=cast("str | None", noted.get("url")),
        ready=bool(models) and _complete(alive, models),
        models=models,
        dead_letters=len(services.dead_letters.list(limit=10_000)),
        workers=[
            {
                "role": worker.role,
                "base_model": worker.base_model,
                "since_s": worker.since_s,
                "owner": worker.owner,
            }
            for worker in alive
        ],
        queues=[
            {"name": spec.name, "waiting": queues.depth(spec.name), "dead": queues.depth(spec.dead_queue)}
            for spec in services.ports.queue_specs
        ],
    )


def _complete(alive: Iterable[WorkerReport], models: Iterable[str]) -> bool:
    present = {(worker.role, worker.base_model) for worker in alive}
    return all((role, model) in present for model in models for role in ("trainer", "sampler"))
