"""The sampling sessions behind requests that name a model: one of this process for each tenant and model."""

from __future__ import annotations

import hashlib
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
from tensafe.api.futures import Future
from tensafe.contracts.errors import Conflict, Gone, InvalidRequest, NotFound
from tensafe.contracts.payloads import CheckpointRef
from tensafe.operations.records import OpKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe.wire.paths import CheckpointPath

_KEPT: Final = 1024
_KEPT_S: Final = 3600.0
_SCHEME: Final = "tinker://"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of kind SAMPLE or TEXT, its payload in clear."""

    kind: OpKind
    payload: bytes
    idempotency_key: str | None = None
    check: Callable[[StreamRecord], None] | None = None
    """Called with the session before the request is written; raises what refuses it."""


@dataclass(slots=True)
class _Open:
    stream: StreamRecord
    numbers: Iterator[int]
    opened_s: float


class ModelSamplers:
    """Submits sampling requests by the name of a model. Thread-safe.

    A session belongs to this process, which therefore numbers its requests without asking the store. It
    ends by itself a month after its last use, like every sampling session.
    """

    def __init__(self, services: Services, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services = services
        self._clock = clock
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], _Open] = OrderedDict()

    def submit(self, tenant: str, model: str, asked: Asked) -> Future:
        """The request in the log. Raises NotFound for a model that the tenant does not have, Conflict for an
        idempotency key that came with another request.
        """
        if asked.idempotency_key is not None:
            return self._submit_once(tenant, model, asked, asked.idempotency_key)
        opened = self._sampler(tenant, model)
        try:
            return self._submit(opened.stream, asked, self._number(opened))
        except (Gone, NotFound):  # erased with its run, or by retention; perhaps the model is there again
            with self._lock:
                self._open.pop((tenant, model), None)
            opened = self._sampler(tenant, model)
            return self._submit(opened.stream, asked, self._number(opened))

    def _submit_once(self, tenant: str, model: str, asked: Asked, key: str) -> Future:
        """In a session of its own, whose name a retry finds in whatever process."""
        token = hashlib.sha256(f"model\0{tenant}\0{key}".encode()).hexdigest()[:32]
        try:
            stream = self._opened(tenant, model, f"n-{token}:sample:0")
        except InvalidRequest as error:
            if error.field != sampling.SESSION_FIELD:
                raise
            raise Conflict(
                "this Idempotency-Key was used for another model; give this request a key of its own"
            ) from None
        return self._submit(stream, asked, 1)

    def _submit(self, stream: StreamRecord, asked: Asked, number: int) -> Future:
        if asked.check is not None:
            asked.check(stream)
        submission = Submission(number, asked.kind, asked.payload, idempotency_key=asked.idempotency_key)
        return Future(stream, admission.submit(self._services, stream, submission))

    def _number(self, opened: _Open) -> int:
        with self._lock:
            return next(opened.numbers)

    def _sampler(self, tenant: str, model: str) -> _Open:
        key = (tenant, model)
        with self._lock:
            known = self._open.get(key)
            if known is not None and self._clock() - known.opened_s < _KEPT_S:
                self._open.move_to_end(key)
                return known
        stream = self._opened(tenant, model, f"o-{secrets.token_hex(16)}:sample:0")
        opened = _Open(stream, itertools.count(1), self._clock())
        with self._lock:
            self._open[key] = opened
            while len(self._open) > _KEPT:
                self._open.popitem(last=False)
        return opened

    def _opened(self, tenant: str, model: str, sampler_id: str) -> StreamRecord:
        base_model, weights = _named(model)
        return sampling.open_sampler(
            self._services, tenant, sampler_id, base_model=base_model, weights=weights, session_id=None
        )


def samplers_of(request: Request) -> ModelSamplers:
    """Those of the application, made for its first request by model. For the event loop's thread alone."""
    state = request.app.state
    if not hasattr(state, "model_samplers"):
        state.model_samplers = ModelSamplers(context_of(request).services)
    return cast(ModelSamplers, state.model_samplers)


def _named(model: str) -> tuple[str | None, CheckpointRef | None]:
    """A base model's name, or the path of sampler weights."""
    if not model.startswith(_SCHEME):
        return model, None
    path = CheckpointPath.parse(model, "model")
    if path.checkpoint_type != "sampler":
        raise InvalidRequest(sampling.ONLY_SAMPLER_WEIGHTS, field="model")
    return None, path.to_ref()
