"""The storage contract over ministack, which is a process of its own: real sockets, and writers that race.

Nothing here says anything of KMS, which is no cryptography there. Where ministack deviates from AWS stands a
`gap`; where moto has one and ministack none, this is where the behaviour is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session

from tensafe.contracts.errors import Unavailable
from tensafe.storage.anchors import Anchors
from tensafe.storage.aws_clients import Service, aws_client
from tensafe.storage.dynamodb_anchors import DynamoDbAnchors
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.ports import Blobs, Item, Items, Key, Put, Queues
from tensafe.storage.s3_blobs import S3Blobs
from tensafe.storage.sqs_queues import SqsQueues
from tests.contract.anchors_suite import NAME, AnchorsSuite, mark
from tests.contract.blobs_suite import BlobsSuite
from tests.contract.emulators import REGION, aws_at, create_queues, create_table
from tests.contract.items_suite import ItemsSuite
from tests.contract.queues_suite import FIFO, LONG_S, SPECS, STANDARD, QueuesSuite, nothing, take
from tests.contract.test_s3_blobs import follow
from tests.support.ministack import Emulator, gap

__all__ = ["follow"]

pytestmark = [pytest.mark.slow, pytest.mark.emulator]
Clients = Callable[[Service], Any]


@pytest.fixture(scope="module")
def clients(emulator: Emulator) -> Clients:
    """One client of each service."""

    @cache
    def client(service: Service) -> Any:
        with aws_at(emulator.endpoint_url):
            return aws_client(service)

    return client


@pytest.fixture(scope="module")
def table(clients: Clients) -> str:
    name = f"items-{uuid4().hex}"
    create_table(name, clients("dynamodb"))
    return name


@pytest.fixture
def items(clients: Clients, table: str) -> Items:
    return DynamoDbItems(clients("dynamodb"), table)


@pytest.fixture
def anchors(clients: Clients) -> Iterator[Anchors]:
    name, client = f"anchors-{uuid4().hex}", clients("dynamodb")
    create_table(name, client)
    yield DynamoDbAnchors(client, name)
    client.delete_table(TableName=name)


@pytest.fixture(scope="module")
def kms_key(clients: Clients) -> str:
    return str(clients("kms").create_key()["KeyMetadata"]["Arn"])


@pytest.fixture
def bucket(clients: Clients) -> str:
    name = f"test-{uuid4().hex}"
    location = {"LocationConstraint": REGION}
    clients("s3").create_bucket(Bucket=name, CreateBucketConfiguration=location)
    return name


@pytest.fixture
def blobs(clients: Clients, bucket: str, kms_key: str) -> Blobs:
    return S3Blobs(clients("s3"), bucket, kms_key_id=kms_key)


@pytest.fixture
def damage(clients: Clients, bucket: str) -> Callable[[str], None]:
    """Somebody with the right to write puts other bytes in the place, under the same checksum."""

    def damage(key: str) -> None:
        s3 = clients("s3")
        stored = s3.get_object(Bucket=bucket, Key=key)
        data = stored["Body"].read()
        altered = data[:-1] + bytes([data[-1] ^ 1])
        s3.put_object(Bucket=bucket, Key=key, Body=altered, Metadata=stored["Metadata"])

    return damage


@pytest.fixture
def queues(clients: Clients) -> SqsQueues:
    client, urls = create_queues(SPECS, clients("sqs"), prefix=f"t{uuid4().hex[:12]}-")
    return SqsQueues(client, SPECS, urls)


class TestItems(ItemsSuite):
    @gap(
        "a transaction's 4 MB are counted as JSON with base64, not by the items' sizes",
        raises=Unavailable,
    )
    def test_transaction_size_at_the_boundary(self, items: Items, partition: str) -> None:
        super().test_transaction_size_at_the_boundary(items, partition)


class TestAnchors(AnchorsSuite):
    pass


class TestBlobs(BlobsSuite):
    pass


class TestQueues(QueuesSuite):
    tick_s = 1.0

    @gap(
        "the visibility of a message that is not in flight can be changed (MessageNotInflight)",
        raises=pytest.fail.Exception,
    )
    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_what_was_handed_back_is_not_held(self, queues: Queues, queue: str) -> None:
        super().test_what_was_handed_back_is_not_held(queues, queue)


@contextmanager
def answer_lost(client: Any, operation: str) -> Iterator[list[Any]]:
    """The next request of the operation is carried out, and its answer never arrives; all that were sent."""
    sent: list[Any] = []

    def send(request: Any, **_: Any) -> None:
        sent.append(request)
        if len(sent) == 1:
            with closing(URLLib3Session()) as session:
                assert session.send(request).status_code == 200
            raise ReadTimeoutError(endpoint_url=request.url)

    event = f"before-send.{client.meta.service_model.service_id.hyphenize()}.{operation}"
    client.meta.events.register(event, send)
    try:
        yield sent
    finally:
        client.meta.events.unregister(event, send)


class TestLostAnswers:
    """The SDK sends the request again, and finds what its first one did."""

    def test_of_a_transaction(self, clients: Clients, items: Items, partition: str) -> None:
        key = Key(partition, "a")
        with answer_lost(clients("dynamodb"), "TransactWriteItems") as sent:
            items.write([Put(key, {"n": 1}, 0)])
        assert len(sent) == 2
        assert items.get(key) == Item(key, 1, {"n": 1})

    def test_of_an_anchor(self, clients: Clients, anchors: Anchors) -> None:
        with answer_lost(clients("dynamodb"), "PutItem") as sent:
            anchors.put(mark(0), after=None)
        assert len(sent) == 2
        assert anchors.get(NAME) == mark(0)

    def test_of_a_blob(self, clients: Clients, blobs: Blobs) -> None:
        with answer_lost(clients("s3"), "PutObject") as sent:
            info = blobs.put("a", b"mine")
        assert len(sent) == 2
        assert blobs.head("a") == info

    def test_of_a_message(self, clients: Clients, queues: SqsQueues) -> None:
        with answer_lost(clients("sqs"), "SendMessage") as sent:
            queues.send(FIFO, {"n": 1}, group="g")
        assert len(sent) == 2
        queues.delete(FIFO, take(queues, FIFO).receipt)
        assert nothing(queues, FIFO)

    @gap("ReceiveRequestAttemptId is ignored, so a retry gets the next message")
    def test_of_a_receive(self, clients: Clients, queues: SqsQueues) -> None:
        for group in ("a", "b"):
            queues.send(FIFO, {}, group=group)
        with answer_lost(clients("sqs"), "ReceiveMessage"):
            (message,) = queues.receive(FIFO, visibility_s=LONG_S)
        assert message.group == "a"
