"""One request: its weights and its turn, its continuations, and what is committed of them."""

from __future__ import annotations

import logging
import time
from functools import partial

from tensafe.contracts.errors import HeRefused, TensafeError, Unavailable
from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleRequest, SampleResult
from tensafe.contracts.text import TextPayload
from tensafe.correlation import correlated
from tensafe.metrics.port import Metric
from tensafe.operations.records import Failure, Operation, OpKind, StreamRecord, StreamState
from tensafe.operations.streams import now_ms
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Item, Message
from tensafe_gpu.sampler.answers import sample_answer, text_answer
from tensafe_gpu.sampler.attesting import attested
from tensafe_gpu.sampler.beginnings import Beginnings
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.in_flight import Held
from tensafe_gpu.sampler.residency import AnyAdapter
from tensafe_gpu.sampler.streaming import streamed
from tensafe_gpu.sampler.text import Texts
from tensafe_gpu.sampler.threads import StorageThreads
from tensafe_gpu.sampler.turns import Turns
from tensafe_gpu.sampler.weights import Weights, WeightsFailed, WeightsPending

log = logging.getLogger(__name__)

Payload = SamplePayload | TextPayload


class Answering:
    """Of one sampler, named `owner`."""

    def __init__(
        self,
        services: Services,
        engine: SamplingEngine,
        *,
        owner: str,
        weights: Weights,
        texts: Texts,
        beginnings: Beginnings,
        in_thread: StorageThreads,
    ) -> None:
        self._services, self._engine, self._owner = services, engine, owner
        self._weights, self._texts, self._beginnings = weights, texts, beginnings
        self._in_thread, self._turns = in_thread, Turns()

    async def answer(self, held: Held) -> bool:
        """Sample and commit; True when nothing is left to do for this message."""
        found = await self._in_thread(self._open, held.message)
        if found is None:
            return True
        stream, operation, stored = found
        with (
            correlated(operation.request_id, operation.traceparent),
            self._services.tracer.span("sample", operation.traceparent, **ids_of(operation)),
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

    def _log_done(self, operation: Operation, began: float, outcome: str) -> None:
        self._services.metrics.add(Metric.OPERATIONS_ENDED, kind=operation.kind.value, outcome=outcome)
        log.info(
            "sample %s",
            outcome,
            extra={
                **ids_of(operation),
                "duration_ms": round((time.monotonic() - began) * 1000, 1),
                "queued_ms": now_ms() - operation.created_ms,
            },
        )


def ids_of(of: Held | Operation) -> dict[str, str | int]:
    """For a line of the log."""
    return {"stream": of.stream_id, "seq": of.seq}
