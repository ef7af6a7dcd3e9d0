"""The service's rooms over all the adapters of AWS at once: submit, work, poison, erase.

On moto with KMS; on ministack, whose KMS is no cryptography, with a key ring in memory. Calls are counted on
moto alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tensafe.contracts.errors import Gone, NotFound
from tensafe.operations import completions, layout
from tensafe.operations.doorbell import queue_specs
from tensafe.operations.leases import Lease
from tensafe.operations.records import Operation, OpKind, OpState, Result
from tensafe.operations.submissions import Submission
from tensafe.operations.window import SEQ_WINDOW
from tensafe.services import Services
from tensafe.storage.aws_clients import Service, aws_client
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.kms_ring import KmsRing
from tensafe.storage.ports import Check, ConditionFailed, KeyRing
from tensafe.storage.process_bell import ProcessBell
from tensafe.storage.s3_blobs import S3Blobs
from tensafe.storage.sqs_queues import SqsQueues
from tests.contract.emulators import (
    REGION,
    Wire,
    aws_at,
    create_queues,
    create_table,
    moto_in_process,
    shared_client,
)
from tests.fakes import MemoryKeyRing
from tests.support.fencing import late_writes_are_rejected
from tests.support.ministack import ON_EMULATOR
from tests.unit.operations.world import BASE, LEASE_S, TRAIN, World

LARGE = b"x" * 100_000


class AwsWorld(World):
    """Everything in it is its own, for the name that it is given."""

    def __init__(
        self,
        client: Callable[[Service], Any] = shared_client,
        *,
        name: str = "tensafe",
        keyring: KeyRing | None = None,
    ) -> None:
        super().__init__()
        self.s3, kms, self.bucket = client("s3"), client("kms"), f"{name}-blobs"
        key_arn = kms.create_key()["KeyMetadata"]["Arn"]
        location = {"LocationConstraint": REGION}
        self.s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration=location)
        specs = queue_specs([BASE])
        sqs, urls = create_queues(specs, client("sqs"), prefix=f"{name}-")
        table = f"{name}-items"
        self.items = DynamoDbItems(create_table(table, client("dynamodb")), table, clock=self.clock_s)
        self.blobs = S3Blobs(self.s3, self.bucket, kms_key_id=key_arn)
        self.queues = SqsQueues(sqs, specs, urls)
        self.services = self.open(keyring=keyring or KmsRing(kms, key_arn), bell=ProcessBell())

    def blob_keys(self) -> set[str]:
        return {one["Key"] for one in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])}


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def world(wire: Wire) -> AwsWorld:
    return AwsWorld()


@pytest.fixture(params=["moto", ON_EMULATOR])
def either(request: pytest.FixtureRequest) -> Iterator[AwsWorld]:
    if request.param == "moto":
        yield request.getfixturevalue("world")
        return
    with aws_at(request.getfixturevalue("emulator").endpoint_url):
        yield AwsWorld(aws_client, name=f"w{uuid4().hex[:12]}", keyring=MemoryKeyRing())


def test_a_run_from_its_first_operation_to_its_erasure(either: AwsWorld) -> None:
    world = either
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


def test_a_dead_workers_late_write_is_rejected(either: AwsWorld) -> None:
    late_writes_are_rejected(either)


def test_a_build_without_fencing_is_caught(either: AwsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease whose condition holds for everybody."""
    always = property(lambda lease: Check(layout.stream_item(lease.stream_id, "nothing"), 0))
    monkeypatch.setattr(Lease, "check", always)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        late_writes_are_rejected(either)


def test_a_message_that_was_given_up_rings_again(either: AwsWorld) -> None:
    world = either
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


def test_two_hundred_operations_of_a_run_that_nobody_holds_leave_one_message(either: AwsWorld) -> None:
    """What scaling counts are runs. By three processes, as API Gateway spreads what a client pipelines."""
    world = either
    run = world.run()
    ports = {"keyring": world.services.ports.keyring, "bell": ProcessBell()}
    edges = [world.open(**ports).submissions for _ in range(3)]
    for seq in range(1, 201):
        edges[seq % 3].submit(run, Submission(seq, OpKind.NOOP, b"{}"))
    assert world.queues.depth(TRAIN) == 1
    (message,) = world.queues.receive(TRAIN, visibility_s=60, wait_s=1)
    lease = world.claim(run)
    edges[0].submit(run, Submission(201, OpKind.NOOP, b"{}"))
    world.services.leases.release(lease)
    world.queues.delete(TRAIN, message.receipt)
    assert world.queues.depth(TRAIN) == 0
    for seq in range(202, 212):
        edges[seq % 3].submit(run, Submission(seq, OpKind.NOOP, b"{}"))
    assert world.queues.depth(TRAIN) == 1


def calls(wire: Wire, act: Callable[[], object]) -> dict[str, int]:
    """What is paid for."""
    wire.forget()
    act()
    return dict(Counter(call.rpartition(".")[2] for call in wire.called))


SUBMITTED = {"TransactWriteItems": 1, "GetItem": 1, "SendMessage": 1}
"""The operation; whether a trainer holds the run; if none does, the message."""


class TestCalls:
    """At most 2 of DynamoDB for a submitted operation and 3 for a finished one, and 1 of SQS for each."""

    def test_of_an_operation_of_a_run(self, world: AwsWorld, wire: Wire) -> None:
        run = world.run()
        assert calls(wire, lambda: world.submit(run, 1)) == SUBMITTED
        (message,) = world.queues.receive(TRAIN, visibility_s=60, wait_s=1)

        def finish() -> None:
            ((operation, payload),) = world.services.outcomes.ahead(run.stream_id, 1, 1)
            world.services.outcomes.payload(run, 1, operation, payload)
            world.complete(run, operation)
            world.queues.delete(TRAIN, message.receipt)

        # The trainer's own loop is counted in test_trainer_calls.py.
        assert calls(wire, finish) == {"BatchGetItem": 1, "TransactWriteItems": 2, "DeleteMessage": 1}

    def test_while_a_trainer_holds_the_run_no_message_is_sent(self, world: AwsWorld, wire: Wire) -> None:
        run = world.run()
        world.claim(run)
        assert calls(wire, lambda: world.submit(run, 1)) == {"TransactWriteItems": 1, "GetItem": 1}

    def test_with_an_idempotency_key(self, world: AwsWorld, wire: Wire) -> None:
        run = world.run()
        assert calls(wire, lambda: world.submit(run, 1, key="k")) == SUBMITTED

    def test_of_a_sample(self, world: AwsWorld, wire: Wire) -> None:
        sampler = world.sampler()
        world.submit(sampler, 0)  # the data key is read once in five minutes
        submitted = calls(wire, lambda: world.submit(sampler, 1))
        assert submitted == {"TransactWriteItems": 1, "SendMessage": 1}

    def test_of_a_sample_that_ends(self, world: AwsWorld, wire: Wire) -> None:
        sampler = world.sampler()
        for seq in (0, 1, 2):
            world.submit(sampler, seq)

        def finish(seq: int, services: Services = world.services) -> None:
            outcomes = services.outcomes
            operation = world.op(sampler, seq)
            wire.forget()  # how a worker finds it: its message, and one read each of session and operation
            outcomes.payload(sampler, seq, operation)
            running = outcomes.start(operation, (), owner="sampler-1")
            outcomes.complete(sampler, running, Result("application/json", b"{}"))

        finish(0)  # the first one of a session looks how many have ended
        assert calls(wire, lambda: finish(1)) == {"GetItem": 1, "TransactWriteItems": 2}
        other = world.open(keyring=world.services.ports.keyring, bell=ProcessBell())
        finish(2, other)
        world.submit(sampler, 3)
        overtaken = calls(wire, lambda: finish(3))
        assert overtaken == {"GetItem": 2, "TransactWriteItems": 3}
        found = completions.since(world.items, sampler.stream_id, 0, 0)
        assert [(one.cursor, one.seq) for one in found] == [(1, 0), (2, 1), (3, 2), (4, 3)]
        assert world.items.query(layout.stream_partition(sampler.stream_id), first="pay/", last="pay/~") == []

    def test_past_the_window_the_log_is_read_once_by_each_process(self, world: AwsWorld, wire: Wire) -> None:
        run = world.run()
        world.submit(run, SEQ_WINDOW)
        other = world.open(keyring=world.services.ports.keyring, bell=ProcessBell()).submissions
        other.submit(run, Submission(SEQ_WINDOW, OpKind.NOOP, b"{}"))  # reads the data key
        later = [Submission(SEQ_WINDOW + n, OpKind.NOOP, b"{}") for n in (1, 2)]
        assert calls(wire, lambda: other.submit(run, later[0])) == SUBMITTED | {"GetItem": 3, "Query": 1}
        assert calls(wire, lambda: other.submit(run, later[1])) == SUBMITTED

    def test_a_retry_finds_what_is_there(self, world: AwsWorld, wire: Wire) -> None:
        run = world.run()
        first = world.submit(run, 1, key="k")
        again: list[Operation] = []
        cost = calls(wire, lambda: again.append(world.submit(run, 1, key="k")))
        assert again[0].fingerprint == first.fingerprint
        assert cost == {"TransactWriteItems": 1, "GetItem": 4, "SendMessage": 1}

    def test_a_large_payload_costs_one_more_for_the_note_of_its_blob(
        self, world: AwsWorld, wire: Wire
    ) -> None:
        run = world.run()
        assert calls(wire, lambda: world.submit(run, 1, LARGE)) == SUBMITTED | {"TransactWriteItems": 2}
