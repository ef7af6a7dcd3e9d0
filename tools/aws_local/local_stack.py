"""All of it together: emulator, deployed template, the API's address, tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensafe.local.models import ModelSource
from tools.aws_local.deployment import Deployment, deploy
from tools.aws_local.emulator import Emulator
from tools.aws_local.front import WAITS_PER_TENANT, front
from tools.aws_local.tasks import Tasks, on_this_machine, read_tasks, running_tasks
from tools.stack_parameters import stack_parameters

READY_S: Final = 420.0


@dataclass(frozen=True, slots=True)
class LocalStack:
    """A deployment with its tasks. `url` is where clients reach the API."""

    url: str
    deployment: Deployment
    tasks: Tasks
    model_name: str
    max_wait_s: float = READY_S

    @property
    def emulator(self) -> Emulator:
        return self.deployment.emulator

    def environment(self) -> dict[str, str]:
        """What a command of `tensafe` needs to work on this deployment."""
        return {**self.deployment.function_environment("ApiFunction"), **self.emulator.environment()}

    def tensafe(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line as an operator would."""
        command = [sys.executable, "-P", "-c", "from tensafe.cli import main; main()", *arguments]
        environment = {"PATH": os.environ["PATH"], **self.environment()}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)

    def create_key(self, tenant: str, scope: str = "train,sample") -> str:
        made = self.tensafe("keys", "create", "--tenant", tenant, "--scope", scope, "--json")
        return str(json.loads(made.stdout)["key"])

    def invoke(self, logical_id: str, event: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Invoke a function of the template; its answer. Raises RuntimeError if it fails."""
        answer = self.emulator.client("lambda").invoke(
            FunctionName=self.deployment.resources()[logical_id], Payload=json.dumps(event or {})
        )
        body = answer["Payload"].read()
        if "FunctionError" in answer:
            raise RuntimeError(f"{logical_id}: {body[:2000]!r}")
        return json.loads(body)

    def wait_ready(self) -> None:
        """Until /readyz is 200, which needs both tasks. Raises TimeoutError with what it said last."""
        deadline, said = time.monotonic() + self.max_wait_s, "nothing"
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=30):  # noqa: S310 - our own address
                    return
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")
            except OSError as error:
                said = str(error)
            time.sleep(0.5)
        raise TimeoutError(f"the service did not become ready: {said[:1000]}")


@contextmanager
def local_stack(
    emulator: Emulator,
    package: Path,
    model: ModelSource,
    folder: Path,
    parameters: Mapping[str, str] | None = None,
    **task_environment: str,
) -> Iterator[LocalStack]:
    """Deploy template.yaml with the functions of `package`, and run its tasks; logs lie in `folder`."""
    info = model.resolve()
    # The folder itself, not one below /models: a client on this machine loads the tokenizer from it.
    served = json.dumps([info.model_dump(mode="json", exclude_none=True)])
    with front(emulator.address, emulator.port) as reached:
        few = {"BaseUrl": reached.url, "WaitsPerTenant": str(WAITS_PER_TENANT)}
        given = {**stack_parameters(info.name, served), **few, **(parameters or {})}
        deployment = deploy(emulator, package, given)
        reached.host = deployment.api_host
        specs = [
            on_this_machine(spec, emulator, folder, **task_environment)
            for spec in read_tasks(given, deployment.resources())
        ]
        with running_tasks(specs, folder) as tasks:
            yield LocalStack(reached.url, deployment, tasks, info.name)
