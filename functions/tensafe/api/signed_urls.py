"""Download URLs of exported files: signed, expiring, decrypted by the edge when they are used.

Exports rest sealed like everything else, so a URL of the blob itself would return ciphertext. The
signature is an HMAC under a key that the run's data key yields: erasing the run ends its URLs too.
"""

from __future__ import annotations

import hmac
import time
from typing import Final
from urllib.parse import quote, urlencode

from tensafe.auth.principal import check_tenant
from tensafe.contracts.errors import Gone, InvalidRequest, NotFound
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.packages.bundle import unpack_files
from tensafe.services import Services

LIFETIME_S: Final = 3600
_REFUSED: Final = "this download link is not valid; ask for a new one"


def file_names(services: Services, checkpoint: Checkpoint) -> list[str]:
    """The files of an export."""
    return sorted(unpack_files(_read(services, checkpoint)))


def make(services: Services, base_url: str, checkpoint: Checkpoint, file: str, expires_s: int) -> str:
    """A URL under the address at which clients reach the service."""
    query = urlencode(
        {
            "tenant": checkpoint.tenant,
            "expires": expires_s,
            "signature": _sign(services, checkpoint, file, expires_s),
        }
    )
    path = f"/api/v1/external_files/{checkpoint.artifact_id}/{quote(file)}"
    return f"{base_url.rstrip('/')}{path}?{query}"


def open_file(
    services: Services, tenant: str, artifact_id: str, file: str, expires_s: int, signature: str
) -> bytes:
    """The file in clear. Raises NotFound for a wrong or expired link."""
    try:
        checkpoint = services.checkpoints.by_artifact(artifact_id, check_tenant(tenant))
        expected = _sign(services, checkpoint, file, expires_s)
    except (NotFound, Gone, InvalidRequest):
        raise NotFound(_REFUSED) from None
    genuine = hmac.compare_digest(expected.encode(), signature.encode())
    if not genuine or time.time() >= expires_s or checkpoint.kind is not CheckpointKind.EXTERNAL:
        raise NotFound(_REFUSED)
    files = unpack_files(_read(services, checkpoint))
    if file not in files:
        raise NotFound(_REFUSED)
    return files[file]


def _sign(services: Services, checkpoint: Checkpoint, file: str, expires_s: int) -> str:
    stream = services.streams.get(checkpoint.run_id, checkpoint.tenant)
    text = f"{checkpoint.artifact_id}\n{file}\n{expires_s}"
    return services.vault.fingerprint(stream.scope, "signed-url", text.encode())


def _read(services: Services, checkpoint: Checkpoint) -> bytes:
    stream = services.streams.get(checkpoint.run_id, checkpoint.tenant)
    return services.checkpoints.read(stream, checkpoint)
