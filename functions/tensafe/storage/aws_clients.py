"""Clients of AWS with the time-outs and retries that each service needs, and its errors made ours.

Region, credentials and endpoint come from the standard environment variables, so AWS and an emulator
differ in configuration only. Only the `aws_*`, `dynamodb_*`, `s3_*`, `sqs_*` and `kms_*` modules of this
package import boto3, which costs 0.3 s: the embedded mode loads none of them.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tensafe.contracts.errors import ConfigurationError, Unavailable

_log = logging.getLogger(__name__)
Service = Literal["dynamodb", "s3", "sqs", "kms"]
AwsClient = Any
"""The SDK makes the classes of its clients, from the services' descriptions, while it runs."""

ATTEMPTS: Final = 4
"""One try and three more, with the SDK's jittered back-off, for throttling, 5xx and lost connections."""
CONNECT_TIMEOUT_S: Final = 2.0
READ_TIMEOUT_S: Final[dict[Service, float]] = {
    "dynamodb": 5.0,  # a healthy answer takes milliseconds
    "s3": 20.0,  # between two reads of a socket, not for a whole body
    "sqs": 25.0,  # a receive waits up to 20 s for a message
    "kms": 5.0,
}
_CONNECTIONS: Final = 64
"""Threads that can use one client at the same time without waiting for each other."""
_making: Final = threading.Lock()
"""Held while a client is made: all are made of one session, which is not for several threads."""


def aws_client(service: Service) -> AwsClient:
    """A thread-safe client of the service. Make it before any threads, which the SDK's session is not for.

    Raises ConfigurationError if the environment names no region.
    """
    _region()
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S[service],
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
        signature_version="s3v4" if service == "s3" else None,  # older URLs cannot reach SSE-KMS objects
        # What is stored carries the SHA-256 that we computed; the SDK adds no checksum of its own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client(service, config=config)


class LazyClient:
    """A client that is made by its first use: loading a service's description takes 0.05 to 0.2 s.

    For what few events need. Thread-safe.
    """

    def __init__(self, service: Service) -> None:
        """Raises ConfigurationError if the environment names no region."""
        self.region_name = _region()
        self._service = service
        self._client: AwsClient | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the SDK's client has
        with _making:
            if self._client is None:
                self._client = aws_client(self._service)
        return getattr(self._client, name)


def _region() -> str:
    """That of the default session, of which the clients are made as well: each session more takes
    milliseconds of a cold start."""
    if boto3.DEFAULT_SESSION is None:
        boto3.setup_default_session()
    name: str | None = boto3.DEFAULT_SESSION.region_name
    if name is None:
        raise ConfigurationError("not set: AWS_REGION (or AWS_DEFAULT_REGION)", field="aws_region")
    return name


def region_of(client: AwsClient) -> str:
    """The region that a client, made or not, calls."""
    return client.region_name if isinstance(client, LazyClient) else str(client.meta.region_name)


def error_code(error: ClientError) -> str:
    """The service's name of the error, such as "TransactionCanceledException"."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def aws_errors_made_ours(what: str) -> Iterator[None]:
    """Turn whatever the SDK still raises, after its retries, into Unavailable; `what` names the store.

    The outcome of a write is then unknown: it may have been applied. The log gets the error's code alone,
    since messages of AWS quote request parameters.
    """
    try:
        yield
    except ClientError as error:
        _log.error("%s: %s refused by AWS: %s", what, error.operation_name, error_code(error))
        raise Unavailable(f"the {what} refused or failed; try again") from error
    except BotoCoreError as error:
        _log.error("%s: %s", what, type(error).__name__)
        raise Unavailable(f"the {what} does not answer; try again") from error


class Backoff:
    """Pauses between tries of our own: jittered, doubling from `first_s` to `longest_s`, `tries` in all."""

    def __init__(
        self,
        *,
        tries: int = 8,
        first_s: float = 0.02,
        longest_s: float = 0.64,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._tries = tries
        self._first_s = first_s
        self._longest_s = longest_s
        self._sleep = sleep

    def __iter__(self) -> Iterator[int]:
        """The number of each try, from 0, after its pause (none before the first)."""
        for number in range(self._tries):
            if number:
                ceiling_s = min(self._longest_s, self._first_s * 2 ** (number - 1))
                self._sleep(random.uniform(0, ceiling_s))  # noqa: S311 - spreads load, keeps no secret
            yield number
