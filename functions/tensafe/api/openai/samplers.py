"""The sampling sessions behind the OpenAI face: one of this process for each tenant and model."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, cast

from fastapi import Request

from tensafe.api import admission, sampling
from tensafe.api.context import context_of
from tensafe.contracts.errors import Gone, NotFound
from tensafe.contracts.payloads import CheckpointRef
from tensafe.contracts.text import TextPayload
from tensafe.operations.records import Operation, OpKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe.wire.paths import CheckpointPath

_KEPT: Final = 1024
_KEPT_S: Final = 3600.0
_SCHEME: Final = "tinker://"


@dataclass(slots=True)
class _Open:
    stream: StreamRecord
    numbers: Iterator[int]
    opened_s: float


class ModelSamplers:
    """Submits text requests by the name of a model. Thread-safe.

    A session belongs to this process, which therefore numbers its requests without asking the store. It
    ends by itself a month after its last use, like every sampling session.
    """

    def __init__(self, services: Services, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services = services
        self._clock = clock
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], _Open] = OrderedDict()

    def submit(self, tenant: str, model: str, payload: TextPayload) -> tuple[StreamRecord, Operation]:
        """The request in the log. Raises NotFound for a model that the tenant does not have."""
        raw = payload.model_dump_json().encode()
        opened = self._sampler(tenant, model)
        try:
            return self._submit(opened, raw)
        except (Gone, NotFound):  # erased with its run, or by retention; perhaps the model is there again
            with self._lock:
                self._open.pop((tenant, model), None)
            return self._submit(self._sampler(tenant, model), raw)

    def _submit(self, opened: _Open, raw: bytes) -> tuple[StreamRecord, Operation]:
        with self._lock:
            number = next(opened.numbers)
        submission = Submission(number, OpKind.TEXT, raw)
        return opened.stream, admission.submit(self._services, opened.stream, submission)

    def _sampler(self, tenant: str, model: str) -> _Open:
        key = (tenant, model)
        with self._lock:
            known = self._open.get(key)
            if known is not None and self._clock() - known.opened_s < _KEPT_S:
                self._open.move_to_end(key)
                return known
        base_model, weights = _named(model)
        stream = sampling.open_sampler(
            self._services,
            tenant,
            f"o-{secrets.token_hex(16)}:sample:0",
            base_model=base_model,
            weights=weights,
            session_id=None,
        )
        opened = _Open(stream, itertools.count(1), self._clock())
        with self._lock:
            self._open[key] = opened
            while len(self._open) > _KEPT:
                self._open.popitem(last=False)
        return opened


def samplers_of(request: Request) -> ModelSamplers:
    """Those of the application, made for its first request of text. For the event loop's thread alone."""
    state = request.app.state
    if not hasattr(state, "model_samplers"):
        state.model_samplers = ModelSamplers(context_of(request).services)
    return cast(ModelSamplers, state.model_samplers)


def _named(model: str) -> tuple[str | None, CheckpointRef | None]:
    """A base model's name, or the path of sampler weights."""
    if not model.startswith(_SCHEME):
        return model, None
    return None, CheckpointPath.parse(model, "model").to_ref()
