"""The sampling loop: many requests of one base model's queue in flight in one vLLM engine.

Sampling is stateless given the weights, so a request that dies with its process is simply taken again.
One that was taken before runs alone, so that a request which kills the engine cannot take innocent ones
into the dead letters with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, ParamSpec, TypeVar

from tensafe.contracts.errors import TensafeError, Unavailable
from tensafe.contracts.payloads import JSON, PROTOBUF, SamplePayload
from tensafe.contracts.sampling import SampleResult
from tensafe.operations.doorbell import sample_queue
from tensafe.operations.records import Failure, Operation, Result, StreamRecord, StreamState
from tensafe.operations.streams import now_ms
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Message, StaleReceipt
from tensafe.wire.results import encode_sample, keep_last_prompt_logprobs, sample_json
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.turns import Turns
from tensafe_gpu.sampler.weights import Weights, WeightsFailed, WeightsPending

log = logging.getLogger(__name__)

_RECEIVE_WAIT_S: Final = 5.0
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Times in seconds."""

    visibility_s: float = 12.0
    heartbeat_s: float = 3.0
    max_in_flight: int = 128


class SamplerWorker:
    """Serves one base model's sampling queue until stopped or until the engine dies."""

    def __init__(
        self,
        services: Services,
        base_model: str,
        engine: SamplingEngine,
        settings: SamplerSettings | None = None,
    ) -> None:
        self._services = services
        self._queue = sample_queue(base_model)
        self._engine = engine
        self._settings = settings or SamplerSettings()
        self._weights = Weights(services)
        self._turns = Turns()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="storage")
        self._in_flight: dict[str, Message] = {}
        self._lock = threading.Lock()

    async def run(self, stop: threading.Event) -> None:
        """Serve. Raises Unavailable when the engine has died: the process must be replaced."""
        beats = threading.Thread(target=self._heartbeat, args=(stop,), name="heartbeat", daemon=True)
        beats.start()
        tasks: set[asyncio.Task[None]] = set()
        while not stop.is_set() and self._engine.healthy:
            if len(self._in_flight) >= self._settings.max_in_flight:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                continue
            for message in await self._in_thread(self._receive):
                task = asyncio.create_task(self._serve(message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=10)
        if not self._engine.healthy:
            raise Unavailable("the engine has died")

    def _receive(self) -> list[Message]:
        room = self._settings.max_in_flight - len(self._in_flight)
        messages = self._services.ports.queues.receive(
            self._queue,
            visibility_s=self._settings.visibility_s,
            max_messages=max(1, min(10, room)),
            wait_s=_RECEIVE_WAIT_S,
        )
        with self._lock:
            self._in_flight.update((message.receipt, message) for message in messages)
        return messages

    async def _serve(self, message: Message) -> None:
        """One message: its operation ends, or the message goes back and is counted."""
        began = time.monotonic()
        try:
            async with self._turns.take(alone=message.receives > 1):
                ended = await self._answer(message, began)
            if ended:
                await self._in_thread(self._services.ports.queues.delete, self._queue, message.receipt)
        except Exception as error:
            log.error("request handed back: %s", type(error).__name__, exc_info=error, extra=_ids(message))
            await self._in_thread(self._hand_back, message)
        finally:
            with self._lock:
                self._in_flight.pop(message.receipt, None)

    async def _answer(self, message: Message, began: float) -> bool:
        """Sample and commit; True when nothing is left to do for this message."""
        found = await self._in_thread(self._open, message)
        if found is None:
            return True
        stream, operation, payload = found
        try:
            adapter = await self._in_thread(self._weights.of, stream)
            result = await self._engine.sample(payload.request, adapter, cache_scope=stream.tenant)
        except WeightsPending:
            return True
        except WeightsFailed as error:
            await self._in_thread(self._fail, stream, operation, error.failure)
            return True
        except TensafeError as error:
            if isinstance(error, Unavailable):
                raise
            await self._in_thread(self._fail, stream, operation, Failure.of(error))
            self._log_done(operation, began, error.code)
            return True
        await self._in_thread(self._complete, stream, operation, payload, result)
        self._log_done(operation, began, "completed")
        return True

    def _open(self, message: Message) -> tuple[StreamRecord, Operation, SamplePayload] | None:
        """The operation behind a message, or None if there is nothing to do any more."""
        stream = self._services.streams.find(str(message.body["stream"]))
        if stream is None or stream.state is not StreamState.ACTIVE:
            return None
        operation = self._services.outcomes.peek(stream.stream_id, int(str(message.body["seq"])))
        if operation is None or operation.state.final:
            return None
        raw = self._services.outcomes.payload(stream, operation.seq)
        return stream, operation, SamplePayload.model_validate_json(raw)

    def _complete(
        self, stream: StreamRecord, operation: Operation, payload: SamplePayload, result: SampleResult
    ) -> None:
        result = keep_last_prompt_logprobs(result, payload.prompt_logprobs_last_n)
        if payload.answer == "protobuf":
            outcome = Result(PROTOBUF, encode_sample(result))
        else:
            outcome = Result(JSON, json.dumps(sample_json(result), separators=(",", ":")).encode())
        try:
            self._services.outcomes.complete(stream, operation, outcome)
        except ConditionFailed:
            log.info("result dropped: the operation ended meanwhile", extra={"stream": stream.stream_id})
            return
        self._services.outcomes.discard_payloads(stream, operation.seq, operation.seq)

    def _fail(self, stream: StreamRecord, operation: Operation, failure: Failure) -> None:
        try:
            self._services.outcomes.fail(stream, operation, failure)
        except ConditionFailed:
            return  # it was cancelled meanwhile

    def _hand_back(self, message: Message) -> None:
        try:
            self._services.ports.queues.extend(self._queue, message.receipt, 0)
        except StaleReceipt:
            return

    def _heartbeat(self, stop: threading.Event) -> None:
        while not stop.wait(self._settings.heartbeat_s):
            with self._lock:
                receipts = list(self._in_flight)
            for receipt in receipts:
                try:
                    self._services.ports.queues.extend(self._queue, receipt, self._settings.visibility_s)
                except TensafeError:
                    continue  # it ended meanwhile, or storage is busy: the next beat tries again

    async def _in_thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _log_done(self, operation: Operation, began: float, outcome: str) -> None:
        log.info(
            "sample %s",
            outcome,
            extra={
                "stream": operation.stream_id,
                "seq": operation.seq,
                "duration_ms": round((time.monotonic() - began) * 1000, 1),
                "queued_ms": now_ms() - operation.created_ms,
            },
        )


def _ids(message: Message) -> dict[str, str]:
    return {"stream": str(message.body.get("stream")), "seq": str(message.body.get("seq"))}
