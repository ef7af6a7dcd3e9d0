"""The demo as its user runs it on a deployment: with an address, a key, and its operator's public key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from corpus import load_corpus
from private_finetune import DOMAIN, NOT_SHOWN
from tensafe.privacy.verify import verify
from tensafe.storage.signing import PublicKey
from tests.project_files import ROOT
from tests.support.aws_service import AwsService
from tests.support.service import MODEL_NAME


def test_it_trains_privately_samples_and_proves_what_it_spent(
    service: AwsService, key: str, tmp_path: Path
) -> None:
    pem, output = tmp_path / "operator.pem", tmp_path / "demo-out"
    pem.write_text(service.tensafe("privacy", "public-key").stdout)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TINKER_API_KEY": key}
    command = [sys.executable, str(ROOT / "examples/private_finetune.py"), "--url", service.url]

    def demo(folder: Path) -> subprocess.CompletedProcess[str]:
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [*command, "--public-key", str(pem), "--steps", "2"],
            cwd=folder,
            env=environment | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    done = demo(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for line in NOT_SHOWN:  # what takes the service's own machine is said, not passed over
        assert line in done.stdout

    report = json.loads((output / "report.json").read_text())
    assert [step["step"] for step in report["steps"]] == [1, 2]
    privacy = report["privacy"]
    assert 0 < report["steps"][0]["epsilon"] <= privacy["epsilon"] <= privacy["max_epsilon"] == 8.0
    assert report["heldout"]["conversations"] == len(load_corpus().heldout)
    assert 0 < report["heldout"]["after"] < 10
    assert len(report["samples"]) == 4
    assert (report["events"], report["encrypted"]) == ([], None)
    assert set(NOT_SHOWN) <= set(report["notes"])
    facts = dict(report["facts"])
    assert facts["base model"] == MODEL_NAME
    assert facts["checkpoint"].startswith("tinker://")
    assert f"epsilon {privacy['epsilon']:.4f} computed again" in facts["ledger, verified offline"]
    assert (output / "report.html").is_file()

    signer = PublicKey.from_pem(pem.read_text())
    with (output / "ledger.jsonl").open("rb") as exported:
        proven = verify(exported, {signer.key_id: signer})
    assert (proven.domain, proven.rows, proven.signed_by) == (DOMAIN, 2, (signer.key_id,))
    said = json.loads((output / "privacy_statement.json").read_text())
    assert (said["private"], said["key_id"]) == (True, signer.key_id)
    assert said["ledger"] == {"rows": 2, "head_hash": proven.head_hash}

    again = demo(tmp_path / "again")  # the budget is spent: a sentence, and nothing charged
    assert again.returncode == 1
    assert "[privacy_budget_exceeded]" in again.stdout
    assert "Traceback" not in again.stdout + again.stderr
