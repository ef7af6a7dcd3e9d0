"""What the adapter holder's command is told, and what of the service's it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.holder_command import in_directory, on_aws

SERVICE = {
    "TENSAFE_ENVIRONMENT": "staging",
    "TENSAFE_TABLE": "tensafe-items",
    "TENSAFE_BUCKET": "tensafe-blobs",
    "TENSAFE_KMS_KEY_ID": "arn:aws:kms:r:1:key/service",
    "TENSAFE_SIGNING_KEY_ID": "1234",
    "AWS_ACCESS_KEY_ID": "service",
    "AWS_SECRET_ACCESS_KEY": "service",
    "AWS_SESSION_TOKEN": "service",
    "AWS_ROLE_ARN": "service",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "service",
    "AWS_PROFILE": "service",
    "AWS_DEFAULT_PROFILE": "service",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "PATH": "/bin",
}
HOLDER = {
    "TENSAFE_HOLDER_TABLE": "tensafe-adapters",
    "TENSAFE_HOLDER_BUCKET": "adapters",
    "TENSAFE_HOLDER_KMS_KEY_ID": "arn:aws:kms:r:1:key/adapters",
    "TENSAFE_HOLDER_PROFILE": "adapters",
}


def test_on_aws_it_is_told_its_own_store_and_nothing_of_the_service_s() -> None:
    command = on_aws(SERVICE | HOLDER)
    assert command.arguments == ()
    assert {name: value for name, value in command.environment.items() if name.startswith("TENSAFE_")} == {
        "TENSAFE_ENVIRONMENT": "production",
        "TENSAFE_TABLE": "tensafe-adapters",
        "TENSAFE_BUCKET": "adapters",
        "TENSAFE_KMS_KEY_ID": "arn:aws:kms:r:1:key/adapters",
    }
    # The service's credentials stay behind, in whatever form.
    assert "service" not in command.environment.values()
    assert command.environment["AWS_PROFILE"] == "adapters"
    assert command.environment["AWS_DEFAULT_REGION"] == "eu-central-1"


@pytest.mark.parametrize("name", HOLDER)
def test_a_variable_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--holder-dir.*{name}"):
        on_aws(SERVICE | HOLDER | {name: ""})


def test_a_directory_is_named_by_an_argument(tmp_path: Path) -> None:
    command = in_directory(tmp_path)
    assert command.arguments == ("--data-dir", str(tmp_path))
    assert command.environment == dict(os.environ)
    with pytest.raises(ConfigurationError, match="the adapter holder refused: there is no key file"):
        command("list")
