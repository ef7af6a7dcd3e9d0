"""A bell between the processes of one machine, over datagram unix sockets in a private folder.

Each process binds one socket; a ring sends the topic to every socket there. A ring may be lost (a full
buffer, a killed process) or false (topics share counters): whoever waits looks at the truth.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import secrets
import select
import socket
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)
_COUNTERS: Final = 1024
_TOPIC_MAX_BYTES: Final = 2048
_RETRY_AFTER_S: Final = 0.005
_RETRIES: Final = 20
_SUFFIX: Final = ".bell"

Listener = Callable[[str], None]


class TopicCounters:
    """Counts of rings by topic within a process, in a fixed number of counters, and who waits for them."""

    def __init__(self) -> None:
        self._counts = [0] * _COUNTERS
        self._changed = [threading.Condition() for _ in range(_COUNTERS)]

    def add(self, topic: str) -> None:
        slot = _slot(topic)
        with self._changed[slot]:
            self._counts[slot] += 1
            self._changed[slot].notify_all()

    def count(self, topic: str) -> int:
        return self._counts[_slot(topic)]

    def wait(self, topic: str, *, since: int, timeout_s: float) -> int:
        slot = _slot(topic)
        with self._changed[slot]:
            self._changed[slot].wait_for(lambda: self._counts[slot] > since, max(0.0, timeout_s))
            return self._counts[slot]


class UnixBell:
    """The bell port between processes that share `directory`. Implements `Bell`.

    Make one per process, after any fork, and close it. The folder must be the service's own: a false
    topic from elsewhere could only cost a look at the truth, but the folder is made 0700 all the same.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Addresses go through this descriptor: a socket path is cut at 108 bytes, a folder's is not.
        self._directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directory = f"/proc/self/fd/{self._directory_fd}"
        self._counters = TopicCounters()
        self._listeners: dict[int, Listener] = {}
        self._listeners_lock = threading.Lock()
        self._sending = threading.Lock()
        self._unsent: dict[tuple[str, bytes], int] = {}
        self._closed = threading.Event()
        self._name = f"{os.getpid()}-{secrets.token_hex(6)}{_SUFFIX}"
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._receiver = self._bind()
        self._wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
        self._thread.start()

    def ring(self, topic: str) -> None:
        self._heard(topic)
        payload = topic.encode("utf-8", "replace")
        if len(payload) > _TOPIC_MAX_BYTES:
            return
        with self._sending:
            if self._closed.is_set():
                return
            for name in self._others():
                if not self._send(name, payload):
                    self._unsent[name, payload] = _RETRIES
            if self._unsent:
                self._wake_thread()

    def wait(self, topic: str, *, since: int, timeout_s: float) -> int:
        return self._counters.wait(topic, since=since, timeout_s=timeout_s)

    def count(self, topic: str) -> int:
        return self._counters.count(topic)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(topic)` for every ring, of this process too; returns what ends it.

        It runs in the bell's thread or the ringing one and must return at once, as
        `loop.call_soon_threadsafe(...)` does. What it raises is logged.
        """
        token = secrets.randbits(63)
        with self._listeners_lock:
            self._listeners[token] = listener

        def unsubscribe() -> None:
            with self._listeners_lock:
                self._listeners.pop(token, None)

        return unsubscribe

    def close(self) -> None:
        """Stop hearing; ringing is then without effect on other processes. Idempotent."""
        with self._sending:
            if self._closed.is_set():
                return
            self._closed.set()
            self._wake_thread()
        self._thread.join()
        self._remove(self._name)
        for channel in (self._receiver, self._sender):
            channel.close()
        os.close(self._wakeup_fd)
        os.close(self._directory_fd)

    def _bind(self) -> socket.socket:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        aside = f"{self._directory}/{self._name}.new"
        receiver.bind(aside)
        os.chmod(aside, 0o600)
        # It gets its name when it is ready: a ringer takes a socket that refuses for dead and removes it.
        os.rename(aside, f"{self._directory}/{self._name}")
        return receiver

    def _others(self) -> list[str]:
        try:
            names = os.listdir(self._directory)
        except OSError as error:
            _log.warning("bell folder unreadable: errno %s", error.errno)
            return []
        return [name for name in names if name.endswith(_SUFFIX) and name != self._name]

    def _send(self, name: str, payload: bytes) -> bool:
        """Whether there is nothing more to do: sent, or nobody there. False if the buffer was full."""
        try:
            self._sender.sendto(payload, f"{self._directory}/{name}")
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return False
            if error.errno == errno.ECONNREFUSED:
                self._remove(name)
            elif error.errno != errno.ENOENT:
                _log.warning("ring not sent: errno %s", error.errno)
        return True

    def _remove(self, name: str) -> None:
        try:
            os.unlink(f"{self._directory}/{name}")
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning("bell socket not removed: errno %s", error.errno)

    def _heard(self, topic: str) -> None:
        self._counters.add(topic)
        with self._listeners_lock:
            listeners = list(self._listeners.values())
        for listener in listeners:
            try:
                listener(topic)
            except Exception:  # noqa: BLE001 (one listener must not deafen the others)
                _log.exception("a bell listener failed")

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._receiver, select.POLLIN)
        poller.register(self._wakeup_fd, select.POLLIN)
        retry_at = math.inf
        while not self._closed.is_set():
            pause_s = max(0.0, retry_at - time.monotonic())
            poller.poll(None if pause_s == math.inf else math.ceil(pause_s * 1000))
            self._receive_all()
            if time.monotonic() >= retry_at:
                self._retry_unsent()
                retry_at = math.inf
            if self._unsent and retry_at == math.inf:
                retry_at = time.monotonic() + _RETRY_AFTER_S

    def _receive_all(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wakeup_fd)
        with suppress(BlockingIOError):
            while True:
                self._heard(self._receiver.recv(_TOPIC_MAX_BYTES).decode("utf-8", "replace"))

    def _retry_unsent(self) -> None:
        """Send again what found a full buffer, for a tenth of a second; equal topics are sent once."""
        with self._sending:
            waiting, self._unsent = self._unsent, {}
            for (name, payload), left in waiting.items():
                if not self._send(name, payload) and left > 1:
                    self._unsent[name, payload] = left - 1

    def _wake_thread(self) -> None:
        try:
            os.eventfd_write(self._wakeup_fd, 1)
        except OSError as error:
            _log.warning("bell thread not woken: errno %s", error.errno)


def _slot(topic: str) -> int:
    return zlib.crc32(topic.encode("utf-8", "replace")) % _COUNTERS
