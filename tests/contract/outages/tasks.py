"""Transactions of the trainer, of the adapter holder, and of those who own a privacy domain."""

from __future__ import annotations

from typing import Any, Final, cast

import pytest
import torch

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import Conflict, Gone, InvalidRequest
from tensafe.contracts.training import LoraSpec
from tensafe.operations import layout
from tensafe.privacy.domains import Domains
from tensafe.privacy.replay import replay
from tensafe.services import Services
from tensafe.storage.ports import Message
from tensafe.vault.scope import Scope
from tensafe_gpu.adapter_holder.store import AdapterStore, HolderPorts
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.accepted_records import Offer, Range, spent_tokens
from tensafe_gpu.helora.ports import HeUnavailable
from tensafe_gpu.trainer.hot_run import HotRun
from tensafe_gpu.trainer.layout import Layout, Site
from tensafe_gpu.trainer.private_steps import PrivateSteps
from tensafe_gpu.trainer.snapshots import Snapshots
from tensafe_gpu.trainer.state import RunState
from tests.contract.outages.operations import dealing, dealt_ledger, dealt_ref
from tests.contract.outages.world import RUN, Act, TableWorld, the_run
from tests.support.helora import peft_files, policy
from tests.support.training_log import snapshot_of
from tests.unit.operations.world import TENANT

TERMS: Final = DomainTerms(unit="record", delta=1e-5, max_epsilon=8.0)
NAME: Final = "letters"
ENTRY_BYTES: Final = 40


class OneSite:
    """Of a base model, what a run's numbers must know."""

    device, dtype = torch.device("cpu"), torch.float32

    def layout(self, spec: LoraSpec) -> Layout:
        return Layout((Site("lm_head", 2, 2),), spec.rank)


# The trainer


def _hot(world: TableWorld, services: Services) -> HotRun:
    """The run in a trainer's memory, one operation after its last snapshot."""
    assert world.lease is not None
    base, spec = OneSite(), LoraSpec(rank=1, seed=0)
    state = RunState(spec, base, torch.arange(float(base.layout(spec).numel)))
    run = HotRun(the_run(world), world.lease, Message("q", {}, "r", 1), next_seq=2, state=state)
    item = services.ports.items.get(layout.stream_item(RUN, "snapshot"))
    run.snapshot_seq = -1 if item is None else int(str(item.body["seq"]))
    return run


def _with_snapshot(world: TableWorld) -> None:
    """One of before, and the payload of what has been applied since."""
    run = world.run()
    world.lease = world.claim(run)
    hot = _hot(world, world.services)
    hot.next_seq = 1
    Snapshots(world.services, cast(Any, None)).save(hot)
    world.complete(run, world.submit(run, 1), conditions=[world.lease.check])


def _snapshot(world: TableWorld, services: Services) -> None:
    Snapshots(services, cast(Any, None)).save(_hot(world, services))


def _snapshotted(world: TableWorld) -> None:
    run = _hot(world, world.services)
    assert run.snapshot_seq == 1
    assert run.state is not None
    assert snapshot_of(world.services, RUN) == (run.state.dump(), set())
    Snapshots(world.services, cast(Any, None)).save(_next(run))
    assert world.items.query(layout.stream_partition(RUN), first="pay/", last="pay/~") == []
    assert world.orphans() == set()


def _next(run: HotRun) -> HotRun:
    run.next_seq += 1
    return run


def _draw_secret(world: TableWorld, services: Services) -> None:
    """Whoever asks gets the one secret of the run."""
    steps = PrivateSteps(services, cast(Any, None), world.ledger(services), services.deals)
    secret = steps._noise_secret(the_run(world))
    assert world.notes.setdefault("secret", secret) == secret


def _drawn_secret(world: TableWorld) -> None:
    _draw_secret(world, world.services)


# Privacy domains and deals


def _draw_seed(world: TableWorld, services: Services) -> None:
    seed = services.deals.seed(the_run(world))
    assert world.notes.setdefault("seed", seed) == seed


def _drawn_seed(world: TableWorld) -> None:
    _draw_seed(world, world.services)


def _dealt_once(world: TableWorld) -> None:
    dealing(world)
    dealt_ledger(world, world.services).deal(dealt_ref(), 0)


def _abandon(world: TableWorld, services: Services) -> None:
    dealt_ledger(world, services).abandon(dealt_ref(), 0)


def _abandoned(world: TableWorld) -> None:
    ledger = dealt_ledger(world, world.services)
    deals = ledger.get(dealt_ref()).deals
    assert (deals.dealt, deals.abandoned, deals.open_step) == (1, 1, None)
    statement = world.ledger(world.services).show(TENANT, NAME)
    assert replay(world.items, world.services.vault, TENANT, NAME) == statement
    ledger.deal(dealt_ref(), 1)


def _domains(world: TableWorld, services: Services) -> Domains:
    return Domains(world.items, services.vault, clock_ms=world.clock_ms)


def _register(world: TableWorld, services: Services) -> None:
    domain = _domains(world, services).create(TENANT, NAME, TERMS)
    secret = _domains(world, services).content_key(domain)
    assert world.notes.setdefault("content", secret) == secret


def _registered(world: TableWorld) -> None:
    domains = _domains(world, world.services)
    domain = domains.get(TENANT, NAME)
    assert (domain.state, domain.units, domain.pages) == ("registering", 0, 0)
    assert domains.names(TENANT) == [NAME]
    assert domains.content_key(domain) == world.notes["content"]


def _page(number: int) -> bytes:
    return b"".join(unit.to_bytes(8, "big") + bytes(32) for unit in range(10 * number, 10 * number + 10))


def _two_pages(world: TableWorld) -> None:
    _register(world, world.services)
    for page in (0, 1):
        _domains(world, world.services).add_units(TENANT, NAME, page, _page(page))


def _add_units(world: TableWorld, services: Services) -> None:
    """Another page, and others in the place of one."""
    _domains(world, services).add_units(TENANT, NAME, 2, _page(2))
    _domains(world, services).add_units(TENANT, NAME, 1, _page(1)[: 5 * ENTRY_BYTES])


def _holds(units: int) -> Any:
    """So many units are counted, and so many are there."""

    def check(world: TableWorld) -> None:
        domains = _domains(world, world.services)
        assert domains.get(TENANT, NAME).units == units
        assert domains.manifest(domains.finish(TENANT, NAME)).units == units

    return check


def _open_domain(world: TableWorld) -> None:
    _two_pages(world)
    _domains(world, world.services).finish(TENANT, NAME)


def _closed(world: TableWorld) -> None:
    domain = _domains(world, world.services).get(TENANT, NAME)
    assert (domain.state, domain.units, domain.closed_ms) == ("closed", 20, world.now_ms)
    with pytest.raises(Conflict):
        _domains(world, world.services).finish(TENANT, NAME)


# The adapter holder

SITE: Final = "model.layers.0.self_attn.qkv"
OFFER: Final = Offer("a", 1, 1, "t", 100_000)
FILES: Final = peft_files(8, 2)


def _accept_log(world: TableWorld, services: Services) -> AcceptLog:
    """A process has one, which remembers what it has reserved; `services` stand for the process."""
    logs = world.notes.setdefault("logs", [])
    for owner, log in logs:
        if owner is services:
            return cast(AcceptLog, log)
    logs.append((services, AcceptLog(world.items)))
    return _accept_log(world, services)


def _answer(world: TableWorld, services: Services) -> None:
    """As a sampler that sends a block, asks for some of its products, and asks directly for some more."""
    log = _accept_log(world, services)
    world.notes["blocks"] = world.notes.get("blocks", 0) + 1
    block = world.notes["blocks"].to_bytes(16, "big")
    log.open_block(OFFER, SITE, block)
    log.accept(OFFER, [Range(block, 0, 3)])
    world.notes.setdefault("answered", []).append(block)
    log.meter(OFFER, {SITE: 2})
    world.notes["metered"] = world.notes.get("metered", 0) + 5


def _answered(world: TableWorld) -> None:
    """What was answered is metered, and no process answers an index of it again."""
    assert sum(spent_tokens(world.items, "a", 1, 1)[SITE].values()) >= world.notes["metered"]
    for block in world.notes["answered"]:
        for index in range(3):
            with pytest.raises(HeUnavailable):
                AcceptLog(world.items).accept(OFFER, [Range(block, index, 1)])


def _answered_before(world: TableWorld) -> None:
    _answer(world, world.services)


def _begin_epoch(world: TableWorld, services: Services) -> None:
    _accept_log(world, services).forget_blocks_before("a", 1, 2)


def _begun_epoch(world: TableWorld) -> None:
    assert world.partition(OFFER.of.block(b"\0").partition) == []
    assert sum(spent_tokens(world.items, "a", 1, 1)[SITE].values()) >= world.notes["metered"]


def _store(world: TableWorld) -> AdapterStore:
    return AdapterStore(HolderPorts(world.items, world.blobs, world.keyring))


def _publish(world: TableWorld, services: Services) -> None:
    """As who publishes: what the adapter holder has already is not published again."""
    if not _store(world).versions("a"):
        _store(world).publish("a", FILES, base_model="base", policy=policy())


def _published(epoch: int) -> Any:
    """One version, in this epoch or a later one if an answer was lost; it can be served and rotated."""

    def check(world: TableWorld) -> None:
        (found,) = _store(world).versions("a")
        assert found.epoch >= epoch
        assert _store(world).names() == ["a"]
        assert _store(world).load("a").adapter.info.epoch == found.epoch
        assert _store(world).rotate("a").epoch == found.epoch + 1

    return check


def _published_before(world: TableWorld) -> None:
    _publish(world, world.services)


def _published_twice(world: TableWorld) -> None:
    for _ in range(2):
        _store(world).publish("a", FILES, base_model="base", policy=policy())


def _revoke_newest(world: TableWorld, services: Services) -> None:
    _store(world).revoke("a", 2)


def _revoke(world: TableWorld, services: Services) -> None:
    """As an operator who names no version: there is one."""
    _store(world).revoke("a")


def _all_revoked(world: TableWorld) -> None:
    assert [one.active for one in _store(world).versions("a")] == [False]
    assert world.blob_keys() == set()
    assert world.items.get(Scope("adapter-holder", "private/a/1").key_item) is None


def _newest_revoked(world: TableWorld) -> None:
    """That version and no other: its key and its files have gone."""
    _store(world).publish("a", FILES, base_model="base", policy=policy())
    with pytest.raises(InvalidRequest):  # asked again, it would be the other one's turn
        _store(world).revoke("a")
    _store(world).revoke("a", 3)
    assert [one.active for one in _store(world).versions("a")] == [True, False, False]
    with pytest.raises(Gone):
        _store(world).load("a", 2)
    named = {
        str(item.body[part]) for item in world.partition("adapter/a")[:1] for part in ("source", "served")
    }
    assert world.blob_keys() == named
    assert _store(world).load("a").published.version == 1


ACTS: Final = {
    "snapshot": Act(_with_snapshot, _snapshot, _snapshotted),
    "draw-a-noise-secret": Act(lambda world: world.run(), _draw_secret, _drawn_secret),
    "draw-a-deal-seed": Act(lambda world: world.run(), _draw_seed, _drawn_seed),
    "abandon-a-deal": Act(_dealt_once, _abandon, _abandoned),
    "register-a-domain": Act(lambda _: None, _register, _registered),
    "add-units": Act(_two_pages, _add_units, _holds(25)),
    "remove-units": Act(
        _two_pages,
        lambda world, services: _domains(world, services).remove_units(TENANT, NAME, 1),
        _holds(10),
    ),
    "close-a-domain": Act(
        _open_domain, lambda world, services: _domains(world, services).close(TENANT, NAME), _closed
    ),
    "answer": Act(lambda _: None, _answer, _answered),
    "begin-an-epoch": Act(_answered_before, _begin_epoch, _begun_epoch),
    "publish": Act(lambda _: None, _publish, _published(1)),
    "rotate": Act(_published_before, lambda world, services: _store(world).rotate("a"), _published(2)),
    "revoke": Act(_published_before, _revoke, _all_revoked),
    "revoke-a-version": Act(_published_twice, _revoke_newest, _newest_revoked),
}
