"""Transactions of the edge: sessions, keys, limits, sampling sessions, artifacts, private adapters."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tensafe.api import answers, sampling
from tensafe.auth.waits import PLACE_S, SharedWaits
from tensafe.contracts.errors import NotFound, QuotaExceeded, TooManyRequests, Unauthenticated
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.payloads import CheckpointRef
from tensafe.contracts.sampling import SampleRequest
from tensafe.contracts.training import ModelInfo
from tensafe.operations import layout
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind, item_key
from tensafe.operations.placements import Placement
from tensafe.operations.records import OpKind, OpState, Result, StreamKind
from tensafe.operations.unclaimed import Announcement
from tensafe.services import Services
from tensafe.vault import sealed_texts
from tensafe.vault.scope import Scope
from tests.contract.outages.world import LARGE, RUN, SAMPLER, Act, TableWorld, the_run
from tests.unit.operations.world import BASE, TENANT

MODEL: Final = ModelInfo(name=BASE, path="/x", arch="LlamaForCausalLM", vocab_size=256, max_context_tokens=64)
DAY_S: Final = 86_400
RUNS: Final = 3
WAITS: Final = 5


def _begin_session(world: TableWorld, services: Services) -> None:
    world.notes["session"] = services.sessions.create(TENANT, {"sdk": "1"}).session_id


def _begun_session(world: TableWorld) -> None:
    """The client's, and perhaps one of whose id it was never told: each is listed, and ends by itself."""
    sessions = {one.session_id for one in world.services.sessions.list(TENANT)}
    assert world.notes["session"] in sessions
    assert {str(item.body["session"]) for item in world.due()} == sessions


def _with_session(world: TableWorld) -> None:
    _begin_session(world, world.services)
    world.later(2 * DAY_S)


def _see(world: TableWorld, services: Services) -> None:
    services.sessions.get(world.notes["session"], TENANT)


def _seen(world: TableWorld) -> None:
    (session,) = world.services.sessions.list(TENANT)
    assert session.body["seen_ms"] == world.now_ms
    assert session.body["sdk"] == "1"


def _finish(world: TableWorld, services: Services) -> None:
    services.sessions.finish(world.notes["session"], TENANT)


def _finished(world: TableWorld) -> None:
    (session,) = world.services.sessions.list(TENANT)
    assert session.body["finished_ms"] == world.now_ms
    assert session.body["sdk"] == "1"


def _create_key(world: TableWorld, services: Services) -> None:
    world.notes["key"], world.notes["record"] = services.api_keys.create(TENANT, ["train"])


def _created_key(world: TableWorld) -> None:
    """Whatever is listed can be revoked, also one that nobody was ever told."""
    assert world.services.api_keys.authenticate(world.notes["key"]).tenant == TENANT
    keys = world.services.api_keys
    records = {item.key.partition for item in world.everything() if item.key.partition.startswith("apikey/")}
    assert records == {f"apikey/{one.key_id}" for one in keys.list()}
    for one in keys.list():
        keys.revoke(one.key_id)
    assert all(one.revoked_s is not None for one in world.open().api_keys.list(TENANT))


def _revoke_key(world: TableWorld, services: Services) -> None:
    services.api_keys.revoke(world.notes["record"].key_id)


def _revoked_key(world: TableWorld) -> None:
    with pytest.raises(Unauthenticated):
        world.services.api_keys.authenticate(world.notes["key"])
    (listed,) = world.services.api_keys.list(TENANT)
    assert listed == replace(world.notes["record"], revoked_s=world.now_ms // 1000)


def _limit(world: TableWorld, services: Services) -> None:
    services.quotas.limits.change(TENANT, {"sessions": 7})
    services.quotas.limits.change(TENANT, {"runs": RUNS})


def _limited(world: TableWorld) -> None:
    limits = world.services.quotas.limits.stored(TENANT)
    assert (limits.sessions, limits.runs) == (7, RUNS)


def _limited_before(world: TableWorld) -> None:
    _limit(world, world.services)


def _unlimited(world: TableWorld) -> None:
    limits = world.services.quotas.limits.stored(TENANT)
    assert limits == type(limits)()


def _admit(world: TableWorld, services: Services) -> None:
    services.quotas.admit_operation(TENANT, 100)
    services.quotas.admit_run(TENANT)


def _admitted(world: TableWorld) -> None:
    """A share whose answer was lost was taken: never more than the limit, and no less for long."""
    world.later(20)
    _, writes = world.services.streams.creation(RUN, TENANT, StreamKind.RUN, BASE)
    world.items.write(writes)
    for _ in range(RUNS - 1):
        world.open().quotas.admit_run(TENANT)
    with pytest.raises(QuotaExceeded):
        world.open().quotas.admit_run(TENANT)


def _wait(world: TableWorld, services: Services) -> None:
    SharedWaits(services.ports.items, WAITS, clock_ms=world.clock_ms).begin(TENANT)


def _waits(world: TableWorld) -> None:
    """A place whose answer was lost was taken, and is free again when its time is over."""
    world.later(int(PLACE_S))
    waits = SharedWaits(world.items, WAITS, clock_ms=world.clock_ms)
    for _ in range(WAITS):
        waits.begin(TENANT)
    with pytest.raises(TooManyRequests):
        waits.begin(TENANT)


def _with_model(services: Services) -> Services:
    return replace(services, models={BASE: MODEL})


def _with_weights(world: TableWorld) -> None:
    world.checkpoint(world.run(), "w", kind=CheckpointKind.SAMPLER, data=LARGE)


def _open_sampler(world: TableWorld, services: Services) -> None:
    weights = CheckpointRef(run_id=RUN, kind="sampler_weights", name="w")
    sampling.open_sampler(
        _with_model(services), TENANT, SAMPLER, base_model=None, weights=weights, session_id=None
    )


def _opened_sampler(world: TableWorld) -> None:
    sampler = world.stream(SAMPLER)
    assert sampler.spec["model_path"] == f"tinker://{RUN}/sampler_weights/w"
    assert world.items.get(layout.sampler_of_run(RUN, SAMPLER)) is not None
    assert [str(item.body["sampler"]) for item in world.due() if "sampler" in item.body] == [SAMPLER]
    world.submit(sampler, 1)


def _sample_present(world: TableWorld, services: Services) -> None:
    request = SampleRequest(prompt=(1, 2))
    future = sampling.sample_present_weights(_with_model(services), the_run(world), request, "k")
    world.notes["sampler"] = future.stream.stream_id


def _sampled_present(world: TableWorld) -> None:
    run, sampler = the_run(world), world.stream(world.notes["sampler"])
    assert [op.kind for op in world.log(run)] == [OpKind.NOOP, OpKind.SAVE_SAMPLER]
    assert [(op.seq, op.kind) for op in world.log(sampler)] == [(1, OpKind.SAMPLE)]
    assert (sampler.spec["after_run"], sampler.spec["after_seq"]) == (RUN, 1)
    assert len(world.markers()) == 2


def _clone(world: TableWorld, services: Services) -> None:
    number = sampling.next_clone(services, world.stream(SAMPLER))
    assert number not in world.notes.setdefault("clones", set())
    world.notes["clones"].add(number)


def _cloned(world: TableWorld) -> None:
    assert 0 not in world.notes["clones"]
    assert sampling.next_clone(world.services, world.stream(SAMPLER)) == max(world.notes["clones"]) + 1


def _leave(world: TableWorld, services: Services) -> None:
    context: Any = SimpleNamespace(services=services)
    world.notes["url"] = answers._leave(context, LARGE, "application/json")


def _left(world: TableWorld) -> None:
    noted = {str(item.body["blob"]) for item in world.due()}
    assert world.blob_keys() <= noted
    assert any(key in world.notes["url"] for key in world.blob_keys())


def _saving(world: TableWorld) -> None:
    run = world.run()
    world.checkpoint(run, "final", data=LARGE)
    world.submit(run, 1)
    world.lease = world.claim(run)


def _save(world: TableWorld, services: Services) -> None:
    """As a trainer that takes the run up again: over an artifact of the same name."""
    run, operation = the_run(world), services.outcomes.get(the_run(world), 1)
    assert world.lease is not None
    if operation.state.final:
        return
    running = services.outcomes.start(operation, [world.lease.check])
    kind = CheckpointKind.TRAINING
    announce = Announcement(services.ports.items, item_key(RUN, kind, "final"), world.clock_ms)
    ref = services.artifacts.write(run.scope, f"ckpt/{kind.value}/final", b"new", announce=announce)
    number = world.notes["saved"] = world.notes.get("saved", 0) + 1
    saved = Checkpoint(RUN, TENANT, kind, "final", BASE, world.now_ms, ref, f"art-new-{number}")
    writes = services.checkpoints.saving(saved, overwrite=True)
    conditions = [world.lease.check, *writes, *announce.claiming]
    services.outcomes.complete(run, running, Result("application/json", b"{}"), conditions)


def _saved(world: TableWorld) -> None:
    run = the_run(world)
    assert world.op(run, 1).state is OpState.COMPLETED
    (found,) = world.services.checkpoints.of_tenant(TENANT)
    assert world.services.checkpoints.read(run, found) == b"new"
    assert world.services.checkpoints.by_artifact(found.artifact_id, TENANT) == found
    world.later(2 * DAY_S)
    world.services.retention.purge()
    assert world.blob_keys() == {found.ref.blob_key}


def _kept(world: TableWorld) -> None:
    world.checkpoint(world.run(), "kept", ttl_s=3600)


def _expire(world: TableWorld, services: Services) -> None:
    found = services.checkpoints.find(RUN, CheckpointKind.TRAINING, "kept", TENANT)
    services.checkpoints.set_ttl(found, 60)


def _will_expire(world: TableWorld) -> None:
    assert [item.body["artifact_id"] for item in world.due() if "artifact_id" in item.body] == ["art-0"]
    world.later(61)
    world.services.retention.purge()
    world.services.retention.purge()
    _deleted(world)


def _delete(world: TableWorld, services: Services) -> None:
    with suppress(NotFound):  # it is gone: the answer was lost
        services.checkpoints.delete(services.checkpoints.find(RUN, CheckpointKind.TRAINING, "kept", TENANT))


def _deleted(world: TableWorld) -> None:
    world.services.retention.purge()
    run = the_run(world)
    assert world.blob_keys() == set()
    assert world.services.checkpoints.of_tenant(TENANT) == []
    assert world.items.get(layout.artifact_item("art-0")) is None
    assert not [sort for sort in world.stored(run) if sort.startswith("ckpt/")]


PLACEMENT: Final = Placement(
    run_id=RUN,
    name="w",
    tenant=TENANT,
    base_model=BASE,
    policy=ExecutionPolicy.HE_REQUIRED,
    address="unix:/s",
    adapter="art-0",
    version=1,
    holder_tenant="t",
    created_ms=0,
    epoch=1,
    digest="a1",
)


def _placed(world: TableWorld) -> None:
    (found,) = world.services.placements.of_tenant(TENANT)
    assert found == replace(PLACEMENT, created_ms=world.now_ms)
    assert world.services.placements.holds("art-0", "1")


def _renew(world: TableWorld, services: Services) -> None:
    services.placements.renew(replace(PLACEMENT, created_ms=world.now_ms), epoch=2, digest="a2")


def _renewed(world: TableWorld) -> None:
    found = world.services.placements.find(RUN, "w")
    assert found == replace(PLACEMENT, created_ms=world.now_ms, epoch=2, digest="a2")
    assert world.services.placements.of_tenant(TENANT) == [found]


def _not_placed(world: TableWorld) -> None:
    assert world.services.placements.of_tenant(TENANT) == []
    assert not world.services.placements.holds("art-0", "1")
    assert world.services.placements.peek(RUN, "w") is None


def _place_and_keep(world: TableWorld, services: Services) -> None:
    run = the_run(world)
    services.placements.add(PLACEMENT, services.keeping.writing(run, "w", "a1", b"clear"))


def _placed_and_kept(world: TableWorld) -> None:
    """Both or neither; what an attempt that was lost had sealed goes by itself."""
    _placed(world)
    found = world.services.keeping.peek(RUN, "w")
    assert found is not None
    assert world.services.keeping.read(the_run(world), found) == b"clear"
    world.later(2 * DAY_S)
    world.services.retention.purge()
    assert world.blob_keys() == {found.ref.blob_key}


def _with_kept(world: TableWorld) -> None:
    world.run()
    _place_and_keep(world, world.services)


def _not_kept(world: TableWorld) -> None:
    assert world.services.keeping.peek(RUN, "w") is None
    world.services.retention.purge()
    assert world.blob_keys() == set()


CERTIFICATE: Final = Scope(TENANT, "certificates/front")


def _keep(world: TableWorld, services: Services) -> None:
    sealed_texts.keep(world.items, services.vault, CERTIFICATE, {"cert": "c"})


def _is_kept(world: TableWorld) -> None:
    assert sealed_texts.kept(world.items, world.services.vault, CERTIFICATE) == {"cert": "c"}


ACTS: Final = {
    "begin-a-session": Act(lambda _: None, _begin_session, _begun_session),
    "see-a-session": Act(_with_session, _see, _seen),
    "finish-a-session": Act(_with_session, _finish, _finished),
    "create-a-key": Act(lambda _: None, _create_key, _created_key),
    "revoke-a-key": Act(lambda world: _create_key(world, world.services), _revoke_key, _revoked_key),
    "limit-a-tenant": Act(lambda _: None, _limit, _limited),
    "unlimit-a-tenant": Act(
        _limited_before, lambda world, services: services.quotas.limits.reset(TENANT), _unlimited
    ),
    "admit": Act(_limited_before, _admit, _admitted),
    "wait": Act(lambda _: None, _wait, _waits),
    "open-a-sampler": Act(_with_weights, _open_sampler, _opened_sampler),
    "sample-present-weights": Act(lambda world: world.run(), _sample_present, _sampled_present),
    "clone-a-sampler": Act(lambda world: world.sampler(), _clone, _cloned),
    "leave-an-answer": Act(lambda _: None, _leave, _left),
    "save": Act(_saving, _save, _saved),
    "expire-an-artifact": Act(_kept, _expire, _will_expire),
    "delete-an-artifact": Act(_kept, _delete, _deleted),
    "place": Act(lambda _: None, lambda world, services: services.placements.add(PLACEMENT), _placed),
    "renew-a-placement": Act(lambda world: world.services.placements.add(PLACEMENT), _renew, _renewed),
    "place-and-keep": Act(lambda world: world.run(), _place_and_keep, _placed_and_kept),
    "keep-no-more": Act(_with_kept, lambda world, services: services.keeping.delete(RUN, "w"), _not_kept),
    "unplace": Act(
        lambda world: world.services.placements.add(PLACEMENT),
        lambda world, services: services.placements.remove(PLACEMENT),
        _not_placed,
    ),
    "keep-a-certificate": Act(lambda _: None, _keep, _is_kept),
}
