"""`python -m tensafe_gpu.trainer --model NAME`: a trainer process for one base model."""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from collections.abc import Callable

import torch

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.kv_cache import free_memory_bytes
from tensafe.observability import configure_logging
from tensafe.privacy.ledger import Ledger
from tensafe.services import Services
from tensafe_gpu.composition import TaskSettings, open_task_services, read_task_settings
from tensafe_gpu.device import compute_alike, require_device
from tensafe_gpu.healthcheck import mark_alive
from tensafe_gpu.process import announce_forever, die_with_parent, owner_name, stop_on_signals
from tensafe_gpu.protection import protected_while
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.execute import Executor
from tensafe_gpu.trainer.private_steps import PrivateSteps
from tensafe_gpu.trainer.snapshots import Snapshots
from tensafe_gpu.trainer.worker import TrainerWorker, WorkerSettings

log = logging.getLogger(__name__)


def build_worker(
    services: Services,
    name: str,
    base: BaseModel,
    owner: str,
    settings: WorkerSettings | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainerWorker:
    """The trainer's parts, put together; `clock` (seconds) says how long messages are held."""
    engine = Engine(base)
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    private_steps = PrivateSteps(services, engine, ledger, services.deals)
    executor = Executor(services, engine, private_steps)
    snapshots = Snapshots(services, engine)
    return TrainerWorker(
        services, name, executor, snapshots, private_steps, owner=owner, settings=settings, clock=clock
    )


def main() -> None:
    """Read the environment, load the model, serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    die_with_parent()
    stop = stop_on_signals()
    try:
        settings = read_task_settings()
        require_device(settings.device)
        configure_logging("trainer", settings.log_level)
        services = open_task_services(settings)
    except ConfigurationError as error:
        sys.exit(error.message)
    serve(services, arguments.model, settings, stop)


def serve(services: Services, model: str, settings: TaskSettings, stop: threading.Event) -> None:
    """Load the model, announce it, serve until `stop`. Raises NotFound for a model that is not served."""
    info = services.model(model)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.device == "cuda":
        compute_alike()
    began = time.monotonic()
    mark_alive(settings.load_limit_s)
    base = BaseModel.load(info.path, name=info.name, device=settings.device, dtype=settings.dtype)
    owner = owner_name("trainer")
    # Half of what the model has left: the other half is for activations and per-example gradients.
    worker_settings = WorkerSettings(max_hot_bytes=_free_bytes(base) // 2)
    worker = build_worker(services, info.name, base, owner, worker_settings)
    announce_forever(services, "trainer", info.name, owner, stop)
    log.info("trainer ready", extra={"base_model": info.name, "load_s": round(time.monotonic() - began, 2)})
    with protected_while(lambda: worker.busy):
        worker.run(stop)
    services.workers.withdraw(owner)


def _free_bytes(base: BaseModel) -> int:
    """Free memory of the device that holds the model."""
    if base.device.type == "cuda":
        return int(torch.cuda.mem_get_info(base.device)[0])
    return free_memory_bytes()


if __name__ == "__main__":
    main()
