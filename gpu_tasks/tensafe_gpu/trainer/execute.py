"""What each kind of operation does to a run, and what it returns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tensafe.contracts.errors import IntegrityError, InvalidRequest, TensafeError
from tensafe.contracts.payloads import JSON, PROTOBUF, CreatePayload, LoadPayload, SavePayload
from tensafe.contracts.training import (
    PRIVATE_OPTIMIZERS,
    AdamParams,
    ForwardBackward,
    OptimizerConfig,
    PrivateConfig,
    SgdParams,
    StepParams,
    Strict,
)
from tensafe.operations.records import Operation, OpKind, Result
from tensafe.privacy.dealt_mechanism import DealtMechanism
from tensafe.privacy.refusals import NOTHING_CHARGED, telling
from tensafe.services import Services
from tensafe.storage.ports import Write
from tensafe.vault.artifacts import ArtifactRef
from tensafe.wire.forward_backward import decode_request
from tensafe.wire.forward_backward_json import request_json_to_forward_backward
from tensafe.wire.results import NON_DP, encode_forward_backward, forward_backward_json
from tensafe.wire.tinker_responses.base import finite_metrics
from tensafe_gpu.trainer.dealt_steps import WITHHELD
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.hot_run import HotRun
from tensafe_gpu.trainer.loading import load_checkpoint
from tensafe_gpu.trainer.method import Method
from tensafe_gpu.trainer.private_steps import PrivateSteps
from tensafe_gpu.trainer.saving import Saver
from tensafe_gpu.trainer.state import RunState
from tensafe_gpu.trainer.statements import loading

Logprobs = Sequence[npt.NDArray[np.float32]]
_Payload = TypeVar("_Payload", bound=Strict)


@dataclass(slots=True)
class Executed:
    """The result and the writes that must become durable in the same transaction."""

    result: Result
    writes: Sequence[Write] = field(default_factory=tuple)
    with_snapshot: bool = False
    """Store a snapshot in that transaction too: weights leave with this result, so the state behind
    them must be durable (output commit); or a replay would need what may be deleted by then."""
    wakes_sampler: str | None = None
    """A sampling session that waits for these weights."""
    artifact: ArtifactRef | None = None
    """Written and not yet registered: to be deleted if the transaction fails."""


class Executor:
    """Applies operations to hot runs. An operation changes the run entirely or, if it raises, not at all."""

    def __init__(self, services: Services, engine: Engine, private_steps: PrivateSteps) -> None:
        self._services = services
        self._engine = engine
        self._private = private_steps
        self._saver = Saver(services, engine)

    def execute(self, run: HotRun, operation: Operation, payload: bytes) -> Executed:
        """Apply the operation. Raises TensafeError for the caller's mistakes."""
        kind = operation.kind
        if kind is OpKind.CREATE:
            return self._create(run, payload)
        if kind is OpKind.LOAD:
            return self._load(run, operation.seq, payload)
        if kind is OpKind.NOOP:
            return Executed(_json({}))
        if run.state is None:
            raise InvalidRequest("this run was never created; its first operation failed")
        if kind is OpKind.FORWARD_BACKWARD:
            return self._forward_backward(run, operation, payload)
        if kind is OpKind.OPTIM_STEP:
            return self._optim_step(run, operation, payload)
        if kind in (OpKind.SAVE, OpKind.SAVE_SAMPLER, OpKind.SAVE_EXTERNAL):
            request = _parse(SavePayload, payload)
            saved = self._saver.save(run, kind, request)
            return Executed(
                _json(saved.result),
                saved.writes,
                with_snapshot=True,
                wakes_sampler=_waiting_session(request),
                artifact=saved.ref,
            )
        raise IntegrityError(f"a trainer cannot run a {kind.value} operation")

    def waiting_sampler(self, operation: Operation, payload: bytes) -> str | None:
        """The sampling session that waits for this operation's weights, if it is such a save."""
        if operation.kind is not OpKind.SAVE_SAMPLER:
            return None
        return _waiting_session(_parse(SavePayload, payload))

    def replay(self, run: HotRun, operation: Operation, payload: bytes) -> None:
        """Apply a completed operation again after a crash: same state, no result, nothing charged twice.

        Exact because every step is deterministic and DP noise is regenerated from the run's secret.
        """
        if operation.kind in (OpKind.CREATE, OpKind.LOAD, OpKind.OPTIM_STEP):
            self.execute(run, operation, payload)
        elif operation.kind is OpKind.FORWARD_BACKWARD:
            request = decode(operation, payload)
            if not request.forward_only:
                self._compute(run, operation, request, replayed=True)

    def _create(self, run: HotRun, payload: bytes) -> Executed:
        request = _parse(CreatePayload, payload)
        state = self._engine.create(request.lora, Method.of(request.optimizer))
        # After all that may fail: a dealt run is charged whole when it is opened.
        writes = self._open_private(run, request.optimizer)
        run.state = state
        return Executed(_json({"type": "create_model", "model_id": run.stream.stream_id}), writes)

    def _load(self, run: HotRun, seq: int, payload: bytes) -> Executed:
        request = _parse(LoadPayload, payload)
        private = isinstance(request.optimizer, PrivateConfig)
        with telling(NOTHING_CHARGED) if private else nullcontext():
            state, checkpoint = load_checkpoint(self._services, self._engine, run.stream, request)
        note = loading(run.stream.stream_id, seq, checkpoint)
        writes = [*self._open_private(run, request.optimizer), note]
        run.state = state
        result = _json({"type": "load_weights", "model_id": run.stream.stream_id, "path": _path(request)})
        return Executed(result, writes, with_snapshot=True)

    def _open_private(self, run: HotRun, optimizer: OptimizerConfig) -> Sequence[Write]:
        if isinstance(optimizer, PrivateConfig):
            return self._private.open(run, optimizer)
        return ()

    def _forward_backward(self, run: HotRun, operation: Operation, payload: bytes) -> Executed:
        request = decode(operation, payload)
        labels: dict[str, float] = {}
        if run.private is not None:
            labels[NON_DP] = 1.0
            if not request.forward_only:
                labels |= self._private.metrics(run)
        logprobs, metrics, writes = self._compute(run, operation, request)
        try:
            if _withholds(run, request):
                del labels[NON_DP]
                result = _withheld_result(operation, len(request.data), {**labels, WITHHELD: 1.0})
                return Executed(result, writes)
            return Executed(_forward_backward_result(operation, logprobs, {**metrics, **labels}), writes)
        except TensafeError as error:  # the sum has grown: never a failure that the run survives
            raise IntegrityError("the result of a computed operation cannot be encoded") from error

    def _compute(
        self, run: HotRun, operation: Operation, request: ForwardBackward, *, replayed: bool = False
    ) -> tuple[Logprobs, dict[str, float], Sequence[Write]]:
        """Logprobs, metrics, and what is written with the result."""
        state = _state(run)
        private = run.private
        if private is not None and not request.forward_only:
            with self._private.admitted(run, operation.seq, request, replayed=replayed) as writes:
                clip_norm = private.mechanism.clip_norm
                done = self._engine.forward_backward(state, request, clip_norm=clip_norm)
            return done.logprobs, dict(done.metrics), writes
        if run.private is None:
            for index, datum in enumerate(request.data):
                if datum.unit_id is not None:
                    raise InvalidRequest(
                        "this run is not private, so dp_unit_id has no effect; leave it out, or create the "
                        f"run with one of the optimizers {', '.join(PRIVATE_OPTIMIZERS)}",
                        field=f"data[{index}].loss_fn_inputs.dp_unit_id",
                    )
        done = self._engine.forward_backward(state, request)
        return done.logprobs, dict(done.metrics), ()

    def _optim_step(self, run: HotRun, operation: Operation, payload: bytes) -> Executed:
        state = _state(run)
        params = _step_params(state, payload)
        if run.private is None:
            return Executed(_json({"metrics": finite_metrics(self._engine.optim_step(state, params))}))
        metrics, writes = self._private.step(run, operation.seq, params)
        return Executed(_json({"metrics": finite_metrics(metrics)}), writes)


def decode(operation: Operation, payload: bytes) -> ForwardBackward:
    """The request in a forward_backward payload, whichever face wrote it."""
    if operation.content_type == PROTOBUF:
        return decode_request(payload).request
    return request_json_to_forward_backward(payload)


def _forward_backward_result(operation: Operation, logprobs: Logprobs, metrics: dict[str, float]) -> Result:
    if operation.content_type == PROTOBUF:
        return Result(PROTOBUF, encode_forward_backward(logprobs, metrics))
    return _json(forward_backward_json(logprobs, metrics))


def _withholds(run: HotRun, request: ForwardBackward) -> bool:
    """Whether the run keeps what is not private of these data to itself.

    A forward may evaluate what is no training data; such data name no unit.
    """
    mechanism = None if run.private is None else run.private.mechanism
    if not isinstance(mechanism, DealtMechanism) or mechanism.reveal_non_dp:
        return False
    return not request.forward_only or any(datum.unit_id is not None for datum in request.data)


def _withheld_result(operation: Operation, examples: int, metrics: dict[str, float]) -> Result:
    if operation.content_type == PROTOBUF:
        return Result(PROTOBUF, encode_forward_backward(None, metrics, examples=examples))
    return _json(forward_backward_json(None, metrics))


def _state(run: HotRun) -> RunState:
    if run.state is None:
        raise IntegrityError("the run has no state")
    return run.state


def _parse(model: type[_Payload], payload: bytes) -> _Payload:
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise IntegrityError(f"the log holds a {model.__name__} that this release cannot read") from error


def _json(value: object) -> Result:
    return Result(JSON, json.dumps(value, separators=(",", ":")).encode())


def _waiting_session(request: SavePayload) -> str | None:
    """A session that the edge has created, and a sample in it that waits for the weights."""
    return None if request.create_session else request.sampling_session_id


def _step_params(state: RunState, payload: bytes) -> StepParams:
    if state.method.rule == "sgd":
        return _parse(SgdParams, payload)
    return _parse(AdamParams, payload)


def _path(request: LoadPayload) -> str:
    return f"tinker://{request.source.run_id}/{request.source.kind}/{request.source.name}"
