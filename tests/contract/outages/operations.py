"""Transactions of runs: created, submitted, claimed, completed, cancelled, erased; and of their ledger."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tensafe.contracts.domains import DomainTerms
from tensafe.operations.leases import LeaseLost
from tensafe.operations.records import OpKind, OpState, Result, StreamKind, StreamState
from tensafe.operations.submissions import Submission
from tensafe.privacy.dealt_ledger import DealtLedger
from tensafe.privacy.domains import Domains
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.privacy.replay import replay
from tensafe.services import Services
from tests.contract.outages.world import LARGE, RUN, Act, TableWorld, the_run
from tests.support.dealt_training import dealt
from tests.unit.operations.world import BASE, LEASE_S
from tests.unit.privacy.support import open_run


def _submitting(payload: bytes) -> Act:
    def do(world: TableWorld, services: Services) -> None:
        services.submissions.submit(the_run(world), Submission(1, OpKind.NOOP, payload, idempotency_key="k"))

    def check(world: TableWorld) -> None:
        run = the_run(world)
        assert [op.state for op in world.log(run)] == [OpState.COMPLETED, OpState.PENDING]
        assert world.services.outcomes.payload(run, 1) == payload
        assert len(world.markers()) == 1
        assert world.orphans() == set()

    return Act(lambda world: world.run(), do, check)


def _claim(world: TableWorld, services: Services) -> None:
    assert services.leases.claim(the_run(world).stream_id, "trainer-a", queue="q", receipt="r") is not None


def _claimed(world: TableWorld) -> None:
    """Its last claim holds, and keeps everybody else away until it has run out."""
    run = the_run(world)
    lease = world.claim(run)
    assert world.services.leases.claim(run.stream_id, "trainer-b") is None
    world.services.leases.extend(lease)
    world.later(LEASE_S + 1)
    world.claim(run, "trainer-b")
    world.later(LEASE_S + 1)


def _completing(result: bytes) -> Act:
    """A private step's end: its result, the fence, and the charge marked as applied."""

    def prepare(world: TableWorld) -> None:
        run = world.run()
        world.submit(run, 1)
        world.lease = world.claim(run)
        _charged(world)

    def do(world: TableWorld, services: Services) -> None:
        """As a trainer that takes the run up again: what has ended is not done again."""
        run, lease = the_run(world), world.lease
        operation = services.outcomes.get(run, 1)
        if lease is None or operation.state.final:
            return
        running = services.outcomes.start(operation, [lease.check])
        ended = Result("application/json", result)
        applied = world.ledger(services).commit_writes(dealt_ref(), 1)
        services.outcomes.complete(run, running, ended, [lease.check, *applied])

    def check(world: TableWorld) -> None:
        run = the_run(world)
        done = world.op(run, 1)
        assert done.state is OpState.COMPLETED
        assert world.services.outcomes.result(run, done).data == result
        assert world.markers() == []
        assert world.orphans() == set()
        _check_ledger(world, "applied")

    return Act(prepare, do, check)


def dealt_ref() -> RunRef:
    return RunRef("acme", "letters", "run-1")


def _reserve(world: TableWorld, services: Services) -> None:
    world.ledger(services).reserve(dealt_ref(), 1, {3, 4}, binding="sum")


def _commit(world: TableWorld, services: Services) -> None:
    world.ledger(services).commit(dealt_ref(), 1)


def _charged(world: TableWorld) -> None:
    open_run(world.ledger(world.services))
    _reserve(world, world.services)


def _check_ledger(world: TableWorld, state: str) -> None:
    """One step, charged once; the rows say what the head says."""
    ledger = world.ledger(world.services)
    statement = ledger.show("acme", "letters")
    assert statement.steps == 1
    assert replay(world.items, world.services.vault, "acme", "letters") == statement
    row = world.items.get(dealt_ref().row_item(1))
    assert row is not None
    assert row.body["state"] == state
    assert ledger.reserve(dealt_ref(), 1, {3, 4}, binding="sum").epsilon == statement.epsilon


def _opened(world: TableWorld) -> None:
    statement = world.ledger(world.services).show("acme", "letters")
    assert [run.run_id for run in statement.runs] == ["run-1"]
    _reserve(world, world.services)
    _check_ledger(world, "reserved")


def dealt_ledger(world: TableWorld, services: Services) -> DealtLedger:
    return DealtLedger(world.items, services.vault, world.signer, world.anchors, clock_ms=world.clock_ms)


def _registered(world: TableWorld) -> None:
    domains = Domains(world.items, world.services.vault)
    domains.create("acme", "letters", DomainTerms(unit="record", delta=1e-5, max_epsilon=8.0))
    domains.add_units("acme", "letters", 0, b"".join(n.to_bytes(8, "big") + bytes(32) for n in range(50)))
    domains.finish("acme", "letters")


def _open_dealt(world: TableWorld, services: Services) -> None:
    config = dealt(domain="letters")
    key = noise_key_id(bytes(range(32)))
    dealt_ledger(world, services).open_run(
        dealt_ref(), config, noise_key_id=key, deal_seed=bytes(range(32, 64))
    )


def _dealt_to(deals: int) -> Callable[[TableWorld], None]:
    """So many deals, each charged once; the rows say what the head says."""

    def check(world: TableWorld) -> None:
        statement = world.ledger(world.services).show("acme", "letters")
        assert (statement.steps, statement.runs[0].steps) == (1 + deals, deals)
        assert replay(world.items, world.services.vault, "acme", "letters") == statement

    return check


def dealing(world: TableWorld) -> None:
    _registered(world)
    _open_dealt(world, world.services)


def _create(world: TableWorld, services: Services) -> None:
    record, creation = services.streams.creation(RUN, "acme", StreamKind.RUN, BASE)
    services.submissions.create(record, creation, Submission(0, OpKind.CREATE, LARGE))


def _created(world: TableWorld) -> None:
    run = the_run(world)
    assert [op.state for op in world.log(run)] == [OpState.PENDING]
    assert world.services.outcomes.payload(run, 0) == LARGE
    assert [one.stream_id for one in world.services.streams.list_runs("acme")] == [run.stream_id]
    assert len(world.markers()) == 1
    assert world.orphans() == set()


def _waiting(world: TableWorld) -> None:
    world.submit(world.run(), 1, LARGE)


def _cancelled(world: TableWorld) -> None:
    run = the_run(world)
    assert world.op(run, 1).state is OpState.CANCELLED
    assert world.markers() == []
    assert world.orphans() == set()


def _held(world: TableWorld) -> None:
    world.lease = world.claim(world.run())


def _release(world: TableWorld, services: Services) -> None:
    """A lease that is gone by now was given up: the answer was lost."""
    assert world.lease is not None
    with suppress(LeaseLost):
        services.leases.release(world.lease)


def _released(world: TableWorld) -> None:
    assert not world.services.leases.held(the_run(world).stream_id, margin_s=0)
    world.claim(the_run(world), "trainer-b")
    world.later(LEASE_S + 1)


def _worked(world: TableWorld) -> None:
    run = world.run()
    world.complete(run, world.submit(run, 1, LARGE), LARGE)
    world.checkpoint(run, "kept", data=LARGE)


def _erased(world: TableWorld) -> None:
    run = the_run(world)
    assert run.state is StreamState.ERASED
    assert world.items.get(run.scope.key_item) is None
    assert world.blob_keys() == set()
    assert world.services.streams.list_runs("acme") == []


def _poisoned(world: TableWorld) -> None:
    run = world.run()
    operation = world.submit(run, 1)
    world.submit(run, 2)
    for _ in range(3):
        operation = world.services.outcomes.start(operation, ())


def _settle(world: TableWorld, services: Services) -> None:
    services.dead_letters.settle_message({"stream": the_run(world).stream_id})


def _buried(world: TableWorld) -> None:
    run = the_run(world)
    assert run.state is StreamState.BLOCKED
    assert [op.state for op in world.log(run)] == [OpState.COMPLETED, OpState.FAILED, OpState.FAILED]
    assert [letter.seq for letter in world.services.dead_letters.list()] == [1]
    assert world.markers() == []


def _units(world: TableWorld) -> None:
    domains = Domains(world.items, world.services.vault)
    domains.create("acme", "letters", DomainTerms(unit="record", delta=1e-5, max_epsilon=8.0))
    domains.add_units("acme", "letters", 0, b"".join(n.to_bytes(8, "big") + bytes(32) for n in range(50)))


def _finished(world: TableWorld) -> None:
    domains = Domains(world.items, world.services.vault)
    domain = domains.get("acme", "letters")
    assert (domain.state, domain.units, domain.pages) == ("open", 50, 1)
    assert domains.manifest(domain).units == 50


ACTS: Final = {
    "create": Act(lambda _: None, _create, _created),
    "cancel": Act(
        _waiting, lambda world, services: services.submissions.cancel(the_run(world), 1), _cancelled
    ),
    "release": Act(_held, _release, _released),
    "erase": Act(
        _worked, lambda world, services: services.streams.erase(the_run(world).stream_id, "acme"), _erased
    ),
    "bury": Act(_poisoned, _settle, _buried),
    "finish-a-domain": Act(
        _units,
        lambda world, services: Domains(world.items, services.vault).finish("acme", "letters"),
        _finished,
    ),
    "submit": _submitting(b"{}"),
    "submit-a-blob": _submitting(LARGE),
    "claim": Act(lambda world: world.run(), _claim, _claimed),
    "complete": _completing(b"{}"),
    "complete-with-a-blob": _completing(LARGE),
    "open": Act(lambda _: None, lambda world, services: open_run(world.ledger(services)), _opened),
    "reserve": Act(
        lambda world: open_run(world.ledger(world.services)),
        _reserve,
        lambda world: _check_ledger(world, "reserved"),
    ),
    "open-dealt": Act(_registered, _open_dealt, _dealt_to(0)),
    "deal": Act(
        dealing, lambda world, services: dealt_ledger(world, services).deal(dealt_ref(), 0), _dealt_to(1)
    ),
    "commit": Act(_charged, _commit, lambda world: _check_ledger(world, "applied")),
}
