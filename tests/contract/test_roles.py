"""What the functions call, over the adapters of AWS, is what the template's roles and keys let them.

No emulator here enforces IAM: calls are recorded, and the template is held to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from tensafe.api.readiness import OK, Readiness
from tensafe.lambdas.dead_letters import consuming
from tensafe.lambdas.sweeper import sweeping
from tensafe.operations.records import StreamRecord
from tests.contract.emulators import Wire, moto_in_process
from tests.contract.test_rooms_on_aws import LARGE, AwsWorld
from tests.support.key_policies import permits
from tests.support.operator_calls import allowed, recorded
from tests.unit.operations.world import LEASE_S


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def world(wire: Wire) -> AwsWorld:
    return AwsWorld()


def contexts(wire: Wire) -> list[tuple[str, Mapping[str, str]]]:
    """Every use of the key since the wire forgot, with its encryption context."""
    pairs = zip(wire.called, wire.sent, strict=True)
    return [
        (f"kms:{call.rpartition('.')[2]}", sent["EncryptionContext"])
        for call, sent in pairs
        if "EncryptionContext" in sent
    ]


def refused(wire: Wire, role: str) -> list[tuple[str, Mapping[str, str]]]:
    """Uses that the key's policy does not let the role make."""
    return [
        (action, context)
        for action, context in contexts(wire)
        if not permits("DataKey", role, action, context)
    ]


def without_keys(calls: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The key's own policy says who uses it."""
    return {one for one in calls if not one[0].startswith("kms:")}


def test_whoever_asks_whether_the_keys_answer_asks_as_the_policy_wants(world: AwsWorld, wire: Wire) -> None:
    wire.forget()
    with recorded() as found:
        checks = Readiness(world.services, timeout_s=30).checks()
    assert {checks[name] for name in ("items", "blobs", "queues", "keys")} == {OK}
    assert contexts(wire) != []
    assert refused(wire, "ApiRole") == []
    assert without_keys(found.calls) <= allowed("ApiPolicy")


def test_the_api_may_what_a_run_needs_of_it(world: AwsWorld, wire: Wire) -> None:
    wire.forget()
    with recorded() as found:
        run = world.run(first=False)
        world.submit(run, 1, LARGE, key="k")
        other = world.open(keyring=world.services.ports.keyring, bell=world.services.ports.bell)
        assert other.outcomes.payload(run, 1) == LARGE
        world.services.streams.erase(run.stream_id, "acme")
    assert {action for action, _ in contexts(wire)} == {"kms:GenerateDataKey", "kms:Decrypt"}
    assert refused(wire, "ApiRole") == []
    assert without_keys(found.calls) <= allowed("ApiPolicy")
    assert ("s3:PutObject", "BlobBucket") in found.calls


def poisoned(world: AwsWorld) -> StreamRecord:
    """A run with a large operation that failed every try."""
    run = world.run()
    operation = world.submit(run, 1, LARGE)
    for _ in range(3):
        operation = world.services.outcomes.start(operation, ())
    return run


@pytest.mark.parametrize("function", ["DeadLetters", "Sweeper"])
def test_what_settles_and_what_sweeps_opens_no_key(world: AwsWorld, wire: Wire, function: str) -> None:
    run, sampler, lucky = poisoned(world), world.sampler(), world.run("s-1:train:1")
    world.submit(lucky, 1)
    sample = world.submit(sampler, 0, LARGE)
    for _ in range(3):
        sample = world.services.outcomes.start(sample, ())
    world.checkpoint(lucky, "short", data=LARGE, ttl_s=1)
    world.later(3600 + LEASE_S)
    services = world.open(keyring=world.services.ports.keyring, bell=world.services.ports.bell)
    bodies = [{"stream": one.stream_id} for one in (run, lucky)] + [{"stream": sampler.stream_id, "seq": 0}]
    event = {"Records": [{"messageId": str(n), "body": json.dumps(body)} for n, body in enumerate(bodies)]}
    wire.forget()
    with recorded() as found:
        if function == "DeadLetters":
            assert consuming(services)(event, None) == {"batchItemFailures": []}
            assert len(services.dead_letters.list()) == 2
        else:
            sweeping(services)({}, None)
    assert contexts(wire) == []
    assert found.calls <= allowed(f"{function}Policy")
    assert ("sqs:SendMessage", "TrainQueue") in found.calls
    blobs = {one for one in allowed(f"{function}Policy") if one[0].startswith("s3:")}
    assert blobs == {one for one in found.calls if one[0].startswith("s3:")}
