"""The adapter holder's certificate, its key and the authority of its tenants, sealed in its own vault.

A task on AWS has no disk that lasts and no secret in its environment: it unseals them when it starts, and
OpenSSL reads them from memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final

from tensafe.contracts.errors import ConfigurationError, Conflict, IntegrityError
from tensafe.storage.ports import ConditionFailed, Key, Put
from tensafe.vault.scope import Scope
from tensafe.vault.vault import Vault
from tensafe_gpu.adapter_holder.store import HolderPorts
from tensafe_gpu.helora.tls import TlsFiles, TlsTexts, server_context_of

_SCOPE: Final = Scope("adapter-holder", "tls")
_ITEM: Final = Key("tls", "server")
_PART: Final = "server"
_MAX_FILE_BYTES: Final = 64 * 1024


def keep(ports: HolderPorts, files: TlsFiles) -> None:
    """Seal what the files hold, in place of what was kept; whoever serves reads it at its next start.

    Raises ConfigurationError for files that cannot be used, Conflict if somebody else did the same.
    """
    texts = TlsTexts(*(_read(name, getattr(files, name)) for name in ("certificate", "key", "authority")))
    server_context_of(texts)
    vault = Vault(ports.items, ports.blobs, ports.keyring)
    vault.ensure_key(_SCOPE)
    present = ports.items.get(_ITEM)
    sealed = vault.seal(_SCOPE, _PART, json.dumps(asdict(texts)).encode())
    try:
        ports.items.write([Put(_ITEM, {}, 0 if present is None else present.version, sealed=sealed)])
    except ConditionFailed as error:
        raise Conflict("another certificate was kept meanwhile; look, and try again") from error


def kept(ports: HolderPorts) -> TlsTexts | None:
    """What `keep` sealed; None if nothing is. Raises IntegrityError, Unavailable."""
    item = ports.items.get(_ITEM)
    if item is None:
        return None
    opened = Vault(ports.items, ports.blobs, ports.keyring).open(_SCOPE, _PART, item.sealed)
    try:
        return TlsTexts(**json.loads(opened))
    except (TypeError, ValueError) as error:
        raise IntegrityError("the certificate that is kept cannot be read") from error


def _read(name: str, path: object) -> str:
    try:
        with open(str(path), encoding="ascii") as file:  # PEM is
            text = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the {name} in {path} cannot be read", field="tls") from error
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_FILE_BYTES} bytes", field="tls")
    return text
