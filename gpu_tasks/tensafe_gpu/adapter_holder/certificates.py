"""The adapter holder's certificate, its key and the authority of its tenants, sealed in its own vault.

A task on AWS has no disk that lasts and no secret in its environment: it unseals them when it starts and when
others were sealed, and OpenSSL reads them from memory.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from tensafe.contracts.errors import ConfigurationError, IntegrityError
from tensafe.local.certificates import read_pem
from tensafe.vault import sealed_texts
from tensafe.vault.scope import Scope
from tensafe.vault.vault import Vault
from tensafe_gpu.adapter_holder.store import HolderPorts
from tensafe_gpu.helora.renewal import Renewed
from tensafe_gpu.helora.tls import TlsFiles, TlsTexts, server_context_of

_SCOPE: Final = Scope("adapter-holder", "tls")
LOOK_S: Final = 30.0
"""A read of the store, which any peer that connects would cost otherwise."""


def keep(ports: HolderPorts, files: TlsFiles) -> None:
    """Seal what the files hold, in place of what was kept; whoever serves takes it up within `LOOK_S`.

    Raises ConfigurationError for files that cannot be used, Conflict if somebody else did the same.
    """
    texts = TlsTexts(read_pem(files.certificate), read_pem(files.key), read_pem(files.authority))
    server_context_of(texts)
    vault = Vault(ports.items, ports.blobs, ports.keyring)
    sealed_texts.keep(ports.items, vault, _SCOPE, asdict(texts))


def kept(ports: HolderPorts) -> TlsTexts | None:
    """What `keep` sealed; None if nothing is. Raises IntegrityError, Unavailable."""
    found = sealed_texts.kept(ports.items, Vault(ports.items, ports.blobs, ports.keyring), _SCOPE)
    try:
        return None if found is None else TlsTexts(**found)
    except TypeError as error:
        raise IntegrityError("the certificate that is kept cannot be read") from error


def followed(ports: HolderPorts, *, clock: Callable[[], float] = time.monotonic) -> Renewed:
    """The server's contexts of what is kept, looked for again by a connection that comes after `LOOK_S`.

    Raises ConfigurationError if nothing is kept, IntegrityError, Unavailable.
    """

    def load() -> ssl.SSLContext:
        texts = kept(ports)
        if texts is None:
            raise ConfigurationError("no certificate is kept", field="tls")
        return server_context_of(texts)

    return Renewed(lambda: sealed_texts.version(ports.items, _SCOPE), load, look_s=LOOK_S, clock=clock)
