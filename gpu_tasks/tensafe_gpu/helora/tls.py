"""TLS contexts for both ends: 1.3 alone, certificates on both sides, checked against one authority."""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from tensafe.contracts.errors import ConfigurationError

LIST_BEGINS: Final = b"-----BEGIN X509 CRL-----"
"""An authority's file with such a list is asked for the certificates that it has taken away."""

Contexts = Callable[[], ssl.SSLContext]
"""The context for one new connection; `renewal.Renewed` follows a certificate."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the own certificate and key, and the authority that signs the other side's."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class TlsTexts:
    """The same as PEM texts."""

    certificate: str
    key: str = field(repr=False)
    authority: str


class TrustContext(ssl.SSLContext):
    """A context that says whom it trusts: PEM certificates, and lists of revoked ones."""

    authority_pem: bytes = b""


def server_context_of(texts: TlsTexts) -> TrustContext:
    """As `server_context`; the key is not written to a disk. Raises ConfigurationError."""
    with (
        _in_memory(texts.certificate) as certificate,
        _in_memory(texts.key) as key,
        _in_memory(texts.authority) as authority,
    ):
        return server_context(TlsFiles(certificate, key, authority))


def server_context(files: TlsFiles) -> TrustContext:
    """The adapter holder's: a client without a valid certificate gets no further than the handshake."""
    context = TrustContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a session that is resumed is not verified again
    return _loaded(context, files)


def client_context(files: TlsFiles) -> TrustContext:
    """The key holder's: the server's certificate has to name the host that was dialled, as an alternative
    name.
    """
    context = TrustContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    context.hostname_checks_common_name = False
    return _loaded(context, files)


def secured(
    sock: socket.socket, context: ssl.SSLContext, timeout_s: float, *, server_name: str | None = None
) -> ssl.SSLSocket:
    """TLS over a connected socket, as its client where it names the server; it takes `sock` over.

    The handshake as a whole has `timeout_s`, however slowly its bytes come. Raises ssl.SSLError,
    TimeoutError, OSError; the socket is then closed.
    """
    sock = wrapped(sock, context, server_name=server_name)
    try:
        shake_hands(sock, timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def wrapped(sock: socket.socket, context: ssl.SSLContext, *, server_name: str | None = None) -> ssl.SSLSocket:
    """What `secured` gives, before its handshake. Raises ssl.SSLError, OSError."""
    return context.wrap_socket(
        sock, server_side=server_name is None, server_hostname=server_name, do_handshake_on_connect=False
    )


def shake_hands(sock: ssl.SSLSocket, timeout_s: float) -> None:
    """The handshake of `secured`. Raises as that does, and leaves the socket open."""
    _shake_hands(sock, time.monotonic() + timeout_s)
    sock.settimeout(timeout_s)


def _shake_hands(sock: ssl.SSLSocket, deadline: float) -> None:
    sock.setblocking(False)
    ready = select.poll()
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            ready.register(sock, select.POLLIN)
        except ssl.SSLWantWriteError:
            ready.register(sock, select.POLLOUT)
        else:
            return
        if not ready.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise TimeoutError("the TLS handshake took too long")


def tenant_of(sock: ssl.SSLSocket) -> str:
    """The common name in the client's certificate, which the authority vouches for. Raises ssl.SSLError."""
    certificate = sock.getpeercert() or {}
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
    names = [value for part in subject for name, value in part if name == "commonName"]
    if len(names) != 1 or not names[0]:
        raise ssl.SSLError("the client's certificate does not name a tenant")
    return names[0]


@contextmanager
def _in_memory(content: str | bytes) -> Iterator[Path]:
    """A file without a name, since OpenSSL reads certificates from files alone."""
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _no_pass_phrase() -> str:
    """In the place of OpenSSL's own question at the terminal, which a service would wait at."""
    raise ConfigurationError(
        "the TLS key has a pass phrase, and such keys are not taken: give one without (`openssl pkey -in KEY "
        "-out NEW`), in a file of this user alone",
        field="tls",
    )


def _loaded(context: TrustContext, files: TlsFiles) -> TrustContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_cert_chain(files.certificate, files.key, _no_pass_phrase)
        # Read once: what is looked at later is what OpenSSL was given.
        context.authority_pem = files.authority.read_bytes()
        with _in_memory(context.authority_pem) as authority:
            context.load_verify_locations(cafile=authority)
        if LIST_BEGINS in context.authority_pem:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the TLS files cannot be used: {error}", field="tls") from error
    return context
