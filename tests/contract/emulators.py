"""moto, the emulator of AWS that runs in this process, and what the adapters need on it and on others.

moto keeps no locks, so that threads which write at the same time undo each other's transactions (it
copies the whole table, and puts the copy back when a condition fails). `Wire` makes it serialise them, as
DynamoDB does, and is where tests put faults between the adapters and the service.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Literal

import botocore.endpoint
import pytest
from botocore.exceptions import ReadTimeoutError
from moto import mock_aws
from moto.core.botocore_stubber import BotocoreStubber
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer

from tensafe.storage.aws_clients import Service, aws_client
from tensafe.storage.dynamodb_items import TTL_ATTRIBUTE
from tensafe.storage.ports import QueueSpec

REGION = "eu-central-1"
ACCOUNT = "123456789012"
TABLE = "tensafe-items"


@contextmanager
def aws_at(endpoint_url: str | None) -> Iterator[None]:
    """Clients that are made in the block, here or in a child process, reach this address as nobody."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        if endpoint_url is not None:
            patch.setenv("AWS_ENDPOINT_URL", endpoint_url)
        yield


@contextmanager
def moto_in_process() -> Iterator[None]:
    """Credentials of nobody, and moto instead of AWS."""
    with aws_at(None), mock_aws():
        yield


Answer = tuple[int, dict[str, Any]]
"""An HTTP status and a JSON body."""
LOST: Final = "lost"
"""The request is carried out, and its answer never arrives."""
Fault = Answer | Exception | Literal["lost"]
"""An exception is what the socket would raise, before the request got anywhere."""


class Wire:
    """Every request that reaches moto, one at a time; the next ones may be given faults."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.called: list[str] = []  # "DynamoDB_20120810.GetItem" and so on, without S3's
        self._faults: list[Fault] = []
        self._outage: tuple[int, Fault, Fault] | None = None
        self._lock = threading.Lock()

    def break_next(self, *faults: Fault) -> None:
        """What happens to the next requests; those after them are carried out."""
        self._faults += faults

    @contextmanager
    def outage(self, request: int, first: Fault, others: Fault) -> Iterator[None]:
        """That request from now on (from 1) meets `first`, and all that come after it `others`."""
        self._outage = (request, first, others)
        try:
            yield
        finally:
            self._outage = None

    def forget(self) -> None:
        """Start `sent` and `called` anew."""
        self.sent.clear()
        self.called.clear()

    @contextmanager
    def between(self) -> Iterator[Wire]:
        carry_out = BotocoreStubber.process_request

        def process_request(stubber: BotocoreStubber, request: Any) -> Any:
            with self._lock:
                if request.headers.get("Content-Type", b"").startswith(b"application/x-amz-json"):
                    self.sent.append(json.loads(request.body))
                    self.called.append(request.headers["X-Amz-Target"].decode())
                fault = self._fault()
                if isinstance(fault, tuple):
                    return fault[0], {"content-type": "application/x-amz-json-1.0"}, json.dumps(fault[1])
                if isinstance(fault, Exception):
                    raise fault
                answer = None if _waits(request) else carry_out(stubber, request)
            if answer is None:
                answer = self._wait(lambda: carry_out(stubber, request), request)
            if fault is not None:
                raise ReadTimeoutError(endpoint_url=request.url, error="lost")
            return answer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BotocoreStubber, "process_request", process_request)
            patch.setattr(botocore.endpoint, "time", _NoPauses)  # the SDK's between its tries
            yield self

    def _fault(self) -> Fault | None:
        if self._faults:
            return self._faults.pop(0)
        if self._outage is None:
            return None
        left, first, others = self._outage
        self._outage = (left - 1, first, others)
        return None if left > 1 else first if left == 1 else others

    def _wait(self, carry_out: Callable[[], Any], request: Any) -> Any:
        """A receive that waits: moto's own would keep the lock, or run beside the others without one."""
        asked = json.loads(request.body)
        deadline = time.monotonic() + asked["WaitTimeSeconds"]
        request.body = json.dumps(asked | {"WaitTimeSeconds": 0}).encode()
        while True:
            with self._lock:
                answer = carry_out()
            if json.loads(answer[2]).get("Messages") or time.monotonic() >= deadline:
                return answer
            time.sleep(0.02)


def _waits(request: Any) -> bool:
    target = request.headers.get("X-Amz-Target", b"")
    return target == b"AmazonSQS.ReceiveMessage" and json.loads(request.body).get("WaitTimeSeconds", 0) > 0


class _NoPauses:
    @staticmethod
    def sleep(_: float) -> None: ...


@cache
def shared_client(service: Service) -> Any:
    """One client for all tests of a run: making one takes 0.2 s, and it works with every moto that comes."""
    return aws_client(service)


def create_table(name: str = TABLE, client: Any = None) -> Any:
    """The client, and the table that DynamoDbItems expects, empty."""
    client = client or shared_client("dynamodb")
    client.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )
    client.update_time_to_live(
        TableName=name,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": TTL_ATTRIBUTE},
    )
    return client


def create_queues(
    specs: Sequence[QueueSpec], client: Any = None, *, prefix: str = ""
) -> tuple[Any, dict[str, str]]:
    """A client, and the URLs of the queues that SqsQueues expects, empty; by the names of `specs`."""
    client = client or shared_client("sqs")
    urls: dict[str, str] = {}
    for spec in specs:
        suffix, kind = (".fifo", {"FifoQueue": "true"}) if spec.fifo else ("", {})
        dead = client.create_queue(QueueName=prefix + spec.dead_queue + suffix, Attributes=kind)["QueueUrl"]
        arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"][
            "QueueArn"
        ]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": spec.max_receives})
        source = client.create_queue(
            QueueName=prefix + spec.name + suffix, Attributes=kind | {"RedrivePolicy": policy}
        )
        urls |= {spec.name: source["QueueUrl"], spec.dead_queue: dead}
    return client, urls


@contextmanager
def moto_on_loopback() -> Iterator[str]:
    """moto behind HTTP, for what travels in headers and URLs, one request at a time; its address."""
    lock, answer = threading.Lock(), DomainDispatcherApplication.__call__

    def answer_alone(application: DomainDispatcherApplication, *request: Any) -> Any:
        with lock:
            return answer(application, *request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DomainDispatcherApplication, "__call__", answer_alone)
        socket.socket().close()  # where none may be opened: in the server's own thread nobody would be told
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            with aws_at(f"http://{host}:{port}"):
                yield f"http://{host}:{port}"
        finally:
            server.stop()
