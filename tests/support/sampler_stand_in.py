"""A sampler without an engine: every request is answered at once, with the tokens that it names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from tensafe.contracts.execution import Execution, ExecutionMode
from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleResult, Sequence
from tensafe.contracts.text import TextChoice, TextPayload, TextResult, TextSoFar
from tensafe.operations.doorbell import sample_queue
from tensafe.operations.records import Operation, OpKind, Result, StreamRecord
from tensafe.services import Services
from tensafe.storage.ports import Message
from tensafe_gpu.sampler.answers import sample_answer, text_answer
from tensafe_gpu.sampler.attesting import attested

_PAUSE_S: Final = 0.02


@contextmanager
def answering(services: Services, base_model: str) -> Iterator[None]:
    """As long as the block lasts; a request for `max_tokens` gets as many."""
    stop, queue = threading.Event(), sample_queue(base_model)

    def serve() -> None:
        while not stop.wait(_PAUSE_S):
            for message in services.ports.queues.receive(queue, visibility_s=30):
                _answer(services, message)
                services.ports.queues.delete(queue, message.receipt)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _answer(services: Services, message: Message) -> None:
    stream = services.streams.find(str(message.body["stream"]))
    assert stream is not None
    operation = services.outcomes.get(stream, int(str(message.body["seq"])))
    raw = services.outcomes.payload(stream, operation.seq)
    if operation.state.final:
        return
    running = services.outcomes.start(operation, ())
    result = _sampled if operation.kind is OpKind.SAMPLE else _text
    services.outcomes.complete(stream, running, result(services, stream, running, raw))


def _drawn(count: int) -> SampleResult:
    drawn = Sequence(np.full(count, 65, np.int32), np.zeros(count, np.float32), "length")
    return SampleResult((drawn,), execution=Execution(ExecutionMode.NONE, prompt_tokens=2))


def _sampled(services: Services, stream: StreamRecord, operation: Operation, raw: bytes) -> Result:
    payload = SamplePayload.model_validate_json(raw)
    result = _drawn(payload.request.params.max_tokens or 1)
    return sample_answer(
        payload, result, attested(result, stream, operation, None, None, services.ports.signer)
    )


def _text(services: Services, stream: StreamRecord, operation: Operation, raw: bytes) -> Result:
    payload = TextPayload.model_validate_json(raw)
    if payload.stream:
        part = TextSoFar(added={0: "He"}).model_dump_json().encode()
        services.progress.add(stream, operation, 0, part)
    choices = (TextChoice(text="Hello", stop_reason="stop"),) * payload.num_samples
    answer = TextResult(choices=choices, prompt_tokens=2, completion_tokens=3)
    return text_answer(answer, attested(_drawn(3), stream, operation, None, None, services.ports.signer))
