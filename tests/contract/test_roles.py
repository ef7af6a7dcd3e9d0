"""What authorizer, dead letters' function and sweeper call is what their roles let them, and all of that.

No emulator here enforces IAM: calls are recorded, and the template is held to them, both ways. The API is
driven in `tests/integration/lambdas/test_role.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tensafe.cloud.callers import cloud_callers
from tensafe.lambdas.authorizer import authorizing
from tensafe.lambdas.dead_letters import consuming
from tensafe.lambdas.entry import Handler
from tensafe.lambdas.sweeper import sweeping
from tensafe.operations import layout
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.records import Operation, OpKind, OpState, StreamKind, StreamRecord, StreamState
from tensafe.operations.streams import Streams, now_ms
from tensafe.operations.submissions import Submission
from tensafe.operations.unclaimed import Announcement
from tensafe.services import Services, wire
from tests.support.as_caller import made_as, services_as
from tests.support.aws_stack import Stack, make_stack
from tests.support.cloud import MODEL
from tests.support.role_rights import Right, held, of_a_function
from tests.support.wire_calls import WireCalls, recording_moto

pytestmark = pytest.mark.sockets

BASE: Final = str(MODEL["name"])
LARGE: Final = b"x" * 100_000
DAY_MS: Final = 86_400_000
OF_THE_MAPPING: Final[dict[Right, str]] = {
    (f"sqs:{action}", queue): "the event source mapping polls with the function's role"
    for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes")
    for queue in ("TrainDeadQueue", "SampleDeadQueue")
}
OF_A_FAILURE: Final[dict[Right, str]] = {
    ("sqs:SendMessage", "SweepFailures"): "Lambda sends there what a sweep that failed was called with",
}


@pytest.fixture
def recorded() -> Iterator[WireCalls]:
    with recording_moto() as calls:
        yield calls


@pytest.fixture
def stack(recorded: WireCalls) -> Stack:
    return make_stack(recorded.endpoint)


@pytest.fixture
def other(stack: Stack) -> Services:
    """Of whoever else is at work."""
    return services_as("other", stack)


def exactly(calls: WireCalls, role: str, stack: Stack, reasons: Mapping[Right, str] | None = None) -> None:
    """The caller of the role's name was let to do all that it did, and has no right more."""
    assert calls.of(role).uses == [], "no function but the API opens a key"
    found = held(calls.of(role), role, {stack.environment["TENSAFE_KMS_KEY_ID"]: "DataKey"})
    assert found.refused == set()
    assert found.untaken == set(of_a_function(role)) | set(reasons or {})


def test_the_authorizer_reads_a_key(recorded: WireCalls, stack: Stack, other: Services) -> None:
    key, record = other.api_keys.create("acme", ["train"])
    authorize = authorizing(made_as("Authorizer", stack, cloud_callers))

    def allowed(presented: str) -> bool:
        return bool(authorize({"headers": {"x-api-key": presented}}, None)["isAuthorized"])

    assert allowed(key)
    assert not allowed(f"{key[:-1]}!")
    other.api_keys.revoke(record.key_id)
    assert not authorizing(made_as("Authorizer", stack, cloud_callers))(
        {"headers": {"x-api-key": key}}, None
    )["isAuthorized"]
    exactly(recorded, "Authorizer", stack)


def a_run(services: Services, run_id: str) -> StreamRecord:
    record, writes = services.streams.creation(run_id, "acme", StreamKind.RUN, BASE)
    services.submissions.create(record, writes, Submission(0, OpKind.NOOP, b"{}"))
    return services.streams.get(run_id, "acme")


def a_sampler(services: Services, sampler_id: str) -> StreamRecord:
    record, writes = services.streams.creation(sampler_id, "acme", StreamKind.SAMPLER, BASE)
    services.ports.items.write(writes)
    return record


def submitted(services: Services, stream: StreamRecord, seq: int) -> Operation:
    return services.submissions.submit(stream, Submission(seq, OpKind.NOOP, LARGE))


def killing(services: Services, operation: Operation) -> None:
    """It has killed three workers."""
    for _ in range(3):
        operation = services.outcomes.start(operation, ())


def test_the_dead_letters_function_settles(recorded: WireCalls, stack: Stack, other: Services) -> None:
    poisoned, lucky = (a_run(other, f"s-{n}:train:0") for n in range(2))
    killing(other, other.outcomes.get(poisoned, 0))
    submitted(other, poisoned, 1)
    samplers = [a_sampler(other, f"s-{n}:sample:0") for n in range(2)]
    killing(other, submitted(other, samplers[0], 0))
    submitted(other, samplers[1], 0)
    bodies: list[dict[str, Any]] = [{"stream": one.stream_id} for one in (poisoned, lucky, poisoned)]
    bodies += [{"stream": one.stream_id, "seq": 0} for one in samplers]
    event = {"Records": [{"messageId": str(n), "body": json.dumps(body)} for n, body in enumerate(bodies)]}
    handler: Handler = consuming(services_as("DeadLetters", stack))
    assert handler(event, None) == {"batchItemFailures": []}
    assert len(other.dead_letters.list()) == 2
    assert other.streams.get(poisoned.stream_id, "acme").state is StreamState.BLOCKED
    assert [one.state for one in other.outcomes.operations(poisoned.stream_id)] == [OpState.FAILED] * 2
    exactly(recorded, "DeadLetters", stack, OF_THE_MAPPING)


def a_checkpoint(services: Services, run: StreamRecord) -> Checkpoint:
    """That is to go within a second."""
    checkpoint = Checkpoint(
        run_id=run.stream_id, tenant="acme", kind=CheckpointKind.TRAINING, name="short", base_model=BASE,
        created_ms=now_ms(), ref=services.artifacts.write(run.scope, "ckpt/weights/short", LARGE),
        artifact_id="art-1", expires_ms=now_ms() + 1000,
    )  # fmt: skip
    services.ports.items.write(services.checkpoints.saving(checkpoint, overwrite=False))
    return checkpoint


def test_the_sweeper_rings_and_deletes_by_date(
    recorded: WireCalls, stack: Stack, other: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sampler = a_run(other, "s-1:train:0"), a_sampler(other, "s-1:sample:0")
    submitted(other, sampler, 0)
    a_checkpoint(other, run)
    session = other.sessions.create("acme", {})
    idle, writes = other.streams.creation(
        f"{session.session_id}:sample:0", "acme", StreamKind.SAMPLER, BASE, session_id=session.session_id
    )
    other.ports.items.write(writes)
    unclaimed = Announcement(other.ports.items, layout.stream_item(run.stream_id, "snapshot"), now_ms)
    other.artifacts.write(run.scope, "snapshot/0", LARGE, announce=unclaimed)
    erased = a_run(other, "s-2:train:0")
    with monkeypatch.context() as patch:
        patch.setattr(Streams, "finish_erasure", lambda *_: None)  # whoever erased it was killed
        other.streams.erase(erased.stream_id, "acme")
    ports = services_as("Sweeper", stack).ports
    soon = wire(ports, other.models, clock_ms=lambda: now_ms() + 90_000)
    assert soon.sweeper.sweep() == 0  # no worker lives, and each queue has what would start one
    services = wire(ports, other.models, clock_ms=lambda: now_ms() + 40 * DAY_MS)
    done = sweeping(services)({}, None)
    assert done["sweep"] == 2
    assert done["retention"] > 4
    assert other.checkpoints.of_tenant("acme") == []
    assert other.sessions.list("acme") == []
    found = other.streams.find(idle.stream_id)
    assert found is not None
    assert found.state is StreamState.ERASED
    assert other.ports.items.get(erased.scope.key_item) is None
    objects = stack.client("s3").list_objects_v2(Bucket=stack.environment["TENSAFE_BUCKET"])
    assert objects["KeyCount"] == 1, "the payload of the sample that waits"
    exactly(recorded, "Sweeper", stack, OF_A_FAILURE)
