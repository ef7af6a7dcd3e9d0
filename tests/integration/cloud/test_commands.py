"""The commands of the runbooks on a deployment of AWS: DynamoDB, SQS, S3 and KMS of a moto process.

What they print is compared with what the services say; what they change, with what the API then sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tensafe.cli.app import app
from tensafe.contracts.errors import Unauthenticated
from tensafe.operations.doorbell import train_queue
from tensafe.operations.records import OpKind, OpState, StreamKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.services import Services
from tests.support.aws_stack import Stack
from tests.support.cloud import MODEL

BASE = str(MODEL["name"])
RUN = "s-1:train:0"


@pytest.fixture(scope="module")
def run(services: Services) -> StreamRecord:
    """A run of tenant acme whose first operation is a dead letter."""
    services.api_keys.create("acme", ["train"])
    record, creation = services.streams.creation(
        RUN, "acme", StreamKind.RUN, BASE, spec={"lora": {"rank": 4}}
    )
    services.submissions.create(record, creation, Submission(0, OpKind.CREATE, b"{}"))
    services.dead_letters.bury(record, services.outcomes.get(record, 0), "3 tries failed: OutOfMemoryError")
    return record


@pytest.fixture
def tensafe(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`tensafe("keys", "list")`: the JSON that it prints; with `fails=CODE` its standard error."""
    monkeypatch.delenv("TENSAFE_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a data directory would be looked for
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str, fails: int = 0, as_json: bool = True) -> Any:
        result = CliRunner().invoke(app, [*arguments, *(["--json"] if as_json else [])])
        assert result.exit_code == fails, (result.stdout, result.stderr)
        if fails:
            return result.stderr
        return json.loads(result.stdout) if as_json else result.stdout

    return command


def test_keys_are_made_listed_and_revoked(tensafe: Callable[..., Any], services: Services) -> None:
    made = tensafe("keys", "create", "--tenant", "globex", "--scope", "train,sample")
    assert services.api_keys.authenticate(made["key"]).tenant == "globex"
    (listed,) = tensafe("keys", "list", "--tenant", "globex")
    assert (listed["key_id"], listed["usable"]) == (made["key_id"], True)
    assert tensafe("keys", "revoke", made["key_id"])["usable"] is False
    services.api_keys._cache.clear()  # half a second, in which a found key is remembered
    with pytest.raises(Unauthenticated):
        services.api_keys.authenticate(made["key"])


def test_a_dead_letter_is_found_and_redriven(
    tensafe: Callable[..., Any], services: Services, run: StreamRecord
) -> None:
    (letter,) = tensafe("dead-letters", "list")
    assert letter["cause"] == "3 tries failed: OutOfMemoryError"
    assert tensafe("dead-letters", "show", letter["id"])["run"] == RUN
    assert tensafe("ops", "show", RUN, "0")["state"] == "failed"
    assert tensafe("runs", "show", RUN)["state"] == "blocked"
    assert tensafe("dead-letters", "redrive", letter["id"])["redriven"] is True
    assert services.outcomes.get(run, 0).state is OpState.PENDING
    assert tensafe("dead-letters", "list") == []
    queue = train_queue(BASE)
    messages = services.ports.queues.receive(queue, visibility_s=60, max_messages=10, wait_s=1)
    assert {"stream": RUN} in [message.body for message in messages]


def test_runs_and_operations_are_listed_and_cancelled(
    tensafe: Callable[..., Any], services: Services, run: StreamRecord
) -> None:
    assert [one["run"] for one in tensafe("runs", "list", "--limit", "20")] == [RUN]
    services.submissions.submit(run, Submission(1, OpKind.NOOP, b"{}"))
    assert tensafe("ops", "cancel", RUN, "1")["state"] == "cancelled"
    assert [one["seq"] for one in tensafe("ops", "list", RUN)] == [1, 0]


def test_what_a_domain_has_spent_and_its_proof(
    tensafe: Callable[..., Any], services: Services, run: StreamRecord, tmp_path: Path
) -> None:
    mechanism = Mechanism(
        clip_norm=1.0, noise_multiplier=2.0, batch_size=8, max_participations=3, delta=1e-5, domain="letters"
    )
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    ledger.reserve(ledger.open_run("acme", run.stream_id, mechanism, noise_key_id="noise-1"), 1, [42])
    shown = tensafe("privacy", "show", "letters", "--tenant", "acme")
    assert (shown["steps"], shown["epsilon"] > 0) == (1, True)
    (row,) = tensafe("privacy", "ledger", "letters", "--tenant", "acme")
    assert row["run_id"] == RUN
    signer = tensafe("privacy", "public-key")
    assert (signer["key_id"], signer["public_key"]) == (ports.signer.key_id, ports.signer.public_key)
    proof, pem = tmp_path / "ledger.jsonl", tmp_path / "key.pem"
    tensafe("privacy", "export", "letters", "--tenant", "acme", "--output", str(proof))
    pem.write_text(tensafe("privacy", "public-key", as_json=False))
    assert tensafe("privacy", "verify", str(proof), "--public-key", str(pem))["valid"] is True


def test_a_run_is_erased(tensafe: Callable[..., Any], services: Services) -> None:
    record, creation = services.streams.creation("s-2:train:0", "acme", StreamKind.RUN, BASE, spec={})
    services.submissions.create(record, creation, Submission(0, OpKind.CREATE, b"{}"))
    assert tensafe("runs", "erase", "s-2:train:0", "--yes")["state"] == "erased"
    assert services.ports.items.get(record.scope.key_item) is None


class TestWhichStore:
    def test_a_directory_that_is_named_wins(self, tensafe: Callable[..., Any], tmp_path: Path) -> None:
        said = tensafe("keys", "list", "--data-dir", str(tmp_path / "none"), fails=1)
        assert "is not a TenSafe data directory" in said

    def test_two_stores_are_refused(
        self, tensafe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TENSAFE_DATA_DIR", "/data")
        assert "both set" in tensafe("keys", "list", fails=1)

    def test_a_key_file_is_refused(self, tensafe: Callable[..., Any]) -> None:
        assert "no key file" in tensafe("keys", "list", "--key-file", "/key.json", fails=1)

    def test_what_is_missing_is_named(
        self, tensafe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TENSAFE_KMS_KEY_ID")
        assert "not set: TENSAFE_KMS_KEY_ID" in tensafe("keys", "list", fails=1)

    def test_what_looks_at_one_machine_is_refused(self, tensafe: Callable[..., Any]) -> None:
        assert "/readyz" in tensafe("status", fails=1)
