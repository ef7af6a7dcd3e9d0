"""Every command over a real data directory: what it prints, what it changes, what it never shows."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

import tensafe as package
from tensafe.cli.service import _Terminal
from tensafe.contracts.errors import Gone, Unauthenticated
from tensafe.local.lock import DirectoryLock
from tensafe.operations.checkpoints import Checkpoint
from tensafe.operations.doorbell import train_queue
from tensafe.operations.records import OpState
from tensafe.services import Services
from tests.unit.cli.conftest import BUNDLE, CANARY, Tensafe

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def test_init_makes_a_directory_that_only_its_owner_reads(tensafe: Tensafe, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    facts = tensafe("init", "--data-dir", target, "--json").json
    assert set(facts) == {"data_dir", "key_file", "key_id"}
    assert target.stat().st_mode & 0o777 == 0o700
    assert (target / "key.json").stat().st_mode & 0o777 == 0o600
    again = tensafe("init", "--data-dir", target)
    assert again.code == 1
    assert "initialised already" in again.err
    assert again.out == ""


def test_init_puts_the_key_file_where_it_is_told_and_every_command_finds_it(
    tensafe: Tensafe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    key_file = tmp_path / "keys" / "one.json"
    made = tensafe("init", "--key-file", key_file, "--json")
    assert made.json["key_file"] == str(key_file)
    assert "whoever copies" not in made.err
    assert not (tmp_path / "data" / "key.json").exists()
    assert tensafe("keys", "list").code == 0
    moved = key_file.rename(tmp_path / "keys" / "two.json")
    commands = (
        ("keys", "create", "--tenant", "a", "--scope", "train"),
        ("keys", "list"),
        ("runs", "list"),
        ("checkpoints", "list"),
        ("dead-letters", "list"),
        ("status",),
    )
    for command in commands:
        assert f"there is no key file at {key_file}" in tensafe(*command).err
        told = tensafe(*command, "--key-file", moved)
        assert told.code == (4 if command == ("status",) else 0), told.err
    for command in (
        ("keys", "revoke", "0000000000000000"),
        ("runs", "show", "x"),
        ("runs", "erase", "x", "--yes"),
        ("ops", "list", "x"),
        ("ops", "show", "x", 0),
        ("ops", "cancel", "x", 0),
        ("checkpoints", "show", "tinker://s-1:train:9/weights/absent"),
        ("checkpoints", "delete", "tinker://s-1:train:9/weights/absent", "--yes"),
        ("checkpoints", "export", "tinker://s-1:train:9/weights/absent", "file"),
        ("dead-letters", "show", "x"),
        ("dead-letters", "redrive", "x"),
        ("privacy", "show", "x"),
    ):
        assert tensafe(*command).code == 1
        assert tensafe(*command, "--key-file", moved).code == 3
    monkeypatch.setenv("TENSAFE_KEY_FILE", str(moved))
    assert tensafe("keys", "list").code == 0


def test_init_says_that_a_key_in_the_data_directory_goes_where_the_directory_goes(tensafe: Tensafe) -> None:
    assert "whoever copies that can read it" in tensafe("init").err


def test_keys_create_prints_the_key_once_and_it_works(
    tensafe: Tensafe, services: Services, data_dir: Path
) -> None:
    made = tensafe(
        "keys", "create", "--tenant", "acme", "--scope", "train,sample", "--label", "x", "--json"
    ).json
    assert set(made) == {
        "key",
        "key_id",
        "tenant",
        "scopes",
        "label",
        "created",
        "expires",
        "revoked",
        "usable",
    }
    assert made["scopes"] == ["sample", "train"]
    assert services.api_keys.authenticate(made["key"]).tenant == "acme"
    listed = tensafe("keys", "list", "--json")
    assert [row["key_id"] for row in listed.json] == [made["key_id"]]
    secret = made["key"].split("-", 2)[2]  # which may hold a hyphen itself
    for shown in (listed, tensafe("keys", "list"), tensafe("status")):
        assert secret not in shown.out + shown.err
    for path in data_dir.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_keys_expire_and_are_revoked(tensafe: Tensafe, services: Services) -> None:
    made = tensafe(
        "keys",
        "create",
        "--tenant",
        "acme",
        "--scope",
        "train",
        "--scope",
        "sample",
        "--expires-in",
        "30d",
        "--json",
    ).json
    assert TIME.fullmatch(made["expires"])
    revoked = tensafe("keys", "revoke", made["key_id"], "--json").json
    assert revoked["usable"] is False
    with pytest.raises(Unauthenticated):
        services.api_keys.authenticate(made["key"])
    assert "acme" in tensafe("keys", "list", "--tenant", "acme").out
    assert tensafe("keys", "list", "--tenant", "other", "--json").json == []


def test_runs_are_listed_and_shown_without_their_data(tensafe: Tensafe, run_id: str) -> None:
    (row,) = tensafe("runs", "list", "--json").json
    assert (row["run"], row["tenant"], row["base_model"], row["state"]) == (
        run_id,
        "acme",
        "acme/tiny",
        "active",
    )
    assert tensafe("runs", "list", "--tenant", "other", "--json").json == []
    shown = tensafe("runs", "show", run_id, "--json")
    assert shown.json["spec"] == {"lora": {"rank": 4}}
    assert (shown.json["newest_seq"], shown.json["first_open_seq"], shown.json["snapshot_seq"]) == (
        1,
        0,
        None,
    )
    for command in (
        ("runs", "list"),
        ("runs", "show", run_id),
        ("ops", "list", run_id),
        ("ops", "show", run_id, 0),
    ):
        assert CANARY not in tensafe(*command).out
        assert run_id in tensafe(*command).out or command[0] == "ops"


def test_erasing_a_run_leaves_nothing_that_opens(
    tensafe: Tensafe, services: Services, data_dir: Path, checkpoint: Checkpoint
) -> None:
    run_id = checkpoint.run_id
    wrapped = services.ports.items.get(services.streams.get(run_id, "acme").scope.key_item)
    assert wrapped is not None
    files = [path for path in data_dir.rglob("items.db*") if path.is_file()]
    assert any(wrapped.sealed in path.read_bytes() for path in files)
    unsure = tensafe("runs", "erase", run_id)
    assert (unsure.code, unsure.out) == (2, "")
    assert "--yes" in unsure.err
    assert tensafe("runs", "erase", run_id, "--yes", "--json").json == {"run": run_id, "state": "erased"}
    # The wrapped key is neither in the tables nor in the write-ahead log, while this process has both open.
    assert not any(wrapped.sealed in path.read_bytes() for path in files if path.exists())
    assert services.ports.blobs.head(checkpoint.ref.blob_key) is None
    with pytest.raises(Gone):
        services.streams.get(run_id, "acme")
    assert tensafe("runs", "list", "--json").json == []
    assert tensafe("runs", "show", run_id, "--json").json["state"] == "erased"
    assert tensafe("runs", "erase", run_id, "--yes").code == 0


def test_operations_are_listed_shown_and_cancelled(tensafe: Tensafe, services: Services, run_id: str) -> None:
    rows = tensafe("ops", "list", run_id, "--json").json
    assert [(row["seq"], row["kind"], row["state"]) for row in rows] == [
        (1, "noop", "pending"),
        (0, "create", "pending"),
    ]
    assert tensafe("ops", "cancel", run_id, 1, "--json").json["state"] == "cancelled"
    assert services.outcomes.get(services.streams.get(run_id, "acme"), 1).state is OpState.CANCELLED
    assert tensafe("ops", "show", run_id, 1, "--json").json["failure_code"] == "cancelled"
    run = services.streams.get(run_id, "acme")
    services.outcomes.start(services.outcomes.get(run, 0), [])
    refused = tensafe("ops", "cancel", run_id, 0)
    assert refused.code == 1
    assert "operation 0 is running" in refused.err


def test_dead_letters_are_listed_shown_and_redriven(
    tensafe: Tensafe, services: Services, run_id: str, letter_id: str
) -> None:
    (row,) = tensafe("dead-letters", "list", "--json").json
    assert (row["id"], row["run"], row["seq"], row["tenant"]) == (letter_id, run_id, 0, "acme")
    assert tensafe("dead-letters", "list", "--tenant", "other", "--json").json == []
    assert "OutOfMemoryError" in tensafe("dead-letters", "show", letter_id).out
    assert tensafe("runs", "show", run_id, "--json").json["state"] == "blocked"
    queue = train_queue("acme/tiny")
    (message,) = services.ports.queues.receive(queue, max_messages=10, visibility_s=60)
    services.doorbell.heard(run_id)  # as its trainer did
    services.ports.queues.delete(queue, message.receipt)
    assert tensafe("dead-letters", "redrive", letter_id, "--json").json["redriven"] is True
    assert services.outcomes.get(services.streams.get(run_id, "acme"), 0).state is OpState.PENDING
    assert services.ports.queues.depth(queue) == 1
    assert tensafe("dead-letters", "redrive", letter_id).code == 3


def test_checkpoints_are_listed_shown_exported_and_deleted(
    tensafe: Tensafe, services: Services, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for arguments in ((), ("--tenant", "acme"), ("--run", checkpoint.run_id)):
        (row,) = tensafe("checkpoints", "list", "--json", *arguments).json
        assert row["path"] == checkpoint.path
    assert tensafe("checkpoints", "list", "--tenant", "other", "--json").json == []
    assert tensafe("checkpoints", "show", checkpoint.path, "--json").json["details"] == {"step": 7}
    output = tmp_path / "adapter.tar"
    assert tensafe("checkpoints", "export", checkpoint.path, output, "--json").json["file"] == str(output)
    assert output.stat().st_mode & 0o777 == 0o600
    with tarfile.open(fileobj=io.BytesIO(output.read_bytes())) as tar:
        assert {name: tar.extractfile(name).read() for name in tar.getnames()} == BUNDLE  # type: ignore[union-attr]
    again = tensafe("checkpoints", "export", checkpoint.path, output)
    assert (again.code, "exists; choose a new file" in again.err) == (1, True)
    assert tensafe("checkpoints", "delete", checkpoint.path).code == 2
    assert tensafe("checkpoints", "delete", checkpoint.path, "--yes", "--json").json["deleted"] is True
    assert services.ports.blobs.head(checkpoint.ref.blob_key) is None
    assert tensafe("checkpoints", "show", checkpoint.path).code == 3


def test_privacy_show_tells_what_a_domain_has_spent(
    tensafe: Tensafe, services: Services, domain: str
) -> None:
    shown = tensafe("privacy", "show", domain, "--json").json
    assert shown["tenant"] == "acme"
    assert shown["steps"] == 1
    # Gaussian mechanism of noise multiplier 2 at delta 1e-5 (Balle and Wang 2018, exact): epsilon 1.9930.
    assert shown["epsilon"] == pytest.approx(1.993, abs=0.01)
    assert shown["runs"][0]["max_participations"] == 3
    assert "1.99" in tensafe("privacy", "show", domain, "--tenant", "acme").out
    assert tensafe("privacy", "show", "absent").code == 3
    assert tensafe("privacy", "show", domain, "--tenant", "other").code == 3


def test_status_says_whether_the_service_is_ready(
    tensafe: Tensafe, services: Services, data_dir: Path
) -> None:
    idle = tensafe("status", "--json")
    assert idle.code == 4
    assert (idle.json["running"], idle.json["ready"], idle.json["pid"]) == (False, False, None)
    assert [queue["dead"] for queue in idle.json["queues"]] == [0, 0]
    with DirectoryLock(data_dir) as lock:
        lock.describe({"url": "http://127.0.0.1:8000", "models": ["acme/tiny"]})
        services.workers.announce("trainer", "acme/tiny", "trainer-1", 0)
        half = tensafe("status", "--json")
        assert (half.code, half.json["running"], half.json["ready"]) == (4, True, False)
        services.workers.announce("sampler", "acme/tiny", "sampler-1", 0)
        whole = tensafe("status", "--json")
        assert (whole.code, whole.json["ready"], len(whole.json["workers"])) == (0, True, 2)
        assert "http://127.0.0.1:8000" in tensafe("status").out


class FullDisk(io.StringIO):
    """Takes nothing."""

    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


def test_up_goes_on_when_nothing_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", FullDisk())
    monkeypatch.setattr("sys.stdout", FullDisk())
    with _Terminal() as events:
        events.waiting("starting")
        events.note("api: killed by SIGKILL")
        events.ready("http://127.0.0.1:8000")


def test_version(tensafe: Tensafe) -> None:
    assert tensafe("version").out.strip() == package.__version__
    assert tensafe("version", "--json").json == {"version": package.__version__}


@pytest.mark.usefixtures("run_id", "checkpoint", "domain")
def test_tables_are_for_people(tensafe: Tensafe) -> None:
    for command, word in (
        (("keys", "list"), "tenant"),
        (("runs", "list"), "base model"),
        (("ops", "list", "s-1:train:0"), "kind"),
        (("checkpoints", "list"), "size"),
        (("privacy", "show", "letters"), "noise multiplier"),
        (("dead-letters", "list"), "no dead letters"),
    ):
        answer = tensafe(*command)
        assert (answer.code, answer.err) == (0, "")
        assert word in answer.out


def test_no_escape_sequence_of_a_tenant_reaches_the_terminal(tensafe: Tensafe, services: Services) -> None:
    services.api_keys.create("acme", ["train"], label="\x1b[2Jred\nalert")
    table = tensafe("keys", "list")
    assert "\x1b" not in table.out
    assert "red\N{REPLACEMENT CHARACTER}alert" in table.out
    assert "\x1b" not in tensafe("keys", "list", "--json").out
