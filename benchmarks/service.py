"""The service's own processes, started without a supervisor so that a benchmark may choose and time them."""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from tensafe.local.composition import initialise, local_services
from tensafe.local.deployment import deployment
from tensafe.local.endpoint import Endpoint
from tensafe.local.models import ModelSource
from tensafe.local.process import OWNER_VARIABLE, SUPERVISOR_PID_VARIABLE
from tensafe.local.settings import LocalSettings
from tensafe.services import Services

MODEL: Final = "bench/model"
START_TIMEOUT_S: Final = 300.0
_STOP_S: Final = 20.0
_PROBE_S: Final = 0.005


@dataclass
class Deployed:
    """A running service. `ready_s` is the time from starting a process until it answered or announced."""

    url: str
    port: int
    key: str
    services: Services
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)
    logs: Path = Path()

    def process(self, role: str) -> psutil.Process:
        return psutil.Process(self.processes[role].pid)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that each process, with its descendants, has used so far."""
        return {role: _cpu_s(self.process(role)) for role in self.processes}


@contextmanager
def deployed(
    folder: Path,
    model_path: Path,
    *,
    roles: Collection[str] = ("api", "trainer"),
    threads: int = 1,
    device: str = "cpu",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Deployed]:
    """The processes of `roles` over a new data directory, with an API key of one tenant."""
    data_dir = folder / "data"
    initialise(data_dir)
    endpoint = Endpoint(port=0).checked()
    info = ModelSource(MODEL, str(model_path)).resolve()
    settings = LocalSettings(
        data_dir=data_dir,
        models=(info,),
        base_url=endpoint.url,
        threads=threads,
        device=device,  # type: ignore[arg-type]  # checked by the model
    )
    with ExitStack() as stack:
        services = stack.enter_context(local_services(settings))
        key, _ = services.api_keys.create("bench", ["train", "sample"])
        running = Deployed(endpoint.url, endpoint.port, key, services, logs=data_dir / "logs")
        stack.callback(_stop, running)
        for spec in deployment(settings, endpoint):
            role = spec.name.split("-")[0]
            if role in roles:
                _start(running, role, spec.command, {**spec.environment, **(environment or {})})
                _await(running, role, endpoint)
        yield running


def _start(running: Deployed, role: str, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
    with (running.logs / f"{role}.log").open("ab") as log:
        running.processes[role] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **environment,
                OWNER_VARIABLE: f"{role}-bench",
                SUPERVISOR_PID_VARIABLE: str(os.getpid()),
            },
            start_new_session=True,
        )


def _await(running: Deployed, role: str, endpoint: Endpoint) -> None:
    """Wait until the API answers, or the task has announced itself."""
    began = time.monotonic()
    process = running.processes[role]
    while time.monotonic() - began < START_TIMEOUT_S:
        if process.poll() is not None:
            tail = (running.logs / f"{role}.log").read_text()[-2000:]
            raise RuntimeError(f"{role} ended with code {process.returncode}:\n{tail}")
        if role == "api":
            ready = _answers(endpoint)
        else:
            ready = any(worker.role == role for worker in running.services.workers.list())
        if ready:
            running.ready_s[role] = time.monotonic() - began
            return
        time.sleep(_PROBE_S)
    raise TimeoutError(f"{role} was not ready within {START_TIMEOUT_S:.0f} s")


def _answers(endpoint: Endpoint) -> bool:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def _stop(running: Deployed) -> None:
    for process in running.processes.values():
        process.terminate()
    for process in running.processes.values():
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total
