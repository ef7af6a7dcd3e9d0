"""A deployment on the emulator as tests see a running service: an address, keys, processes to kill."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tensafe.cloud.composition import cloud_services
from tensafe.cloud.settings import read_cloud_settings
from tensafe.services import Services
from tests.support.service import MODEL_NAME
from tools.aws_local.local_stack import LocalStack


@dataclass(frozen=True, slots=True)
class AwsService:
    """Has what tests use of `tests.support.service.Service`, over template.yaml's functions and tasks."""

    stack: LocalStack

    @property
    def url(self) -> str:
        return self.stack.url

    @property
    def model_name(self) -> str:
        return MODEL_NAME

    @property
    def waits_per_tenant(self) -> int:
        return int(self.stack.environment()["TENSAFE_WAITS_PER_TENANT"])

    @contextmanager
    def services(self) -> Iterator[Services]:
        """The rooms as another process has them. The environment is changed for as long."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.stack.environment().items():
                patch.setenv(name, value)
            yield cloud_services(read_cloud_settings())

    def create_key(self, tenant: str = "acme", *scopes: str) -> str:
        with self.services() as services:
            return services.api_keys.create(tenant, scopes or ("train", "sample"))[0]

    def tensafe(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line on this deployment."""
        return self.stack.tensafe(*arguments)

    def role_pids(self, role: str) -> list[int]:
        pid = self.stack.tasks.pid(role)
        return [] if pid is None else [pid]

    def kill(self, role: str) -> int:
        """SIGKILL; ECS, or here the keeper of the tasks, starts another one."""
        return self.stack.tasks.kill(role)

    @contextmanager
    def paused(self, role: str) -> Iterator[None]:
        """The role's process is stopped in the block, as one whose machine hangs."""
        (pid,) = self.role_pids(role)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def wait_ready(self) -> None:
        self.stack.wait_ready()
