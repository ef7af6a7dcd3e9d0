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
_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


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

    `TENSAFE_HOLDER_PROFILE` names the profile with the credentials of the adapter holder's side; without it
    they are the service's. Raises ConfigurationError for variables that are not set.
    """
    given = dict(os.environ if environment is None else environment)
    absent = [f"{OF_HOLDER}{name}" for name in STORE if not given.get(f"{OF_HOLDER}{name}")]
    if absent:
        raise ConfigurationError(
            f"name the adapter holder's directory with --holder-dir, or its store on AWS; "
            f"not set: {', '.join(absent)}"
        )
    kept = {name: value for name, value in given.items() if not name.startswith("TENSAFE_")}
    if profile := given.get(f"{OF_HOLDER}{PROFILE}"):
        kept = {name: value for name, value in kept.items() if name not in _CREDENTIALS}
        kept["AWS_PROFILE"] = profile
    store = {f"TENSAFE_{name}": given[f"{OF_HOLDER}{name}"] for name in STORE}
    # There is no key ring on AWS but KMS, so the strictest name is always true.
    return HolderCommand((), {**kept, "TENSAFE_ENVIRONMENT": "production", **store})
