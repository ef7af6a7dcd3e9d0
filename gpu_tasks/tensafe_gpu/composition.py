"""How every task starts: whether on one machine or on AWS is decided here, by what the environment names."""

from __future__ import annotations

import os
from typing import Final

from tensafe.cloud.settings import CloudSettings, read_cloud_settings
from tensafe.contracts.errors import ConfigurationError
from tensafe.local.composition import open_services
from tensafe.local.process import forbid_core_dumps
from tensafe.local.settings import LocalSettings, read_settings
from tensafe.services import Services

LOCAL: Final = "TENSAFE_DATA_DIR"
CLOUD: Final = "TENSAFE_TABLE"
TaskSettings = LocalSettings | CloudSettings


def on_aws() -> bool:
    """Whether the environment names the store of AWS. Raises ConfigurationError if it names both, or none."""
    local, cloud = bool(os.environ.get(LOCAL)), bool(os.environ.get(CLOUD))
    if local is cloud:
        raise ConfigurationError(
            f"set {LOCAL} for the data directory of one machine, or {CLOUD} and what goes with it for AWS; "
            f"{'both are' if local else 'neither is'} set"
        )
    return cloud


def read_task_settings() -> TaskSettings:
    """The settings of the mode whose store the environment names.

    Raises ConfigurationError if it names both stores, or none, or lacks what the mode needs.
    """
    return read_cloud_settings() if on_aws() else read_settings()


def open_task_services(settings: TaskSettings) -> Services:
    """The services over the adapters of the settings' mode. Raises ConfigurationError."""
    if isinstance(settings, LocalSettings):
        return open_services(settings)
    # boto3 costs 0.3 s and is not installed with the embedded mode.
    from tensafe.cloud.composition import cloud_services  # noqa: PLC0415

    forbid_core_dumps()
    return cloud_services(settings)
