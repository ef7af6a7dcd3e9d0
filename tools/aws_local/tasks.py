"""The ECS tasks' commands and environment, as infra/tasks.yaml has them, run as processes on the CPU.

No emulator runs ECS on GPU instances. What differs from a task on AWS is in `on_this_machine` alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.aws_local.emulator import ROOT, Emulator
from tools.aws_local.template import Scope, load_template

ROLES: Final = ("trainer", "sampler")
_STOP_S: Final = 120.0
"""StopTimeout of the task definitions."""
_SYSTEM: Final = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LANG")


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a container of a task definition runs."""

    role: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def read_tasks(
    parameters: Mapping[str, str], resources: Mapping[str, str], roles: Sequence[str] = ROLES
) -> list[TaskSpec]:
    """The trainer and the sampler of a deployed template.yaml: given its parameters and physical ids.

    template.yaml hands its nested stack parameters; they are worked out where something names one.
    """
    core, tasks = load_template(ROOT / "template.yaml"), load_template(ROOT / "infra/tasks.yaml")
    handed = core["Resources"]["Tasks"]["Properties"]["Parameters"]
    outer = Scope(core, parameters, resources)
    inner = Scope(tasks, _Lazily(outer, handed), {})
    found = []
    for role in roles:
        name = f"{role.title().replace('-', '')}Task"
        (container,) = tasks["Resources"][name]["Properties"]["ContainerDefinitions"]
        command = tuple(inner.value(container["Command"]))
        variables = {one["Name"]: str(inner.value(one["Value"])) for one in container["Environment"]}
        found.append(TaskSpec(role, command, variables))
    return found


class _Lazily(dict[str, Any]):
    """Parameters of the nested stack; those that nobody asks for are never worked out."""

    def __init__(self, scope: Scope, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self._scope = scope

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self._scope.value(super().__getitem__(name))


def on_this_machine(spec: TaskSpec, emulator: Emulator, home: Path, **more: str) -> TaskSpec:
    """The same on a CPU: this interpreter, the emulator's address, a home of its own."""
    environment = {
        **{name: os.environ[name] for name in _SYSTEM if name in os.environ},
        **spec.environment,
        **emulator.environment(),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "TENSAFE_DEVICE": "cpu",
        "TENSAFE_DTYPE": "float32",
        "TENSAFE_THREADS": "1",
        "TENSAFE_SUPERVISOR_PID": str(os.getpid()),  # they end with this process, however it ends
        **more,
    }
    if spec.command[0] != "python":
        raise ValueError(f"the {spec.role}'s command is no Python: {spec.command[0]}")
    return TaskSpec(spec.role, (sys.executable, "-P", *spec.command[1:]), environment)


class Tasks:
    """One process for each, started anew when it ends, as an ECS service does."""

    def __init__(self, specs: list[TaskSpec], logs: Path) -> None:
        self._specs = {one.role: one for one in specs}
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._unwanted: set[str] = set()
        self._told: set[str] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        # The kernel ends a task with the thread that started it.
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        self._keeper.start()

    def log(self, role: str) -> Path:
        return self._logs / f"{role}.log"

    def pid(self, role: str) -> int | None:
        """None while there is none."""
        with self._lock:
            process = self._running.get(role)
            return process.pid if process is not None and process.poll() is None else None

    def kill(self, role: str) -> int:
        """SIGKILL, as when the instance is taken away; its pid."""
        pid = self.pid(role)
        if pid is None:
            raise RuntimeError(f"there is no {role} to kill")
        os.kill(pid, signal.SIGKILL)
        return pid

    def scale(self, role: str, count: int) -> None:
        """As an ECS service's desired count: keep a process of the role (1), or end it and start none (0)."""
        with self._lock:
            (self._unwanted.add if count == 0 else self._unwanted.discard)(role)
            self._told.discard(role)

    def close(self) -> None:
        """SIGTERM, the time that ECS gives, and SIGKILL."""
        self._stopping.set()
        self._keeper.join()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            for role, spec in self._specs.items():
                process = self._running.get(role)
                alive = process is not None and process.poll() is None
                if role in self._unwanted:
                    if process is not None and alive and role not in self._told:
                        process.terminate()
                        self._told.add(role)
                elif not alive:
                    with self.log(role).open("ab") as output, self._lock:
                        self._running[role] = subprocess.Popen(
                            spec.command,
                            env=dict(spec.environment),
                            stdout=output,
                            stderr=output,
                            start_new_session=True,  # a Ctrl-C reaches the tool alone
                        )
            self._stopping.wait(0.2)
        self._end()

    def _end(self) -> None:
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running_tasks(specs: list[TaskSpec], logs: Path) -> Iterator[Tasks]:
    """Started, and ended with the block."""
    tasks = Tasks(specs, logs)
    tasks.start()
    try:
        yield tasks
    finally:
        tasks.close()
