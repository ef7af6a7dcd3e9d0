"""`privacy ledger, export, verify, public-key, upgrade, abandon` as an operator and as a third party."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tensafe.contracts.errors import IntegrityError
from tensafe.local.composition import initialise, local_services
from tensafe.local.endpoint import Endpoint
from tensafe.local.models import ModelSource
from tensafe.local.settings import LocalSettings
from tensafe.local.up import UpRequest
from tensafe.local.up import up as serve
from tensafe.privacy.anchoring import check_all
from tensafe.privacy.ledger import Ledger
from tensafe.services import Services
from tests.support.model_folders import model_folder
from tests.unit.cli.conftest import RUN, Tensafe
from tests.unit.local.test_key_01 import Silent
from tests.unit.privacy.support import open_run


@pytest.fixture
def exported(tensafe: Tensafe, domain: str, tmp_path: Path) -> Path:
    made = tensafe("privacy", "export", domain, "-o", tmp_path / "export.jsonl", "--json")
    assert made.code == 0, made.err
    assert set(made.json) == {"file", "tenant", "domain", "key_id"}
    return tmp_path / "export.jsonl"


@pytest.fixture
def public_key(tensafe: Tensafe, exported: Path, tmp_path: Path) -> Path:
    shown = tensafe("privacy", "public-key")
    assert shown.out.startswith("-----BEGIN PUBLIC KEY-----\n")
    assert shown.err.startswith("ed25519-")
    path = tmp_path / "ledger.pem"
    path.write_text(shown.out)
    return path


def test_the_ledger_is_shown(tensafe: Tensafe, domain: str) -> None:
    (row,) = tensafe("privacy", "ledger", domain, "--json").json
    assert (row["seq"], row["run_id"], row["step"], row["units"], row["state"]) == (1, RUN, 1, 1, "reserved")
    assert len(row["signature"]) == 128
    table = tensafe("privacy", "ledger", domain, "--tenant", "acme").out
    assert RUN in table
    assert row["hash"] in table
    assert tensafe("privacy", "ledger", "nothing").code == 3


def test_an_export_is_verified_without_data_directory_and_key_file(
    tensafe: Tensafe, exported: Path, public_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exported.stat().st_mode & 0o777 == 0o600
    shown = tensafe("privacy", "show", "letters", "--json").json
    key_id = tensafe("privacy", "public-key", "--json").json["key_id"]
    monkeypatch.setenv("TENSAFE_DATA_DIR", str(tmp_path / "nowhere"))
    found = tensafe("privacy", "verify", exported, "--public-key", public_key, "--json")
    assert found.code == 0, found.err
    assert found.json["valid"] is True
    assert found.json["epsilon"] == pytest.approx(shown["epsilon"], rel=1e-5)
    assert (found.json["rows"], found.json["head_hash"]) == (1, shown["head_hash"])
    assert found.json["signed_by"] == [key_id]
    by_id = tensafe("privacy", "verify", exported, "--key-id", key_id)
    assert by_id.code == 0
    assert "valid" in by_id.out
    assert RUN in by_id.out


def test_a_tampered_export_ends_with_code_1_and_names_the_row(
    tensafe: Tensafe, exported: Path, public_key: Path
) -> None:
    text = exported.read_text()
    exported.write_text(text.replace('\\"units\\":1', '\\"units\\":0'))
    found = tensafe("privacy", "verify", exported, "--public-key", public_key, "--json")
    assert found.code == 1
    assert found.json["valid"] is False
    assert found.json["where"] == "row 1"
    assert "row 1" in found.err
    assert tensafe("privacy", "verify", exported, "--public-key", public_key).out == ""
    exported.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert "trailer" in tensafe("privacy", "verify", exported, "--public-key", public_key).err


def test_verify_wants_to_be_told_whom_to_trust(tensafe: Tensafe, exported: Path, tmp_path: Path) -> None:
    assert tensafe("privacy", "verify", exported).code == 2
    assert tensafe("privacy", "verify", exported, "--key-id", "ed25519-" + "0" * 32).code == 2
    (tmp_path / "other").mkdir()
    initialise(tmp_path / "other" / "data")
    other = tmp_path / "other.pem"
    other.write_text(tensafe("privacy", "public-key", "--data-dir", tmp_path / "other" / "data").out)
    found = tensafe("privacy", "verify", exported, "--public-key", other)
    assert found.code == 1
    assert "not the one to be trusted" in found.err
    assert tensafe("privacy", "verify", exported, "--public-key", exported).code == 2
    assert tensafe("privacy", "verify", tmp_path / "absent", "--public-key", other).code == 1


def test_export_overwrites_nothing_and_leaves_nothing_half_done(
    tensafe: Tensafe, exported: Path, tmp_path: Path
) -> None:
    before = exported.read_bytes()
    assert "exists; choose a new file" in tensafe("privacy", "export", "letters", "-o", exported).err
    assert exported.read_bytes() == before
    assert tensafe("privacy", "export", "nothing", "-o", tmp_path / "x").code == 3
    assert not (tmp_path / "x").exists()


@pytest.fixture
def rolled_back(tensafe: Tensafe, data_dir: Path, charge_more: Callable[[], None], tmp_path: Path) -> Path:
    """The data directory with an older copy of its database; the anchors are as they were."""
    shutil.copy(data_dir / "items.db", tmp_path / "old.db")
    charge_more()
    for name in ("items.db-wal", "items.db-shm"):
        (data_dir / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "old.db", data_dir / "items.db")
    return data_dir


@pytest.fixture
def charge_more(data_dir: Path) -> Callable[[], None]:
    def charge() -> None:
        with local_services(LocalSettings(data_dir=data_dir)) as opened:
            ports = opened.ports
            ledger = Ledger(ports.items, opened.vault, ports.signer, ports.anchors)
            run = open_run(ledger)
            ledger.reserve(run, 10**6 + ledger.show("acme", "letters").steps, {7})

    with local_services(LocalSettings(data_dir=data_dir)) as opened:
        opened.api_keys.create("acme", ["train"])
    charge()
    return charge


@pytest.mark.sockets
def test_a_start_on_an_older_database_is_refused_until_the_domain_is_given_up(
    tensafe: Tensafe, rolled_back: Path, tmp_path: Path
) -> None:
    request = UpRequest(
        rolled_back, [ModelSource("tiny", str(model_folder(tmp_path / "m")))], Endpoint("127.0.0.1", 0)
    )
    with pytest.raises(IntegrityError, match="'letters' of tenant acme ends at row 1, and row 2 was charged"):
        serve(request, Silent())
    for command in (("show", "letters"), ("ledger", "letters"), ("export", "letters", "-o", tmp_path / "x")):
        refused = tensafe("privacy", *command)
        assert refused.code == 1
        assert "put back to an older copy" in refused.err
        assert "tensafe privacy abandon" in refused.err
    assert tensafe("privacy", "abandon", "letters", "--tenant", "acme").code == 2
    assert tensafe("privacy", "abandon", "nothing", "--tenant", "acme", "--yes").code == 3
    assert tensafe("privacy", "abandon", "letters", "--tenant", "acme", "--yes").code == 0
    assert "abandoned" in tensafe("privacy", "show", "letters").err
    with local_services(LocalSettings(data_dir=rolled_back)) as services:
        check_all(services.ports.items, services.ports.anchors)  # what stopped the start


def test_upgrade_tells_what_it_did(tensafe: Tensafe, services: Services, domain: str) -> None:
    assert tensafe("privacy", "upgrade", "--json").json == [
        {"tenant": "acme", "domain": "letters", "rows": 1, "signed_now": 0, "anchored_now": False}
    ]


def test_init_puts_the_anchors_where_it_is_told(tensafe: Tensafe, tmp_path: Path) -> None:
    assert tensafe("init", "--anchor-dir", tmp_path / "far" / "anchors").code == 0
    assert (tmp_path / "far" / "anchors").is_dir()
    assert not (tmp_path / "data" / "anchors").exists()
    assert json.loads(tensafe("keys", "list", "--json").out) == []
