"""The messages that a sampler has in hand, and the thread that keeps them."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass

from tensafe.contracts.errors import TensafeError
from tensafe.operations.records import Operation
from tensafe.services import Services
from tensafe.storage.ports import Message, StaleReceipt

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Held:
    """A message in hand, and the task that answers it."""

    message: Message
    task: asyncio.Task[None] | None = None
    ended: bool = False
    """The operation has ended without us, so the task was cancelled."""
    begun: Operation | None = None
    """The operation as it is once it has been begun; None until that is tried."""
    beginning: asyncio.Future[Operation | None] | None = None
    """The call that begins it, which goes on when its task is cancelled."""
    counted: bool = False
    """Whether a try of it that failed is its own fault."""
    answered: bool = False
    """Nothing is left to do for the message."""

    @property
    def stream_id(self) -> str:
        return str(self.message.body["stream"])

    @property
    def seq(self) -> int:
        return int(str(self.message.body["seq"]))


class InFlight:
    """Changed by the serving loop and its threads, read by the thread that extends. Times in seconds.

    An operation is in hand once: a second message for it is a reminder that was sent too early.
    """

    def __init__(self, services: Services, queue: str, *, visibility_s: float, heartbeat_s: float) -> None:
        self._services = services
        self._queue = queue
        self._visibility_s = visibility_s
        self._heartbeat_s = heartbeat_s
        self._held: dict[tuple[str, int], Held] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, message: Message) -> Held | None:
        """Keep the message from now on; None if its operation is in hand already.

        Raises KeyError or ValueError for one that names no operation.
        """
        held = Held(message)
        with self._lock:
            known = self._held.setdefault((held.stream_id, held.seq), held)
        return held if known is held else None

    def all(self) -> list[Held]:
        """A copy, so that messages may come and go meanwhile."""
        with self._lock:
            return list(self._held.values())

    def remove(self, held: Held) -> None:
        """Once this returns, the message is not extended any more."""
        with self._lock:
            del self._held[held.stream_id, held.seq]

    def keep(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        """Extend everything in hand, and end what was cancelled, from a thread of its own until `stop`."""
        threading.Thread(target=self._keep, args=(stop, loop), name="heartbeat", daemon=True).start()

    def beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Extend every message once; the task of an operation that has ended meanwhile is cancelled."""
        for held in self.all():
            try:
                self._services.ports.queues.extend(self._queue, held.message.receipt, self._visibility_s)
            except StaleReceipt:
                pass  # handed out again: it will be seen that the operation is in hand
            except TensafeError:
                log.warning("message not extended; trying again", extra={"stream": held.stream_id})
                continue
            if held.task is not None and self._has_ended(held):
                held.ended = True
                loop.call_soon_threadsafe(held.task.cancel)

    def _has_ended(self, held: Held) -> bool:
        try:
            operation = self._services.outcomes.peek(held.stream_id, held.seq)
        except TensafeError:
            return False
        return operation is None or operation.state.final

    def _keep(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        while not stop.wait(self._heartbeat_s):
            try:
                self.beat(loop)
            except RuntimeError:
                return  # the loop is closed
