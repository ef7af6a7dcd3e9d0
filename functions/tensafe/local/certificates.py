"""The samplers' certificate for adapter holders, sealed in the service's vault."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.x509 import load_pem_x509_certificate
from cryptography.x509.oid import NameOID

from tensafe.contracts.errors import ConfigurationError
from tensafe.services import Services
from tensafe.vault import sealed_texts
from tensafe.vault.scope import Scope

_SCOPE: Final = Scope("service", "holder-tls")
NAMES: Final = ("cert", "key", "ca")
_NAMED: Final = "common_name"
_MAX_FILE_BYTES: Final = 16 * 1024


def keep_certificate(services: Services, files: Mapping[str, Path]) -> None:
    """Seal the PEM files `cert`, `key` and `ca`; samplers take them up by themselves.

    Raises ConfigurationError for files that cannot be used.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(files["cert"], files["key"], password="")  # asks nobody
        context.load_verify_locations(cafile=files["ca"])
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(f"the TLS files cannot be used: {error}") from error
    texts = {name: read_pem(files[name]) for name in NAMES}
    told: dict[str, str] = {}
    with suppress(ConfigurationError):  # one that OpenSSL reads, and `cryptography` does not
        named = common_name(texts["cert"])
        told = {} if named is None else {_NAMED: named}
    sealed_texts.keep(services.ports.items, services.vault, _SCOPE, texts, told)


def kept_certificate(services: Services) -> dict[str, str] | None:
    """The texts by name; None if nothing is kept. Raises IntegrityError, Unavailable."""
    return sealed_texts.kept(services.ports.items, services.vault, _SCOPE)


def kept_name(services: Services) -> str | None:
    """Whom the certificate that is kept names, opening nothing; None if that is not known."""
    return sealed_texts.told(services.ports.items, _SCOPE).get(_NAMED)


def common_name(pem: str) -> str | None:
    """Whom a certificate (PEM, the first of the text) names, if it names one.

    Raises ConfigurationError for a text that is none.
    """
    try:
        names = load_pem_x509_certificate(pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise ConfigurationError(f"not a certificate in PEM form: {error}", field="tls") from error
    return str(names[0].value) if len(names) == 1 else None


def kept_version(services: Services) -> int:
    """Another number for every certificate that was kept; 0 if none is. One read of the items."""
    return sealed_texts.version(services.ports.items, _SCOPE)


def read_pem(path: Path) -> str:
    """A small text file. Raises ConfigurationError."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read", field="tls") from error
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_FILE_BYTES} bytes", field="tls")
    return text
