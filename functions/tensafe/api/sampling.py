"""Sampling, whichever face asks: sampling sessions and the weights behind them."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from tensafe.api import admission, runs
from tensafe.api.futures import Future
from tensafe.contracts.errors import InvalidRequest, NotFound, Unavailable
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.payloads import CheckpointRef, SamplePayload, SavePayload
from tensafe.contracts.sampling import SampleRequest, check_result_size
from tensafe.contracts.training import ModelInfo
from tensafe.operations import layout
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.placements import Placement
from tensafe.operations.records import Operation, OpKind, StreamKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, JsonValue, Put

SESSION_FIELD: Final = "sampling_session_seq_id"
"""At fault where a session's id is in use with other weights."""
ONLY_SAMPLER_WEIGHTS: Final = "only sampler weights (tinker://RUN/sampler_weights/NAME) can be sampled from"


def check_sample(request: SampleRequest, info: ModelInfo) -> None:
    """Refuse what no sampler could run: a prompt that fills the context, unknown tokens, a huge result."""
    if len(request.prompt) >= info.max_context_tokens:
        raise InvalidRequest(
            f"the prompt has {len(request.prompt)} tokens; at most {info.max_context_tokens - 1} leave "
            "room to sample",
            field="prompt",
        )
    for position, token in enumerate(request.prompt):
        if not 0 <= token < info.vocab_size:
            raise InvalidRequest(
                f"the token at position {position} is outside the vocabulary; ids are 0 to "
                f"{info.vocab_size - 1}",
                field=f"prompt[{position}]",
            )
    check_result_size(request, info.max_context_tokens)


def open_sampler(
    services: Services,
    tenant: str,
    sampler_id: str,
    *,
    base_model: str | None,
    weights: CheckpointRef | None,
    session_id: str | None,
) -> StreamRecord:
    """Create the sampling session, or return it if the same one exists.

    Raises NotFound for another tenant's weights or an unknown base model, InvalidRequest for a session
    id in use with other weights.
    """
    path: str | None = None
    if weights is not None:
        found = sampler_weights(services, tenant, weights)
        if base_model is not None and base_model != found.base_model:
            raise InvalidRequest(f"these weights belong to base model {found.base_model}", field="base_model")
        base_model, path = found.base_model, found.path
    if base_model is None:
        raise InvalidRequest("give base_model or model_path", field="base_model")
    services.model(base_model)
    services.quotas.admit_request(tenant)
    record, writes = services.streams.creation(
        sampler_id,
        tenant,
        StreamKind.SAMPLER,
        base_model,
        spec={"model_path": path},
        session_id=session_id,
    )
    try:
        services.ports.items.write(writes)
    except ConditionFailed:
        present = services.streams.find(sampler_id)
        if present is None or present.tenant != tenant or present.kind is not StreamKind.SAMPLER:
            raise NotFound("no such session") from None
        if present.spec.get("model_path") != path or present.base_model != base_model:
            raise InvalidRequest(
                f"this {SESSION_FIELD} was used with other weights", field=SESSION_FIELD
            ) from None
        return present
    return record


def sampler_weights(services: Services, tenant: str, weights: CheckpointRef) -> Checkpoint | Placement:
    """The tenant's sampler weights, here or with an adapter holder.

    Raises NotFound; InvalidRequest for weights of another kind.
    """
    kind = CheckpointKind(weights.kind)
    if kind is CheckpointKind.SAMPLER:
        placement = services.placements.peek(weights.run_id, weights.name)
        if placement is not None and placement.tenant == tenant:
            return placement
    checkpoint = services.checkpoints.find(weights.run_id, kind, weights.name, tenant)
    if checkpoint.kind is not CheckpointKind.SAMPLER:
        raise InvalidRequest(ONLY_SAMPLER_WEIGHTS, field="model_path")
    return checkpoint


def sample_present_weights(
    services: Services,
    stream: StreamRecord,
    request: SampleRequest,
    idempotency_key: str | None,
    policy: ExecutionPolicy | None = None,
) -> Future:
    """Save the run's weights for one sampling session and sample from it.

    The save is the run's next operation, so it sees every operation before it; the sample waits for it.
    """
    check_sample(request, runs.served(services, stream))
    token = (
        hashlib.sha256(f"{stream.stream_id}\0{idempotency_key}".encode()).hexdigest()[:32]
        if idempotency_key
        else secrets.token_hex(16)
    )
    sampler_id = f"n-{token}:sample:0"
    name = f"session-weights-{token}"
    save = SavePayload(name=name, sampling_session_id=sampler_id, create_session=False, overwrite=True)
    saving = admission.append(
        services,
        stream,
        Submission(
            0,
            OpKind.SAVE_SAMPLER,
            save.model_dump_json().encode(),
            idempotency_key=f"{idempotency_key}/save" if idempotency_key else None,
        ),
    )
    path = f"tinker://{stream.stream_id}/{CheckpointKind.SAMPLER.value}/{name}"
    sampler = _waiting_sampler(services, stream, sampler_id, path, saving)
    payload = SamplePayload(request=request, answer="json", execution_policy=policy)
    submission = Submission(
        1,
        OpKind.SAMPLE,
        payload.model_dump_json().encode(),
        idempotency_key=idempotency_key,
        ring=False,
    )
    operation = admission.submit(services, sampler, submission)
    # The trainer rings once the weights are saved; if it was faster than our submission, ring here.
    if services.outcomes.get(stream, saving.seq).state.final and not operation.state.final:
        services.doorbell.ring(sampler, operation.seq)
    return Future(sampler, operation)


def _waiting_sampler(
    services: Services, stream: StreamRecord, sampler_id: str, path: str, saving: Operation
) -> StreamRecord:
    """A sampling session whose weights are still being saved by operation `saving`."""
    spec: dict[str, JsonValue] = {
        "model_path": path,
        "after_run": saving.stream_id,
        "after_seq": saving.seq,
    }
    record, writes = services.streams.creation(
        sampler_id, stream.tenant, StreamKind.SAMPLER, stream.base_model, spec=spec
    )
    try:
        services.ports.items.write(writes)
    except ConditionFailed:
        return services.streams.get(sampler_id, stream.tenant, StreamKind.SAMPLER)
    return record


def next_clone(services: Services, stream: StreamRecord) -> int:
    """The next number for a copy of the session's client; the first client is 0."""
    key = layout.stream_item(stream.stream_id, "clones")
    for _ in range(64):
        item = services.ports.items.get(key)
        count = int(str(item.body["count"])) + 1 if item else 1
        try:
            services.ports.items.write([Put(key, {"count": count}, item.version if item else 0)])
            return count
        except ConditionFailed:
            continue
    raise Unavailable("too many clients join this session at once; try again")
