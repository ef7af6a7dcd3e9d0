"""Whether a connection that stands may go on: its certificate may have ended, or been taken away."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from tensafe_gpu.helora.ports import CERTIFICATE_REFUSED, HeUnavailable
from tensafe_gpu.helora.tls import LIST_BEGINS, Contexts, TrustContext

LOOK_S: Final = 5.0
_LIST_ENDS: Final = b"-----END X509 CRL-----"


class Standing:
    """The right of one peer, which OpenSSL verified in its handshake. Not for several threads at once."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        contexts: Contexts,
        *,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`contexts` are those of new connections: they follow the authority's file. Raises ssl.SSLError."""
        der = sock.getpeercert(binary_form=True)
        if der is None:
            raise ssl.SSLError("the peer has no certificate")
        self._certificate = x509.load_der_x509_certificate(der)
        self._until = self._certificate.not_valid_after_utc.timestamp()
        self._contexts, self._look_s, self._clock = contexts, look_s, clock
        self._trusted = _authority(sock.context)
        self._look_at = clock() + look_s

    def check(self) -> None:
        """Costs a look at the clock, but for one in `look_s`. Raises HeUnavailable."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + self._look_s
        if time.time() > self._until:
            raise HeUnavailable(CERTIFICATE_REFUSED, "the peer's certificate has ended")
        trusted = _authority(self._contexts())
        if trusted != self._trusted:
            if not _goes_on(self._certificate, trusted):
                raise HeUnavailable(CERTIFICATE_REFUSED, "the peer's certificate has been taken away")
            self._trusted = trusted


def _authority(context: ssl.SSLContext) -> bytes:
    return context.authority_pem if isinstance(context, TrustContext) else b""


def _goes_on(certificate: x509.Certificate, authority_pem: bytes) -> bool:
    """Whether the authority still vouches for it; not where that cannot be told without the peer.

    A peer whose certificate came by way of another one, or whose authority has an algorithm that is not known
    here, connects anew, and OpenSSL verifies it.
    """
    try:
        authorities = x509.load_pem_x509_certificates(authority_pem)
        lists = [
            x509.load_pem_x509_crl(LIST_BEGINS + part.partition(_LIST_ENDS)[0] + _LIST_ENDS)
            for part in authority_pem.split(LIST_BEGINS)[1:]
        ]
    except ValueError:
        return False
    return any(_issued(certificate, one) for one in authorities) and not any(
        one.issuer == certificate.issuer
        and one.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
        for one in lists
    )


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True
