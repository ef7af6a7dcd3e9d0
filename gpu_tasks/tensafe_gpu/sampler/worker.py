"""The sampling loop: many requests of one base model's queue in flight in one vLLM engine.

Sampling is stateless given the weights, so a request that dies with its engine is simply taken again. Its
tries are counted in the log, when the engine is given it and not while it waits; at three it is set aside
as poison. `Turns` keeps a suspect away from the innocent, who therefore never reach the third try.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from tensafe.contracts.errors import HeRefused, TensafeError, Unavailable
from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleRequest, SampleResult
from tensafe.contracts.text import TextPayload
from tensafe.correlation import carried, correlated
from tensafe.metrics.port import Metric
from tensafe.operations.doorbell import request_id_in, sample_queue
from tensafe.operations.records import Failure, Operation, OpKind, StreamRecord, StreamState
from tensafe.operations.streams import now_ms
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Item, Message, StaleReceipt
from tensafe_gpu.sampler.answers import sample_answer, text_answer
from tensafe_gpu.sampler.attesting import attested
from tensafe_gpu.sampler.beginnings import Beginnings
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.in_flight import Held, InFlight
from tensafe_gpu.sampler.residency import AnyAdapter
from tensafe_gpu.sampler.streaming import streamed
from tensafe_gpu.sampler.text import Texts
from tensafe_gpu.sampler.turns import Turns
from tensafe_gpu.sampler.weights import Weights, WeightsFailed, WeightsPending

log = logging.getLogger(__name__)

Payload = SamplePayload | TextPayload
_P = ParamSpec("_P")
_T = TypeVar("_T")


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
        self._owner = owner
        self._settings = settings or SamplerSettings()
        self._weights = Weights(services, private=private)
        self._texts = texts
        self._turns = Turns()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="storage")
        self._beginnings = Beginnings(
            services.outcomes,
            owner,
            in_thread=self._in_thread,
            healthy=lambda: engine.healthy,
            pause_s=self._settings.pause_s,
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
        await self._beginnings.settled(left, self._settings.stop_grace_s)
        for held in left:
            await self._in_thread(self._give_back, held)

    def _give_back(self, held: Held) -> None:
        try:
            self._beginnings.put_back_now(held)
        except TensafeError:
            log.warning("try not uncounted", extra=_ids(held))
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
            done = await self._answer(held)
        except asyncio.CancelledError:
            if not held.ended:
                raise
            done = True
        except Exception as error:
            log.error("request handed back: %s", type(error).__name__, exc_info=error, extra=_ids(held))
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

    async def _answer(self, held: Held) -> bool:
        """Sample and commit; True when nothing is left to do for this message."""
        found = await self._in_thread(self._open, held.message)
        if found is None:
            return True
        stream, operation, stored = found
        with (
            correlated(operation.request_id, operation.traceparent),
            self._services.tracer.span("sample", operation.traceparent, **_ids(operation)),
        ):
            return await self._in_turn(held, stream, operation, stored)

    async def _in_turn(
        self, held: Held, stream: StreamRecord, operation: Operation, stored: Item | None
    ) -> bool:
        async with self._turns.take(operation.tries):
            if not self._engine.healthy:
                return False
            begun = None
            try:
                adapter = await self._in_thread(self._weights.of, stream)
                payload = await self._in_thread(self._payload, stream, operation, stored)
                begun = await self._beginnings.begin(held, operation)
            except WeightsPending:
                return True  # whoever ends the save rings again
            except WeightsFailed as error:
                await self._in_thread(self._fail, stream, operation, error.failure)
            except Unavailable:
                await self._beginnings.put_back(held, counted=False)  # nobody's fault
                raise
            except TensafeError as error:
                if held.begun is not None:  # it may be begun all the same
                    await self._beginnings.put_back(held, counted=True)
                    raise
                await self._in_thread(self._fail, stream, operation, Failure.of(error))
            except Exception:
                await self._beginnings.count(held, operation)
                raise
            else:
                return begun is None or await self._sample(held, stream, begun, payload, adapter)
        return True

    async def _sample(
        self,
        held: Held,
        stream: StreamRecord,
        operation: Operation,
        payload: Payload,
        adapter: AnyAdapter | None,
    ) -> bool:
        """Run an operation that has been marked as running; True when it has ended."""
        began, counted = time.monotonic(), True
        try:
            request = await self._in_thread(self._request, payload)
            result = await self._drawn(stream, operation, payload, request, adapter)
            counted = False  # whatever fails from here on is not the request's doing
            await self._in_thread(self._complete, stream, operation, payload, request, adapter, result)
        except HeRefused as error:  # an answer, though it says that something is not available
            return await self._failed(held, stream, operation, began, error)
        except Unavailable:
            await self._beginnings.put_back(held, counted=counted)
            return False
        except TensafeError as error:
            return await self._failed(held, stream, operation, began, error)
        except Exception:
            await self._beginnings.put_back(held, counted=counted)
            raise
        if result.execution is not None and result.execution.fallback is not None:
            self._services.metrics.add(Metric.HE_UNAVAILABLE, code=result.execution.fallback)
        self._log_done(operation, began, "completed")
        return True

    async def _failed(
        self, held: Held, stream: StreamRecord, operation: Operation, began: float, error: TensafeError
    ) -> bool:
        """Commit a failure; False, and the operation is pending again, where storage does not take it."""
        try:
            await self._in_thread(self._fail, stream, operation, Failure.of(error))
        except Unavailable:
            await self._beginnings.put_back(held, counted=False)
            return False
        if isinstance(error, HeRefused):
            self._services.metrics.add(Metric.HE_UNAVAILABLE, code=error.code)
        self._log_done(operation, began, error.code)
        return True

    async def _drawn(
        self,
        stream: StreamRecord,
        operation: Operation,
        payload: Payload,
        request: SampleRequest,
        adapter: AnyAdapter | None,
    ) -> SampleResult:
        asked = partial(
            self._engine.sample,
            request,
            adapter,
            cache_scope=stream.tenant,
            policy=payload.execution_policy,
        )
        if not isinstance(payload, TextPayload) or not payload.stream:
            return await asked()
        async with streamed(self._services, self._texts, stream, operation, payload) as on_tokens:
            return await asked(on_tokens=on_tokens)

    def _open(self, message: Message) -> tuple[StreamRecord, Operation, Item | None] | None:
        """The operation behind a message, and its stored payload; None if there is nothing to do here."""
        services = self._services
        stream_id, seq = str(message.body["stream"]), int(str(message.body["seq"]))
        found = services.outcomes.named(stream_id, seq)
        if found is None:
            return None
        stream, operation, _ = found
        if stream.state is not StreamState.ACTIVE or operation.state.final:
            return None
        if operation.owner not in (None, self._owner) and services.workers.running(operation):
            return None  # somebody else's, and the sweeper rings again should that one die
        if services.dead_letters.bury_poison(stream, operation):
            return None
        return found

    def _payload(self, stream: StreamRecord, operation: Operation, stored: Item | None) -> Payload:
        raw = self._services.outcomes.payload(stream, operation.seq, operation, stored)
        model = TextPayload if operation.kind is OpKind.TEXT else SamplePayload
        payload: Payload = model.model_validate_json(raw)
        return payload

    def _request(self, payload: Payload) -> SampleRequest:
        return self._texts.request(payload) if isinstance(payload, TextPayload) else payload.request

    def _complete(
        self,
        stream: StreamRecord,
        operation: Operation,
        payload: Payload,
        request: SampleRequest,
        adapter: AnyAdapter | None,
        result: SampleResult,
    ) -> None:
        signer, asked = self._services.ports.signer, payload.execution_policy
        word = attested(result, stream, operation, adapter, asked, signer)
        if isinstance(payload, TextPayload):
            outcome = text_answer(self._texts.result(payload, request, result), word)
        else:
            outcome = sample_answer(payload, result, word)
        try:
            self._services.outcomes.complete(stream, operation, outcome)
        except ConditionFailed:
            log.info("result dropped: the operation ended meanwhile", extra={"stream": stream.stream_id})

    def _fail(self, stream: StreamRecord, operation: Operation, failure: Failure) -> None:
        try:
            self._services.outcomes.fail(stream, operation, failure)
        except ConditionFailed:
            return  # it was cancelled meanwhile

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

    async def _in_thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, carried(call))

    def _log_done(self, operation: Operation, began: float, outcome: str) -> None:
        self._services.metrics.add(Metric.OPERATIONS_ENDED, kind=operation.kind.value, outcome=outcome)
        log.info(
            "sample %s",
            outcome,
            extra={
                **_ids(operation),
                "duration_ms": round((time.monotonic() - began) * 1000, 1),
                "queued_ms": now_ms() - operation.created_ms,
            },
        )


def _ids(of: Held | Operation) -> dict[str, str | int]:
    return {"stream": of.stream_id, "seq": of.seq}
