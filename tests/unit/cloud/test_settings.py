"""What AWS's functions and tasks are told: every gap named at once, no value repeated."""

from __future__ import annotations

import os

import pytest

from tensafe.cloud.settings import read_cloud_settings
from tensafe.contracts.errors import ConfigurationError
from tests.support.cloud import KEY_ARN, cloud_environment

REQUIRED = (
    "TENSAFE_ANCHOR_TABLE",
    "TENSAFE_BASE_URL",
    "TENSAFE_BUCKET",
    "TENSAFE_ENVIRONMENT",
    "TENSAFE_KMS_KEY_ID",
    "TENSAFE_MODELS",
    "TENSAFE_QUEUE_PREFIX",
    "TENSAFE_SERVICE_NAME",
    "TENSAFE_SIGNING_KEY_ID",
    "TENSAFE_TABLE",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TENSAFE_")]:
        monkeypatch.delenv(name)
    for name, value in cloud_environment().items():
        monkeypatch.setenv(name, value)


def test_all_of_it_is_read() -> None:
    settings = read_cloud_settings()
    assert (settings.environment, settings.kms_key_id, settings.queue_prefix) == (
        "production",
        KEY_ARN,
        "ts-",
    )
    assert [model.name for model in settings.models] == ["acme/tiny"]
    assert (settings.oidc_issuer, settings.oidc_audience) == (None, None)


@pytest.mark.parametrize("name", REQUIRED)
def test_each_missing_variable_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(ConfigurationError, match=f"not set: {name}$"):
        read_cloud_settings()


def test_all_missing_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REQUIRED:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigurationError) as failure:
        read_cloud_settings()
    assert failure.value.message.endswith("not set: " + ", ".join(REQUIRED))


@pytest.mark.parametrize("name", ["TENSAFE_KMS_KEY_ID", "TENSAFE_TABLE", "TENSAFE_BUCKET"])
def test_an_empty_name_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    with pytest.raises(ConfigurationError, match=f"not set: {name}"):
        read_cloud_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TENSAFE_ENVIRONMENT", "prod-secret"),
        ("TENSAFE_QUEUE_PREFIX", "fifteen-secret-"),
        ("TENSAFE_QUEUE_PREFIX", "sec.ret"),
        ("TENSAFE_BASE_URL", "secret"),
        ("TENSAFE_MODELS", "secret"),
        ("TENSAFE_MODELS", '[{"name": "secret"}]'),
        ("TENSAFE_MODELS", "[" + " " * 65536 + "]"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_not_repeated(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name) as failure:
        read_cloud_settings()
    assert "secret" not in failure.value.message


def test_the_longest_queue_name_fits_sqs(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensafe.operations.doorbell import queue_specs

    monkeypatch.setenv("TENSAFE_QUEUE_PREFIX", "p" * 14)
    (train, sample) = queue_specs(["o" * 60 + "/" + "m" * 60])
    for name in (f"{train.dead_queue}.fifo", sample.dead_queue):
        assert len(read_cloud_settings().queue_prefix + name) <= 80
