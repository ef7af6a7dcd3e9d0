"""The key holder's end of a connection: requests answered in turn, every failure one of the port's codes."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

from tensafe_gpu.helora.cores import on_one_core
from tensafe_gpu.helora.exchange import POLL_S, Exchange
from tensafe_gpu.helora.frames import (
    TO_KEY_HOLDER,
    Frame,
    FrameError,
    Kind,
    OtherVersion,
    PeerGone,
    PeerSlow,
    receive,
    send,
)
from tensafe_gpu.helora.messages import Hello, Refusal, Welcome, packed, parsed
from tensafe_gpu.helora.parameters import PARAMETERS
from tensafe_gpu.helora.ports import (
    CERTIFICATE_REFUSED,
    GARBAGE,
    HOLDER_ABSENT,
    PARAMETERS_REFUSED,
    TIMEOUT,
    VERSION_MISMATCH,
    WIRE_CODES,
    AdapterInfo,
    HeUnavailable,
)
from tensafe_gpu.helora.standing import LOOK_S, Standing
from tensafe_gpu.helora.tls import Contexts, secured

log = logging.getLogger(__name__)

_FRESH_S: Final = 0.2
"""An answer so long ago shows that the peer is there; asking the kernel costs three calls."""

_LAST_WORD_S: Final = 0.2
"""For what a peer said before it closed the connection: it is there, or does not come."""

_OF_CERTIFICATES: Final = ("CERTIFICATE", "UNKNOWN_CA", "DECRYPT_ERROR", "ACCESS_DENIED")
"""In OpenSSL's names of the alerts (RFC 8446, section 6.2) by which a peer refuses one."""

Connector = Callable[[], socket.socket]
"""Opens a connection to the adapter holder. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which adapter, for whom. Without a version the newest; from then on that one and its epoch alone."""

    tenant: str
    adapter: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect and greet, for an online answer, for an answer of preprocessing."""

    connect_s: float = 5.0
    online_s: float = 10.0
    offline_s: float = 120.0


def unix_connector(path: Path, timeout_s: float = 5.0) -> Connector:
    """Over a unix socket of this host."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        return sock

    return connect


class TlsConnector:
    """Over mutual TLS 1.3; `contexts` are those of `tls.client_context`, asked for at each connection."""

    def __init__(
        self,
        host: str,
        port: int,
        contexts: Contexts,
        timeout_s: float = 5.0,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        """`look_s`: how often a connection that stands is looked at."""
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._contexts, self._look_s = contexts, look_s

    def __call__(self) -> socket.socket:
        plain = socket.create_connection((self._host, self._port), timeout=self._timeout_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return secured(plain, self._contexts(), self._timeout_s, server_name=self._host)
        except BaseException:
            plain.close()
            raise

    def standing(self, sock: ssl.SSLSocket) -> Standing:
        """The right of the adapter holder's certificate, for as long as this connection stands."""
        return Standing(sock, self._contexts, look_s=self._look_s)


class Connection:
    """A greeted connection; not for several threads at once. After any failure but a refusal it is closed."""

    def __init__(self, connector: Connector, wanted: Wanted, timeouts: Timeouts) -> None:
        """Connect and greet. Raises HeUnavailable."""
        self._timeouts, self._request, self._answered = timeouts, 0, 0.0
        try:
            self._sock = connector()
        except ssl.SSLError as error:
            raise _of_tls(error) from error
        except TimeoutError as error:
            raise HeUnavailable(TIMEOUT, "the adapter holder does not answer") from error
        except OSError as error:
            raise HeUnavailable(HOLDER_ABSENT, "the adapter holder cannot be reached") from error
        self._standing: Standing | None = None
        self._poll_s = 0.0 if on_one_core(self._sock) else POLL_S
        hello = Hello(
            parameters=PARAMETERS, tenant=wanted.tenant, adapter=wanted.adapter, version=wanted.version
        )
        most = TO_KEY_HOLDER[Kind.WELCOME]
        try:
            if isinstance(connector, TlsConnector) and isinstance(self._sock, ssl.SSLSocket):
                self._standing = connector.standing(self._sock)
            payload = self.ask(Kind.HELLO, [packed(hello)], Kind.WELCOME, most, timeouts.connect_s)
            self.info, self.nonce = self._checked(payload, wanted)
        except ValueError as error:  # of a certificate that OpenSSL takes and `cryptography` does not
            self.close()
            raise HeUnavailable(
                CERTIFICATE_REFUSED, "the adapter holder's certificate cannot be read"
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether nothing has gone wrong, the peer has not closed it and its certificate holds.

        To be asked while no request is on its way.
        """
        if self._sock.fileno() < 0 or not self._vouched_for():
            return False
        if time.monotonic() - self._answered < _FRESH_S:
            return True
        try:
            # It does not block (see frames), and whatever comes unasked says goodbye. TLS cannot be peeked.
            self._sock.recv(1, 0 if isinstance(self._sock, ssl.SSLSocket) else socket.MSG_PEEK)
            return False
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False

    @property
    def on_one_host(self) -> bool:
        """Whether the peer is on this host, where bytes cost less than what makes them fewer."""
        return self._sock.family == socket.AF_UNIX

    def ask(
        self, kind: Kind, parts: Sequence[bytes | memoryview], answer: Kind, most_bytes: int, timeout_s: float
    ) -> memoryview:
        """Send a request; the payload of its answer, of which no more than `most_bytes` are taken.

        Raises HeUnavailable.
        """
        self._check_certificate()
        self._request = (self._request + 1) & 0xFFFFFFFF
        limits = _limits(answer, most_bytes)
        try:
            send(self._sock, kind, self._request, parts, timeout_s)
            return self._answer(receive(self._sock, limits, idle_s=timeout_s, frame_s=timeout_s), answer)
        except (PeerSlow, PeerGone, FrameError) as error:
            raise self._ended_by(error) from error

    def begin(
        self,
        kind: Kind,
        parts: Sequence[bytes | memoryview],
        answer: Kind,
        most_bytes: int,
        timeout_s: float,
        limit_s: float = inf,
    ) -> Exchange:
        """Send a request as far as that goes without waiting; `ended` has to follow before anything else."""
        self._request = (self._request + 1) & 0xFFFFFFFF
        limits = _limits(answer, most_bytes)
        sock, number = self._sock, self._request
        exchange = Exchange(sock, kind, number, parts, limits, timeout_s, limit_s, self._poll_s)
        exchange.advance(send_only=True)
        return exchange

    def ended(self, exchange: Exchange, answer: Kind) -> memoryview:
        """The payload of its answer, without waiting. Raises HeUnavailable."""
        try:
            return self._answer(exchange.frame(), answer)
        except (PeerSlow, PeerGone, FrameError) as error:
            raise self._ended_by(error) from error

    def garbage(self, what: str, error: Exception) -> HeUnavailable:
        """Close it after an answer that cannot be one; to be raised."""
        self.close()
        return HeUnavailable(GARBAGE, f"the adapter holder's {what}: {error}")

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._sock.close()

    def _vouched_for(self) -> bool:
        """Whether the adapter holder's certificate holds; if not, it is closed."""
        try:
            self._check_certificate()
        except HeUnavailable:
            return False
        return True

    def _check_certificate(self) -> None:
        """Close it and raise HeUnavailable where the adapter holder's does not hold any more."""
        if self._standing is None:
            return
        try:
            self._standing.check()
        except HeUnavailable as error:
            log.warning("connection ended: %s", error)
            self.close()
            raise

    def _answer(self, frame: Frame, answer: Kind) -> memoryview:
        if frame.kind is Kind.ERROR:
            refusal = self._refusal(frame)
            if _of_silence(frame, refusal) and self._answered:
                raise PeerGone("the adapter holder has closed the connection")
            if frame.request == 0:  # of the connection, which it has ended
                self.close()
            raise refusal
        self._answered = time.monotonic()
        if frame.kind is not answer or frame.request != self._request:
            raise FrameError("the answer belongs to another request")
        return frame.payload

    def _ended_by(self, error: PeerSlow | PeerGone | FrameError) -> HeUnavailable:
        """Close it; what ended it as one of the port's codes."""
        word = self._last_word() if isinstance(error, PeerGone) else None
        self.close()
        if word is not None:
            return word
        match error:
            case PeerSlow():
                return HeUnavailable(TIMEOUT, "the adapter holder did not answer in time")
            case PeerGone():
                return _gone(error)
            case OtherVersion():
                return HeUnavailable(VERSION_MISMATCH, f"the adapter holder is of another release: {error}")
        return HeUnavailable(GARBAGE, f"the adapter holder sent something else: {error}")

    def _last_word(self) -> HeUnavailable | None:
        """Why it has closed the connection, which it says without reading on what is being sent to it."""
        try:
            limits = {Kind.ERROR: TO_KEY_HOLDER[Kind.ERROR]}
            frame = receive(self._sock, limits, idle_s=_LAST_WORD_S, frame_s=_LAST_WORD_S)
            refusal = self._refusal(frame)
        except (PeerSlow, PeerGone, FrameError):
            return None
        return None if _of_silence(frame, refusal) else refusal

    def _refusal(self, frame: Frame) -> HeUnavailable:
        refusal = parsed(Refusal, frame.payload)
        if refusal.code not in WIRE_CODES:
            raise FrameError("a refusal with an unknown code")
        return HeUnavailable(refusal.code, refusal.message)

    def _checked(self, payload: memoryview, wanted: Wanted) -> tuple[AdapterInfo, bytes]:
        try:
            welcome = parsed(Welcome, payload)
        except FrameError as error:
            raise HeUnavailable(GARBAGE, f"the adapter holder's greeting: {error}") from error
        info = welcome.info()
        if info.parameters != PARAMETERS:
            raise HeUnavailable(PARAMETERS_REFUSED, "the adapter holder uses other parameters")
        if info.name != wanted.adapter or wanted.version not in (None, info.version):
            raise HeUnavailable(VERSION_MISMATCH, "the adapter holder offers another adapter or version")
        return info, bytes.fromhex(welcome.nonce)


def _of_silence(frame: Frame, refusal: HeUnavailable) -> bool:
    """Whether it is said of no request, after a long silence: TLS shows it with the next answer only."""
    return frame.request == 0 and refusal.code == TIMEOUT


def _limits(answer: Kind, most_bytes: int) -> dict[Kind, int]:
    """What may come back: the one answer, as long as its request makes it, or a refusal."""
    return {answer: min(most_bytes, TO_KEY_HOLDER[answer]), Kind.ERROR: TO_KEY_HOLDER[Kind.ERROR]}


def _gone(error: PeerGone) -> HeUnavailable:
    """In TLS 1.3 the server refuses a certificate after the client's handshake is over: it shows here."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        return _of_tls(cause)
    return HeUnavailable(HOLDER_ABSENT, "the adapter holder closed the connection")


def _of_tls(error: ssl.SSLError) -> HeUnavailable:
    """A peer that ends in the midst of TLS has gone; one that says why not has refused, or is refused."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or error.reason is None:
        return HeUnavailable(HOLDER_ABSENT, "the adapter holder ended the connection")
    if isinstance(error, ssl.SSLCertVerificationError):
        return HeUnavailable(
            CERTIFICATE_REFUSED, f"the adapter holder's certificate is not accepted: {error.verify_message}"
        )
    if "ALERT" in error.reason and any(word in error.reason for word in _OF_CERTIFICATES):
        return HeUnavailable(
            CERTIFICATE_REFUSED, f"the adapter holder does not accept this certificate: {error.reason}"
        )
    return HeUnavailable(GARBAGE, f"the adapter holder speaks another TLS, or none: {error.reason}")
