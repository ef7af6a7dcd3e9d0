"""What is secret is found nowhere on the disk and in no log: neither while a run goes on nor afterwards."""

from __future__ import annotations

import json
import logging
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensafe.local.evidence import make_anchors, make_signing_key, open_anchors, open_signer
from tensafe.observability import JsonFormatter
from tensafe.operations.doorbell import queue_specs
from tensafe.operations.records import OpKind, OpState
from tensafe.services import Ports, Services, wire
from tensafe.storage.file_blobs import FileBlobs
from tensafe.storage.keyfile import KeyFileRing, create_key_file
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.storage.sqlite_queues import SqliteQueues
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.worker import WorkerSettings
from tests.fakes import MemoryBell
from tests.support.training_log import (
    Step,
    begin,
    forward_backward,
    optim_step,
    private,
    result_of,
    save,
    submit,
)
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import RUN

TOKENS = [251, 13, 307, 29, 283, 17, 311, 7, 263, 19]
UNIT = 0x7ACEC0DE12345678
NEVER = 10**9


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"\0\1needle\2")
    assert _hits(tmp_path, {"a": b"needle", "b": b"nothing"}) == ["a in deep/file"]


def test_nothing_secret_reaches_the_disk_or_the_log(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_file: Path
) -> None:
    data, temporary = tmp_path / "data", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    services = _open(data)
    settings = WorkerSettings(snapshot_every_operations=3, idle_release_s=NEVER, idle_snapshot_s=NEVER)
    worker = build_worker(services, BASE, base, "trainer-a", settings)
    secrets = _known_before()
    begin(services, RUN, BASE, optimizer=private())
    for seq, step in enumerate(_steps(), 1):
        submit(services, RUN, seq, step)
        assert _hits(tmp_path, secrets) == []
        worker.step()
        secrets |= _known_of(worker, services)
        assert _hits(tmp_path, secrets) == [], seq
    ends = services.outcomes.operations(RUN, limit=100)
    failed = [operation.seq for operation in ends if operation.state is OpState.FAILED]
    assert failed == [2, 3, 4]  # those that are wrong on purpose
    secrets |= _answers(services, 1)
    worker.release_all()
    assert _hits(tmp_path, secrets) == []
    # The same search does find what is not secret, in the same files.
    assert _hits(tmp_path, {"run": RUN.encode()}) != []
    assert "operation completed" in log_file.read_text()
    assert list(temporary.iterdir()) == []
    assert len(secrets) > 15


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Everything that any library logs, as the service would write it."""
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "trainer.log"
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonFormatter("trainer"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield path
    root.removeHandler(handler)
    root.setLevel(level)
    handler.close()


def _open(data: Path) -> Services:
    data.mkdir()
    create_key_file(data / "key.json")
    keyring = KeyFileRing(data / "key.json")
    make_anchors(data, None)
    make_signing_key(data, keyring)
    specs = tuple(queue_specs([BASE]))
    bell = MemoryBell()
    ports = Ports(
        items=SqliteItems(data / "items.db"),
        queues=SqliteQueues(data / "queues.db", specs, bell),
        blobs=FileBlobs(data / "blobs", url_secret=b"u" * 32, base_url="http://127.0.0.1"),
        keyring=keyring,
        bell=bell,
        signer=open_signer(data, keyring),
        anchors=open_anchors(data),
        queue_specs=specs,
    )
    return wire(ports, {})


def _steps() -> list[Step]:
    """Good ones, large ones, and mistakes whose messages might quote what they complain of."""
    tokens = [TOKENS, TOKENS[:7]]
    return [
        forward_backward(tokens=tokens, units=[UNIT, UNIT + 1]),
        forward_backward(tokens=[[*TOKENS, 99999]], units=[UNIT + 2]),
        forward_backward(tokens=tokens, units=[UNIT, UNIT + 3]),  # a unit that returns
        (OpKind.FORWARD_BACKWARD, json.dumps({"data": TOKENS, "unit": UNIT}).encode()),
        optim_step(5e-2),
        forward_backward(tokens=[TOKENS * 6] * 80, forward_only=True),
        save("final"),
        save("final", OpKind.SAVE_SAMPLER),
        save("final", OpKind.SAVE_EXTERNAL),
        forward_backward(tokens=tokens, units=[UNIT + 4, UNIT + 5]),
        optim_step(5e-2),
        save("later"),
    ]


def _known_before() -> dict[str, bytes]:
    """The prompt and the unit in every form in which they travel."""
    row = TOKENS[:5]
    return {
        "prompt int32": np.array(row, "<i4").tobytes(),
        "prompt int64": np.array(row, "<i8").tobytes(),
        "prompt text": ", ".join(map(str, row)).encode(),
        "prompt compact text": ",".join(map(str, row)).encode(),
        "targets text": ", ".join(map(str, TOKENS[1:6])).encode(),
        "unit text": str(UNIT).encode(),
        "unit hex": f"{UNIT:x}".encode(),
        "unit little": struct.pack("<q", UNIT),
        "unit big": struct.pack(">q", UNIT),
    }


def _known_of(worker: Any, services: Services) -> dict[str, bytes]:
    """Secrets that the trainer holds by now: keys, noise secret, adapter, gradient sum, moments."""
    found = {f"data key {scope.name}": key for scope, (_, key) in services.vault._keys.items()}
    for run in worker._hot.all():
        if run.private is not None:
            found["noise secret"] = run.private.noise_secret
        if run.state is None:
            continue
        for name in ("params", "grad_sum", "exp_avg"):
            values = getattr(run.state, name).numpy()
            middle = np.flatnonzero(values)[len(np.flatnonzero(values)) // 2 :][:4]
            if len(middle) == 4 and np.all(np.diff(middle) == 1):
                found[f"{name} at step {run.state.step}"] = values[middle].tobytes()
    return found


def _answers(services: Services, seq: int) -> dict[str, bytes]:
    """Logprobs as they stand in the answer, and as numbers."""
    text = json.dumps(result_of(services, RUN, seq))
    numbers = [
        float(word)
        for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split()
        if _real(word)
    ]
    assert len(numbers) > 4
    return {
        "logprob text": str(numbers[0]).encode(),
        "logprobs float32": np.array(numbers[:4], "<f4").tobytes(),
    }


def _real(word: str) -> bool:
    try:
        return "." in word and float(word) < 0
    except ValueError:
        return False


def _hits(folder: Path, secrets: dict[str, bytes]) -> list[str]:
    """Which secrets stand in which files, write-ahead logs included."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            where = path.relative_to(folder)
            found += [f"{name} in {where}" for name, secret in secrets.items() if secret in content]
    return found
