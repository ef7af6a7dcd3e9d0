"""A data directory, the operations that are sent to it, and what they must lead to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensafe.contracts.training import ModelInfo
from tensafe.local.composition import open_services
from tensafe.local.settings import LocalSettings
from tensafe.operations import layout
from tensafe.operations.records import OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRecord, RunRef
from tensafe.privacy.replay import replay
from tensafe.services import Ports, Services, wire
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.storage.sqlite_queues import SqliteQueues
from tensafe.storage.unix_bell import UnixBell
from tests.support.training_log import (
    Step,
    begin,
    create,
    forward_backward,
    optim_step,
    private,
    result_of,
    save,
    snapshot_of,
    submit,
)

BASE = "acme/tiny"
PRIVATE, PLAIN, LATE, CORRELATED = (f"s-1:train:{number}" for number in range(4))
"""A private run that exists, a plain one, and a private one of another domain; the latter two are created.
The fourth exists too, and its noise is correlated over its steps."""
DOMAINS = {PRIVATE: "letters", LATE: "notes", CORRELATED: "diaries"}
BISR = {"noise": "bisr", "bisr_bandwidth": 2, "max_steps": 4, "max_participations": 2, "min_separation": 2}
OPTIMIZERS = {
    PRIVATE: private(),
    LATE: private(domain=DOMAINS[LATE]),
    CORRELATED: private(domain=DOMAINS[CORRELATED], **BISR),
}
LARGE = [[number % 300 for number in range(60)]] * 90
"""A payload and a result over 64 KB: both become blobs."""

LOGS: dict[str, list[Step]] = {
    PRIVATE: [
        create(optimizer=OPTIMIZERS[PRIVATE]),
        forward_backward(1, units=[1, 2, 2]),
        forward_backward(2, units=[3]),
        optim_step(),
        forward_backward(3, units=[4, 5]),
        optim_step(),
        save("middle"),
        forward_backward(4, units=[6]),
        optim_step(),
        save("final", OpKind.SAVE_SAMPLER),
    ],
    PLAIN: [
        create(),
        forward_backward(1),
        optim_step(),
        forward_backward(tokens=LARGE, forward_only=True),
        save("final"),
        forward_backward(2),
    ],
    LATE: [
        create(optimizer=OPTIMIZERS[LATE]),
        forward_backward(1, units=[1]),
        optim_step(),
    ],
    CORRELATED: [
        create(optimizer=OPTIMIZERS[CORRELATED]),
        forward_backward(1, units=[1]),
        optim_step(),
        optim_step(),
        forward_backward(2, units=[1, 2]),
        optim_step(),
    ],
}


def settings(folder: Path) -> LocalSettings:
    info = ModelInfo(name=BASE, path="/none", arch="Llama", vocab_size=320, max_context_tokens=64)
    return LocalSettings(data_dir=folder, models=(info,), lease_s=30.0)


def open_folder(folder: Path) -> Services:
    """As every process of the single-machine mode opens it."""
    return open_services(settings(folder))


def rewired(services: Services, ports: Ports) -> Services:
    """The same rooms over other ports."""
    return wire(ports, services.models, lease_s=30.0)


def submit_one(services: Services, run_id: str, seq: int) -> None:
    """Submit one operation of the run's log; what is there already is found."""
    if seq > 0:
        submit(services, run_id, seq, LOGS[run_id][seq])
        return
    given = {"optimizer": OPTIMIZERS[run_id]} if run_id in OPTIMIZERS else {}
    begin(services, run_id, BASE, LOGS[run_id][0], **given)


def submit_all(services: Services) -> Iterator[tuple[str, int]]:
    """Submit every operation of every run, one after the other."""
    for run_id, steps in LOGS.items():
        for seq in range(len(steps)):
            submit_one(services, run_id, seq)
            yield run_id, seq


def look_again(services: Services) -> None:
    """One more operation that changes nothing, so that the last trainer holds every run in the end."""
    for run_id in LOGS:
        stream = services.streams.get(run_id, "acme")
        services.submissions.append(stream, Submission(0, OpKind.NOOP, b"{}", idempotency_key=run_id))


def all_ended(services: Services) -> bool:
    return all(services.outcomes.first_open(run_id) is None for run_id in LOGS)


@dataclass(frozen=True)
class Outcome:
    """What must be the same whenever and however often processes were killed."""

    states: dict[str, list[str]]
    results: dict[str, list[Any]]
    numbers: dict[str, tuple[bytes, set[int]]]
    epsilons: dict[str, float]
    charges: dict[str, int]
    checkpoints: set[str]


def outcome(services: Services) -> Outcome:
    """Read everything back after `look_again`, and hold the ledger to its rows."""
    items, vault = services.ports.items, services.vault
    logs = {run_id: services.outcomes.operations(run_id, limit=1000) for run_id in LOGS}
    for run_id, steps in LOGS.items():
        assert items.query(layout.stream_partition(run_id), first="pay/", last="pay/~") == []
        assert [op.seq for op in logs[run_id]] == list(range(len(steps) + 1))
        assert all(op.state is OpState.COMPLETED for op in logs[run_id]), [op.failure for op in logs[run_id]]
    ledgers = {run_id: replay(items, vault, "acme", domain) for run_id, domain in DOMAINS.items()}
    for run_id, domain in DOMAINS.items():
        assert ledgers[run_id] == Ledger(items, vault, services.ports.signer, services.ports.anchors).show(
            "acme", domain
        )
        _check_secret(services, run_id, domain)
    return Outcome(
        states={run_id: [op.state.value for op in log] for run_id, log in logs.items()},
        results={
            run_id: [_without_ids(result_of(services, run_id, op.seq)) for op in logs[run_id]]
            for run_id in (PRIVATE, PLAIN, CORRELATED)
        },
        numbers={run_id: snapshot_of(services, run_id) for run_id in (PRIVATE, PLAIN, CORRELATED)},
        epsilons={run_id: ledger.epsilon for run_id, ledger in ledgers.items()},
        charges={run_id: ledger.steps for run_id, ledger in ledgers.items()},
        checkpoints={one.path for run_id in LOGS for one in services.checkpoints.of_run(run_id)},
    )


def _check_secret(services: Services, run_id: str, domain: str) -> None:
    """The noise secret that rests with the run is the one that the ledger has been told of."""
    stream = services.streams.find(run_id)
    item = services.ports.items.get(layout.stream_item(run_id, "noise"))
    record = services.ports.items.get(RunRef("acme", domain, run_id).run_item)
    assert stream is not None
    assert item is not None
    assert record is not None
    secret = services.vault.open(stream.scope, "noise", item.sealed)
    assert noise_key_id(secret) == RunRecord.from_item(record).noise_key_id


def _without_ids(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "artifact_id"}


def unnamed_blobs(services: Services, folder: Path) -> int:
    """Blobs that no record names and no note would find, and that would so stay for ever."""
    partitions = [*(layout.stream_partition(run_id) for run_id in LOGS), *layout.due_shards()]
    named = {
        str(item.body["blob"])
        for partition in partitions
        for item in services.ports.items.query(partition, limit=10_000)
        if item.body.get("blob")
    }
    present = sum(1 for _ in (folder / "blobs").glob("??/*"))
    return present - sum(services.ports.blobs.head(key) is not None for key in named)


def copied(source: Path, target: Path) -> Path:
    """A data directory as it was left; nobody has it open."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.bell"))
    return target


def close(services: Services) -> None:
    """Close what `open_folder` opened."""
    for port in (services.ports.bell, services.ports.queues, services.ports.items):
        if isinstance(port, UnixBell | SqliteQueues | SqliteItems):
            port.close()
