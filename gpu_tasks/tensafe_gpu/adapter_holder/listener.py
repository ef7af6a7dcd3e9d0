"""The adapter holder's sockets: a thread per connection, a bounded number of them, bounded time per frame."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError, IntegrityError, TensafeError
from tensafe_gpu.adapter_holder.service import HolderService, Session
from tensafe_gpu.helora.frames import (
    GREETING,
    TO_ADAPTER_HOLDER,
    Frame,
    FrameError,
    Kind,
    OtherVersion,
    PeerGone,
    PeerSlow,
    receive,
    send,
)
from tensafe_gpu.helora.messages import Refusal, packed
from tensafe_gpu.helora.ports import GARBAGE, HOLDER_ABSENT, TIMEOUT, VERSION_MISMATCH, HeUnavailable
from tensafe_gpu.helora.tls import Contexts, secured, tenant_of

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: from connecting to the end of HELLO, between frames, for one whole frame, for a peer to take
    one.
    """

    greeting_s: float = 10.0
    idle_s: float = 3600.0
    frame_s: float = 30.0


def unix_listener(path: Path) -> socket.socket:
    """A socket that only this user can reach. Raises ConfigurationError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(old)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"cannot listen on {path}: {error.strerror}", field="listen") from error
    return sock


def tcp_listener(host: str, port: int) -> socket.socket:
    """A TCP socket, to be used with a TLS context alone. Raises ConfigurationError."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}", field="listen"
        ) from error


class Listener:
    """Accepts connections until closed. A TCP socket needs `tls`: without it nothing is served on it."""

    def __init__(
        self,
        service: HolderService,
        sock: socket.socket,
        *,
        tls: Contexts | None = None,
        patience: Patience | None = None,
    ) -> None:
        if sock.family != socket.AF_UNIX and tls is None:
            raise ConfigurationError("TCP is served over mutual TLS alone", field="listen")
        self._service, self._sock, self._tls = service, sock, tls
        self._patience = patience or Patience()
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def serve_forever(self) -> None:
        """Accept until `close`."""
        while True:
            try:
                peer, _ = self._sock.accept()
            except OSError:
                if self._closed:
                    return
                raise
            if not self._slots.acquire(blocking=False):
                log.warning("connection refused: too many")
                peer.close()
                continue
            with self._lock:
                self._open.add(peer)
            threading.Thread(target=self._serve, args=(peer,), name="key-holder", daemon=True).start()

    def close(self) -> None:
        """Stop accepting, and close every connection."""
        self._closed = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        with self._lock:
            for peer in self._open:
                with suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)

    def _serve(self, peer: socket.socket) -> None:
        session: Session | None = None
        sock = peer
        try:
            sock = self._secured(peer)
            session = self._greeted(sock, tenant_of(sock) if isinstance(sock, ssl.SSLSocket) else None)
            while session is not None:
                frame = receive(
                    sock, TO_ADAPTER_HOLDER, idle_s=self._patience.idle_s, frame_s=self._patience.frame_s
                )
                self._answer(sock, session, frame)
        except PeerGone:
            pass
        except PeerSlow:
            log.warning("connection dropped: slow peer")
            self._tell(sock, 0, TIMEOUT, "a frame did not arrive in time")
        except FrameError as error:
            log.warning("connection dropped: not the protocol", extra={"reason": str(error)})
            self._tell(sock, 0, VERSION_MISMATCH if isinstance(error, OtherVersion) else GARBAGE, str(error))
        except ssl.SSLError as error:
            log.warning("connection dropped: TLS", extra={"reason": error.reason})
        except TimeoutError:
            log.warning("connection dropped: slow handshake")
        except OSError as error:
            log.warning("connection dropped", extra={"errno": error.errno})
        except Exception as error:  # noqa: BLE001 - this peer's thread: all others go on
            log.error("connection dropped: request failed", extra={"error": type(error).__name__})
            self._tell(sock, 0, HOLDER_ABSENT, "the adapter holder failed at this request")
        finally:
            if session is not None:
                session.close()
            with self._lock:
                self._open.difference_update((peer, sock))
            with suppress(OSError):
                sock.close()
            self._slots.release()

    def _secured(self, peer: socket.socket) -> socket.socket:
        """What is read from: the peer itself, or TLS over it, which has taken its descriptor."""
        if self._tls is None:
            return peer
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = secured(peer, self._tls(), self._patience.greeting_s)
        with self._lock:
            self._open.add(sock)
        return sock

    def _greeted(self, sock: socket.socket, certified: str | None) -> Session | None:
        wait_s = self._patience.greeting_s
        frame = receive(sock, GREETING, idle_s=wait_s, frame_s=wait_s)
        try:
            session, (kind, parts) = self._service.greet(frame, certified)
        except HeUnavailable as error:
            self._refuse(sock, frame, error)
            return None
        except TensafeError as error:
            self._refuse(sock, frame, _own_failure(error))
            return None
        send(sock, kind, frame.request, parts, self._patience.frame_s)
        facts = {"tenant": session.offer.tenant, "adapter": session.offer.adapter}
        log.info("key holder greeted", extra=facts)
        return session

    def _answer(self, sock: socket.socket, session: Session, frame: Frame) -> None:
        try:
            kind, parts = session.answer(frame)
        except HeUnavailable as error:
            self._refuse(sock, frame, error)
            return
        except TensafeError as error:
            self._refuse(sock, frame, _own_failure(error))
            return
        send(sock, kind, frame.request, parts, self._patience.frame_s)
        session.prepare_next()

    def _refuse(self, sock: socket.socket, frame: Frame, error: HeUnavailable) -> None:
        self._service.counters[f"refused {error.code}"] += 1
        log.warning("request refused", extra={"code": error.code, "kind": frame.kind.name})
        self._tell(sock, frame.request, error.code, str(error))

    def _tell(self, sock: socket.socket, request: int, code: str, message: str) -> None:
        refusal = packed(Refusal(code=code, message=message[:2000]))
        with suppress(PeerGone, PeerSlow, OSError):
            send(sock, Kind.ERROR, request, [refusal], self._patience.greeting_s)


def _own_failure(error: TensafeError) -> HeUnavailable:
    """What a peer is told of a failure that is not its doing."""
    log.error("request failed", extra={"error": type(error).__name__, "code": error.code})
    if isinstance(error, IntegrityError):
        return HeUnavailable(HOLDER_ABSENT, "the stored adapter has another digest, or is damaged")
    return HeUnavailable(HOLDER_ABSENT, "the adapter holder's store does not answer")
