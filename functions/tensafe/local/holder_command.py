"""The adapter holder's command line, as a process of its own: how it is told which store is the holder's.

The service and the adapter holder are different trust domains, so what names the service's store, and the
credentials for it, need not reach that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensafe.contracts.errors import ConfigurationError

_COMMAND: Final = (sys.executable, "-m", "tensafe_gpu.adapter_holder")
OF_HOLDER: Final = "TENSAFE_HOLDER_"
STORE: Final = ("TABLE", "BUCKET", "KMS_KEY_ID")
PROFILE: Final = "PROFILE"
_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_DEFAULT_PROFILE",
)
"""What the SDK would take credentials from before it looks at a profile."""


@dataclass(frozen=True, slots=True)
class HolderCommand:
    """Runs commands of the adapter holder: with these arguments, in this environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def __call__(self, name: str, *arguments: str) -> dict[str, Any]:
        """One command; what it printed. Raises ConfigurationError with the adapter holder's sentence."""
        command = [*_COMMAND, name, *self.arguments, *arguments]
        environment = {"OMP_NUM_THREADS": "1", **self.environment}
        done = subprocess.run(command, capture_output=True, check=False, env=environment)  # noqa: S603 - ours
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise ConfigurationError(f"the adapter holder refused: {lines[-1][:500]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def in_directory(data_dir: Path) -> HolderCommand:
    """On the adapter holder's data directory, which is on this machine."""
    return HolderCommand(("--data-dir", str(data_dir)), dict(os.environ))


def on_aws(environment: Mapping[str, str] | None = None) -> HolderCommand:
    """On the table, bucket and key that `TENSAFE_HOLDER_*` names; by default in this process's environment.

    `TENSAFE_HOLDER_PROFILE` names the profile with the credentials of the adapter holder's side: no role of
    the template has rights on both, and the service's do not reach that process. Raises ConfigurationError
    for variables that are not set.
    """
    given = dict(os.environ if environment is None else environment)
    wanted = [f"{OF_HOLDER}{name}" for name in (*STORE, PROFILE)]
    absent = [name for name in wanted if not given.get(name)]
    if absent:
        raise ConfigurationError(
            f"name the adapter holder's directory with --holder-dir, or its store on AWS; "
            f"not set: {', '.join(absent)}"
        )
    kept = {
        name: value
        for name, value in given.items()
        if not name.startswith("TENSAFE_") and name not in _CREDENTIALS
    }
    store = {f"TENSAFE_{name}": given[f"{OF_HOLDER}{name}"] for name in STORE}
    # There is no key ring on AWS but KMS, so the strictest name is always true.
    told = {"TENSAFE_ENVIRONMENT": "production", "AWS_PROFILE": given[f"{OF_HOLDER}{PROFILE}"]}
    return HolderCommand((), {**kept, **told, **store})
