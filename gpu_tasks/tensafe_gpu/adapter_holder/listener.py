"""The adapter holder's connections: a thread for each peer that speaks, and bounded time for every frame."""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from tensafe.contracts.errors import ConfigurationError, IntegrityError, TensafeError
from tensafe_gpu.adapter_holder import places
from tensafe_gpu.adapter_holder.door import Door
from tensafe_gpu.adapter_holder.places import Visitor, Waiting
from tensafe_gpu.adapter_holder.room import WhileWaiting
from tensafe_gpu.adapter_holder.service import HolderService, Over, Session
from tensafe_gpu.helora.frames import (
    GREETING,
    Frame,
    FrameError,
    Kind,
    OtherVersion,
    PeerCut,
    PeerGone,
    PeerIdle,
    PeerSlow,
    receive,
    send,
)
from tensafe_gpu.helora.messages import packed_refusal
from tensafe_gpu.helora.ports import (
    CERTIFICATE_REFUSED,
    GARBAGE,
    HOLDER_ABSENT,
    TIMEOUT,
    VERSION_MISMATCH,
    HeUnavailable,
)
from tensafe_gpu.helora.standing import LOOK_S, Standing
from tensafe_gpu.helora.tls import Contexts, shake_hands, tenant_of, wrapped

log = logging.getLogger(__name__)

_ONLINE: Final = (Kind.PRODUCTS, Kind.DIRECT)
_ONLINE_S: Final = 2.0
"""A sampler gives an online answer up after 3 s."""
_LAST_WORD_S: Final = 0.5
_AT_ONCE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: from connecting to the end of HELLO, between frames, for one whole frame, for a peer to take
    one, between looks at whether a connection that is silent may go on.
    """

    greeting_s: float = 10.0
    idle_s: float = 3600.0
    frame_s: float = 30.0
    look_s: float = LOOK_S


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
        self._service, self._tls = service, tls
        self._patience = patience or Patience()
        self._greeting = Waiting(places.MAX_GREETING)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._door = Door(
            sock,
            self._patience.greeting_s,
            spoke=self._spoke,
            too_late=self._too_late,
            turned_away=self._turned_away,
        )

    def serve_forever(self) -> None:
        """Accept until `close`."""
        self._door.serve_forever()

    def close(self) -> None:
        """Stop accepting, and close every connection."""
        self._door.close()
        with self._lock:
            self._closed = True
            for peer in self._open:
                _cut(peer)

    def _spoke(self, visitor: Visitor) -> None:
        """It gets a thread; of those that have one and have not greeted, the oldest goes if they are many."""
        with self._lock:
            if self._closed:
                visitor.sock.close()
                return
            self._open.add(visitor.sock)
            out = self._greeting.enter(visitor)
            if out is not None:
                self._turned_away()
                _cut(out.sock)
        threading.Thread(target=self._serve, args=(visitor,), name="key-holder", daemon=True).start()

    def _too_late(self, visitor: Visitor) -> None:
        log.info("connection dropped: silent peer")
        if self._tls is None:
            self._tell(visitor.sock, 0, TIMEOUT, "a frame did not arrive in time")

    def _gone(self, error: PeerGone) -> None:
        if isinstance(error, PeerCut):
            self._service.counters["cut frames"] += 1
            log.warning("connection dropped: cut inside a frame")

    def _turned_away(self) -> None:
        self._service.counters["turned away"] += 1

    def _serve(self, visitor: Visitor) -> None:
        session: Session | None = None
        try:
            sock = self._secured(visitor)
            session = self._greeted(sock, visitor)
            standing = self._standing(sock)
            if session is not None:
                session.waiting = self._looking(sock, session, standing)
            # No frame outlives its answer: nothing here has a name for it.
            while session is not None and self._answered(
                sock, session, standing, self._next(sock, session, standing)
            ):
                session.frame_room.give_back()
        except PeerGone as error:
            self._gone(error)
        except PeerSlow:
            log.warning("connection dropped: slow peer")
            self._tell(visitor.sock, 0, TIMEOUT, "a frame did not arrive in time")
        except FrameError as error:
            log.warning("connection dropped: not the protocol", extra={"reason": str(error)})
            self._tell(
                visitor.sock, 0, VERSION_MISMATCH if isinstance(error, OtherVersion) else GARBAGE, str(error)
            )
        except Over as error:
            log.info("connection ended: over", extra={"code": error.code})
            self._tell(visitor.sock, 0, error.code, str(error))
        except ssl.SSLError as error:
            log.warning(
                "connection dropped: TLS",
                extra={"reason": error.reason, "verify": getattr(error, "verify_message", None)},
            )
            _let_it_read(visitor.sock)
        except TimeoutError:
            log.warning("connection dropped: slow handshake")
        except OSError as error:
            log.warning("connection dropped", extra={"errno": error.errno})
        except Exception as error:  # noqa: BLE001 - this peer's thread: all others go on
            log.error("connection dropped: request failed", extra={"error": type(error).__name__})
            self._tell(visitor.sock, 0, HOLDER_ABSENT, "the adapter holder failed at this request")
        finally:
            # Its places first: whoever sees it closed finds them free.
            self._greeting.leave(visitor)
            if session is not None:
                session.close()
            with self._lock:
                self._open.discard(visitor.sock)
            with suppress(OSError):
                visitor.sock.close()

    def _secured(self, visitor: Visitor) -> socket.socket:
        """What is read from: the peer itself, or TLS over it, which has taken its descriptor."""
        if self._tls is None:
            return visitor.sock
        visitor.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self._tls()
        with self._lock:  # whoever cuts it has to have the descriptor
            self._open.remove(visitor.sock)
            visitor.sock = sock = wrapped(visitor.sock, context)
            self._open.add(sock)
        shake_hands(sock, _left_s(visitor))
        return sock

    def _greeted(self, sock: socket.socket, visitor: Visitor) -> Session | None:
        wait_s = _left_s(visitor)
        frame = receive(sock, GREETING, idle_s=wait_s, frame_s=wait_s)
        self._greeting.leave(visitor)
        try:
            certified = tenant_of(sock) if isinstance(sock, ssl.SSLSocket) else None
        except ssl.SSLError as error:
            self._refuse(sock, frame, HeUnavailable(CERTIFICATE_REFUSED, str(error)))
            return None
        try:
            session, (kind, parts) = self._service.greet(frame, certified)
        except HeUnavailable as error:
            self._refuse(sock, frame, error)
            return None
        except TensafeError as error:
            self._refuse(sock, frame, _own_failure(error))
            return None
        try:
            send(sock, kind, frame.request, parts, self._patience.frame_s)
        except BaseException:
            session.close()
            raise
        facts = {"tenant": session.offer.tenant, "adapter": session.offer.adapter}
        log.info("key holder greeted", extra=facts)
        return session

    def _standing(self, sock: socket.socket) -> Standing | None:
        if not isinstance(sock, ssl.SSLSocket) or self._tls is None:
            return None
        try:
            return Standing(sock, self._tls, look_s=self._patience.look_s)
        except ValueError as error:  # of a certificate that OpenSSL takes and `cryptography` does not
            raise Over(CERTIFICATE_REFUSED, "the peer's certificate cannot be read") from error

    def _looking(self, sock: socket.socket, session: Session, standing: Standing | None) -> WhileWaiting:
        """For as long as a request waits for memory: whether its peer is there, and may go on."""

        def look() -> None:
            session.check()
            _check(standing)
            if _hung_up(sock):
                raise PeerGone("the connection is closed")

        return WhileWaiting(self._patience.look_s, look)

    def _next(self, sock: socket.socket, session: Session, standing: Standing | None) -> Frame:
        """The next request. Raises Over if there may be none, or no memory is left for it."""
        look_s, silent_s = min(self._patience.look_s, self._patience.idle_s), 0.0
        frame_s = self._patience.frame_s

        while True:
            try:
                return receive(
                    sock,
                    session.limits,
                    idle_s=look_s,
                    frame_s=frame_s,
                    admit=partial(self._make_room, session),
                )
            except PeerIdle:
                silent_s += look_s
                if silent_s >= self._patience.idle_s:
                    raise
                session.check()
                _check(standing)

    def _make_room(self, session: Session, kind: Kind, size_bytes: int) -> None:
        """For a frame whose header has come. Raises Over if there is none, or may be none any more; PeerGone.

        A forward pass waits for an online answer, and not for long; preprocessing can wait.
        """
        wait_s = _ONLINE_S if kind in _ONLINE else self._patience.frame_s
        try:
            session.frame_room.take(size_bytes, wait_s, session.waiting)
        except Over:
            raise
        except HeUnavailable as error:
            raise Over(error.code, str(error)) from error  # what follows the header is not read

    def _answered(
        self, sock: socket.socket, session: Session, standing: Standing | None, frame: Frame
    ) -> bool:
        """Whether the connection goes on."""
        try:
            _check(standing)
            kind, parts = session.answer(frame)
        except HeUnavailable as error:
            self._refuse(sock, frame, error)
            return not isinstance(error, Over)
        except TensafeError as error:
            self._refuse(sock, frame, _own_failure(error))
            return True
        send(sock, kind, frame.request, parts, self._patience.frame_s)
        session.prepare_next()
        return True

    def _refuse(self, sock: socket.socket, frame: Frame, error: HeUnavailable) -> None:
        self._service.counters[f"refused {error.code}"] += 1
        log.warning("request refused", extra={"code": error.code, "kind": frame.kind.name})
        self._tell(sock, frame.request, error.code, str(error))

    def _tell(self, sock: socket.socket, request: int, code: str, message: str) -> None:
        refusal = packed_refusal(code, message)
        with suppress(PeerGone, PeerSlow, OSError):
            send(sock, Kind.ERROR, request, [refusal], self._patience.greeting_s)


def _check(standing: Standing | None) -> None:
    """Raises Over: no request of this connection is answered any more."""
    if standing is not None:
        try:
            standing.check()
        except HeUnavailable as error:
            raise Over(error.code, str(error)) from error


def _left_s(visitor: Visitor) -> float:
    return max(0.0, visitor.deadline - time.monotonic())


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer has closed it, though bytes of it may be left to read."""
    ready = select.poll()
    ready.register(sock, select.POLLRDHUP)
    return bool(ready.poll(0))


def _let_it_read(peer: socket.socket) -> None:
    """Give a peer time to read why it was refused: closed with something unread, the kernel would reset the
    connection, and the peer would take this side for one that has gone.
    """
    until = time.monotonic() + _LAST_WORD_S
    with suppress(OSError):
        socket.socket.shutdown(peer, socket.SHUT_WR)
        while (left_s := until - time.monotonic()) > 0:
            peer.settimeout(left_s)
            if not socket.socket.recv(peer, _AT_ONCE_BYTES):
                return


def _cut(peer: socket.socket) -> None:
    """End a connection that its own thread reads from, which closes it.

    As a plain socket: SSLSocket.shutdown takes TLS off first, and the other thread would go on without it.
    """
    with suppress(OSError):
        socket.socket.shutdown(peer, socket.SHUT_RDWR)


def _own_failure(error: TensafeError) -> HeUnavailable:
    """What a peer is told of a failure that is not its doing."""
    log.error("request failed", extra={"error": type(error).__name__, "code": error.code})
    if isinstance(error, IntegrityError):
        return HeUnavailable(HOLDER_ABSENT, "the stored adapter has another digest, or is damaged")
    return HeUnavailable(HOLDER_ABSENT, "the adapter holder's store does not answer")
