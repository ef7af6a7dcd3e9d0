"""The sampling loop: many requests of one base model's queue in flight in one vLLM engine.

Sampling is stateless given the weights, so a request that dies with its engine is simply taken again. Its
tries are counted in the log, when the engine is given it and not while it waits; at three it is set aside
as poison. `Turns` keeps a suspect away from the innocent, who therefore never reach the third try.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tensafe.contracts.errors import TensafeError, Unavailable
from tensafe.correlation import correlated
from tensafe.operations.doorbell import request_id_in, sample_queue
from tensafe.services import Services
from tensafe.storage.ports import Message, StaleReceipt
from tensafe_gpu.sampler.answering import Answering, ids_of
from tensafe_gpu.sampler.beginnings import Beginnings
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.in_flight import Held, InFlight
from tensafe_gpu.sampler.text import Texts
from tensafe_gpu.sampler.threads import StorageThreads
from tensafe_gpu.sampler.weights import Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Times in seconds."""

    visibility_s: float = 12.0
    heartbeat_s: float = 3.0
    receive_wait_s: float = 2.0
    max_in_flight: int = 128
    pause_s: float = 1.0
    """Before something is tried again that storage did not allow."""
    stop_grace_s: float = 10.0


class SamplerWorker:
    """Serves one base model's sampling queue until stopped or until the engine dies.

    `owner` names this process incarnation, never reused.
    """

    def __init__(
        self,
        services: Services,
        base_model: str,
        engine: SamplingEngine,
        *,
        owner: str,
        texts: Texts,
        settings: SamplerSettings | None = None,
        private: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        self._services = services
        self._queue = sample_queue(base_model)
        self._engine = engine
        self._settings = settings or SamplerSettings()
        self._in_thread = StorageThreads()
        self._beginnings = Beginnings(
            services.outcomes,
            owner,
            in_thread=self._in_thread,
            healthy=lambda: engine.healthy,
            pause_s=self._settings.pause_s,
        )
        self._answering = Answering(
            services,
            engine,
            owner=owner,
            weights=Weights(services, private=private),
            texts=texts,
            beginnings=self._beginnings,
            in_thread=self._in_thread,
        )
        self._in_flight = InFlight(
            services,
            self._queue,
            visibility_s=self._settings.visibility_s,
            heartbeat_s=self._settings.heartbeat_s,
        )

    @property
    def busy(self) -> bool:
        """Whether requests are in hand; for other threads."""
        return len(self._in_flight) > 0

    async def run(self, stop: threading.Event) -> None:
        """Serve until `stop`; what then has not ended in `stop_grace_s` is handed back at once.

        Raises Unavailable when the engine has died: the process must be replaced.
        """
        served = threading.Event()
        self._in_flight.keep(served, asyncio.get_running_loop())
        tasks: set[asyncio.Task[None]] = set()
        try:
            while not stop.is_set() and self._engine.healthy:
                if len(self._in_flight) >= self._settings.max_in_flight:
                    await asyncio.wait(
                        tasks, timeout=self._settings.receive_wait_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    continue
                for held in await self._received():
                    held.task = asyncio.create_task(self._serve(held))
                    tasks.add(held.task)
                    held.task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks, timeout=self._settings.stop_grace_s)
            if self._engine.healthy:
                await self._hand_all_back()
        finally:
            served.set()
        if not self._engine.healthy:
            raise Unavailable("the engine has died")

    async def _hand_all_back(self) -> None:
        """For another sampler: no try is counted, and each message can be received again at once."""
        left = self._in_flight.all()
        for held in left:
            if held.task is not None:
                held.task.cancel()
        await asyncio.gather(*(held.task for held in left if held.task), return_exceptions=True)
        left = [held for held in left if not held.answered]
        await self._beginnings.arrived(left, self._settings.stop_grace_s)
        for held in left:
            await self._in_thread(self._give_back, held)

    def _give_back(self, held: Held) -> None:
        try:
            self._beginnings.put_back_now(held)
        except TensafeError:
            log.warning("try not uncounted", extra=ids_of(held))
        try:
            # A new one: handing this one back would count as a receive, and three end in the dead queue.
            self._services.ports.queues.send(self._queue, held.message.body)
        except TensafeError:
            self._hand_back(held.message)
        else:
            self._drop(held.message)

    async def _received(self) -> list[Held]:
        try:
            return await self._in_thread(self._receive)
        except TensafeError as error:
            log.warning("nothing received: %s", error.code)
            await asyncio.sleep(self._settings.pause_s)
            return []

    def _receive(self) -> list[Held]:
        room = self._settings.max_in_flight - len(self._in_flight)
        messages = self._services.ports.queues.receive(
            self._queue,
            visibility_s=self._settings.visibility_s,
            max_messages=max(1, min(10, room)),
            wait_s=self._settings.receive_wait_s,
        )
        taken: list[Held] = []
        for message in messages:
            try:
                held = self._in_flight.add(message)
            except (KeyError, ValueError):
                log.error("a message that is not ours", extra={"queue": self._queue})
                continue  # it comes back, and is set aside by the queue
            if held is None:
                self._drop(message)  # nothing that fails here may lose those that are taken
            else:
                taken.append(held)
        return taken

    async def _serve(self, held: Held) -> None:
        """One message: its operation ends, or the message goes back."""
        with correlated(request_id_in(held.message.body)):
            await self._serve_correlated(held)

    async def _serve_correlated(self, held: Held) -> None:
        done = False
        try:
            done = await self._answering.answer(held)
        except asyncio.CancelledError:
            if not held.ended:
                raise
            done = True
        except Exception as error:
            log.error("request handed back: %s", type(error).__name__, exc_info=error, extra=ids_of(held))
        finally:
            # Before the message can be received again: a second one for what is in hand is dropped.
            self._in_flight.remove(held)
        if done:
            held.answered = True
            await self._in_thread(self._drop, held.message)
        elif self._engine.healthy:
            await asyncio.sleep(self._settings.pause_s)
            await self._in_thread(self._hand_back, held.message)
        # Else nobody here could answer it: it comes back when this process is gone.

    def _drop(self, message: Message) -> None:
        try:
            self._services.ports.queues.delete(self._queue, message.receipt)
        except TensafeError:
            log.warning("message not deleted: it comes back, and there is nothing left to do for it")

    def _hand_back(self, message: Message) -> None:
        try:
            self._services.ports.queues.extend(self._queue, message.receipt, 0)
        except StaleReceipt:
            return
        except TensafeError:
            log.warning("message not handed back: it comes back when its time is up")
