"""What a service has signed of a training's privacy: fetched over HTTP, verified offline as anybody could.

`tensafe privacy verify` replays the exported ledger (chain, signatures, counts, epsilon) and holds the saved
weights' statement to it. It needs nothing of the service but the public key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console

from local_service import LocalService, RunningService, tensafe

_TIMEOUT_S: Final = 60.0


def verified_spending(
    service: LocalService | RunningService, path: str, domain: str, folder: Path, console: Console
) -> dict[str, Any]:
    """What the ledger of `domain` says after its verification; `path` is that of saved weights.

    The ledger and the statement stay in `folder`. Ends the program if the verification refuses either.
    """
    ledger, statement = folder / "ledger.jsonl", folder / "privacy_statement.json"
    run_id = path.removeprefix("tinker://").partition("/")[0]
    saved = _get(service, f"/v1/training_clients/{run_id}/artifacts").json()["artifacts"]
    (artifact,) = [one["id"] for one in saved if one["path"] == path]
    said = _get(service, f"/v1/artifacts/{artifact}/privacy_statement").json()
    statement.write_text(json.dumps(said, indent=1) + "\n")
    ledger.write_bytes(_get(service, f"/v1/privacy/domains/{domain}/export").content)
    options, signed = trusted(service, said["key_id"], folder)
    command = ("privacy", "verify", str(ledger), *options, "--statement", str(statement), "--json")
    found: dict[str, Any] = json.loads(tensafe(*command))
    console.print(
        f"ledger verified offline: {found['rows']} rows, epsilon {found['epsilon']:.2f} at delta "
        f"{found['delta']:g} computed again, the checkpoint's statement agrees; {signed}",
        soft_wrap=True,
    )
    return found | {"signed": signed}


def trusted(service: LocalService | RunningService, key_id: str, folder: Path) -> tuple[list[str], str]:
    """Options that say whose signatures count, and in words why they do."""
    pem = service.public_key()
    if pem is None:
        return ["--key-id", key_id], f"signed with key {key_id}, which only the service itself vouches for"
    file = folder / "service.pem"
    file.write_text(pem)
    return ["--public-key", str(file)], f"signed with key {key_id}, as its operator told"


def _get(service: LocalService | RunningService, path: str) -> httpx.Response:
    answer = httpx.get(f"{service.url}{path}", headers={"X-API-Key": service.api_key}, timeout=_TIMEOUT_S)
    if answer.has_redirect_location:  # a large one lies under a URL that needs no key and gets none
        answer = httpx.get(answer.headers["location"], timeout=_TIMEOUT_S)
    return answer.raise_for_status()
