"""Every client of AWS gives up in a known time, and tries again a known number of times."""

from __future__ import annotations

from typing import get_args

import pytest

from tensafe.storage.aws_clients import ATTEMPTS, CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Service, aws_client
from tests.contract.emulators import aws_at


@pytest.mark.parametrize("service", get_args(Service))
def test_a_client_has_time_outs_and_retries_of_its_own(service: Service) -> None:
    # boto3's own session keeps the first credentials that it finds, for every test after this one.
    with aws_at(None):
        config = aws_client(service).meta.config
    assert (config.connect_timeout, config.read_timeout) == (CONNECT_TIMEOUT_S, READ_TIMEOUT_S[service])
    assert config.retries == {"mode": "standard", "total_max_attempts": ATTEMPTS}
    assert CONNECT_TIMEOUT_S <= 2
    assert READ_TIMEOUT_S[service] <= 25
