"""The service's rooms over all the adapters of AWS at once, on moto: submit, work, poison, erase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tensafe.contracts.errors import Gone, NotFound
from tensafe.operations.doorbell import queue_specs
from tensafe.operations.records import OpState
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.kms_ring import KmsRing
from tensafe.storage.ports import ConditionFailed
from tensafe.storage.process_bell import ProcessBell
from tensafe.storage.s3_blobs import S3Blobs
from tensafe.storage.sqs_queues import SqsQueues
from tests.contract.emulators import (
    REGION,
    TABLE,
    Wire,
    create_queues,
    create_table,
    moto_in_process,
    shared_client,
)
from tests.unit.operations.world import BASE, LEASE_S, TRAIN, World

LARGE = b"x" * 100_000
BUCKET = "tensafe-blobs"


class AwsWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.s3, kms = shared_client("s3"), shared_client("kms")
        key_arn = kms.create_key()["KeyMetadata"]["Arn"]
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        specs = queue_specs([BASE])
        sqs, urls = create_queues(specs)
        self.items = DynamoDbItems(create_table(), TABLE, clock=self.clock_s)
        self.blobs = S3Blobs(self.s3, BUCKET, kms_key_id=key_arn)
        self.queues = SqsQueues(sqs, specs, urls)
        self.services = self.open(keyring=KmsRing(kms, key_arn), bell=ProcessBell())

    def blob_keys(self) -> set[str]:
        return {one["Key"] for one in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def world(wire: Wire) -> AwsWorld:
    return AwsWorld()


def test_a_run_from_its_first_operation_to_its_erasure(world: AwsWorld) -> None:
    run = world.run()
    operation = world.submit(run, 1, LARGE)
    assert world.submit(run, 1, LARGE).seq == 1
    (message,) = world.queues.receive(TRAIN, visibility_s=60, wait_s=1)
    assert (message.body, message.group) == ({"stream": run.stream_id}, run.stream_id)
    lease = world.claim(run)
    assert world.services.outcomes.payload(run, 1) == LARGE
    world.complete(run, operation, LARGE)
    world.queues.delete(TRAIN, message.receipt)
    done = world.op(run, 1)
    assert done.state is OpState.COMPLETED
    assert world.services.outcomes.result(run, done).data == LARGE
    with pytest.raises(ConditionFailed):
        world.complete(run, operation, b"again")
    world.later(LEASE_S + 1)
    assert world.claim(run, "trainer-b").token != lease.token
    assert world.blob_keys()
    world.services.streams.erase(run.stream_id, "acme")
    assert world.blob_keys() == set()
    assert world.items.get(run.scope.key_item) is None
    with pytest.raises((Gone, NotFound)):
        world.services.outcomes.payload(run, 1)


def test_a_message_that_was_given_up_rings_again(world: AwsWorld) -> None:
    run = world.run()
    world.submit(run, 1)
    for _ in range(3):
        (message,) = world.queues.receive(TRAIN, visibility_s=1)
        world.queues.extend(TRAIN, message.receipt, 0)
    assert world.queues.receive(TRAIN, visibility_s=1) == []
    specs = world.services.ports.queue_specs
    assert world.services.dead_letters.consume(world.queues, specs) == 1
    assert world.op(run, 1).state is OpState.PENDING
    assert world.drain(TRAIN) == [{"stream": run.stream_id}]


def test_how_often_an_operation_calls(world: AwsWorld, wire: Wire) -> None:
    """What is paid for. The goal for submitting is 2 calls of DynamoDB; docs/status.md says so."""
    run = world.run()
    wire.forget()
    operation = world.submit(run, 1)
    assert Counter(call.rpartition(".")[2] for call in wire.called) == {
        "GetItem": 2,
        "Query": 1,
        "TransactWriteItems": 1,
        "SendMessage": 1,
    }
    wire.forget()
    world.complete(run, operation)
    assert [call.rpartition(".")[2] for call in wire.called] == ["TransactWriteItems"] * 2
