"""Whether a task runs on one machine or on AWS is decided by the store that its environment names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tensafe.cloud.settings import CloudSettings
from tensafe.contracts.errors import ConfigurationError
from tensafe.local.settings import LocalSettings
from tensafe_gpu.adapter_holder.composition import (
    CloudHolderSettings,
    DirectorySettings,
    initialise,
    open_ports,
    read_holder_settings,
)
from tensafe_gpu.composition import read_task_settings
from tests.support.cloud import cloud_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TENSAFE_")]:
        monkeypatch.delenv(name)


def test_a_data_directory_means_one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSAFE_DATA_DIR", str(tmp_path))
    assert isinstance(read_task_settings(), LocalSettings)


def test_a_table_means_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cloud_environment().items():
        monkeypatch.setenv(name, value)
    assert isinstance(read_task_settings(), CloudSettings)
    monkeypatch.setenv("TENSAFE_DATA_DIR", "/data")
    with pytest.raises(ConfigurationError, match="both are set"):
        read_task_settings()


def test_neither_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"TENSAFE_DATA_DIR .* TENSAFE_TABLE .* neither is set"):
        read_task_settings()


def test_an_adapter_holder_is_told_by_the_same_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"TENSAFE_DATA_DIR .* TENSAFE_TABLE .* neither is set"):
        read_holder_settings()
    for name, value in cloud_environment().items():
        monkeypatch.setenv(name, value)
    assert isinstance(read_holder_settings(), CloudHolderSettings)
    monkeypatch.setenv("TENSAFE_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigurationError, match="both are set"):
        read_holder_settings()
    # A directory that is named on the command line is meant, whatever the environment names.
    assert isinstance(read_holder_settings(tmp_path), DirectorySettings)


def test_an_adapter_holder_opens_neither_the_service_s_directory_nor_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service/VERSION").touch()
    with pytest.raises(ConfigurationError, match="is the service's"):
        open_ports(DirectorySettings(data_dir=tmp_path / "service"))
    initialise(tmp_path / "holder")
    (tmp_path / "holder/accepted.db").touch()
    with pytest.raises(ConfigurationError, match="rotate every adapter"):
        open_ports(DirectorySettings(data_dir=tmp_path / "holder"))
