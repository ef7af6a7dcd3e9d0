"""What `tensafe verify` says of an attestation that a service answered, and of a changed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.service import Service, tensafe


def check_verified_offline(service: Service, document: dict[str, Any], folder: Path) -> None:
    """An encrypted answer's attestation verifies with the public key alone; another mode is named."""
    file, public = folder / "attestation.json", folder / "key.pem"
    file.write_text(json.dumps(document))
    public.write_text(tensafe("privacy", "public-key", "--data-dir", str(service.data_dir)).stdout)
    verified = tensafe("verify", str(file), "--public-key", str(public), "--json")
    assert json.loads(verified.stdout)["mode"] == "HE"
    changed = {**document, "statement": {**document["statement"], "mode": "PLAINTEXT"}}
    file.write_text(json.dumps(changed))
    refused = tensafe("verify", str(file), "--public-key", str(public), check=False)
    assert (refused.returncode, "statement.mode" in refused.stderr) == (1, True)
