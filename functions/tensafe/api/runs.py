"""Creating runs, whichever face asks: validation, the run's frozen spec, its first operation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from tensafe.api import admission
from tensafe.api.metadata import check_metadata
from tensafe.contracts.errors import Conflict, InvalidRequest, Unavailable, Unsupported
from tensafe.contracts.payloads import CheckpointRef, CreatePayload, LoadPayload
from tensafe.contracts.training import PRIVATE_OPTIMIZERS, LoraSpec, ModelInfo, OptimizerConfig, Strict
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.records import Operation, OpKind, StreamKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.privacy.refusals import FROZEN, telling
from tensafe.services import Services
from tensafe.storage.ports import JsonValue, Write


def seed_of(run_id: str) -> int:
    """The seed of a run that names none; recorded, so that the run can be repeated.

    A function of the id, so that two requests that create one run at once mean the same run. It is no
    secret: privacy noise comes from elsewhere.
    """
    digest = hashlib.sha256(f"lora-seed/{run_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def create_run(
    services: Services,
    tenant: str,
    run_id: str,
    base_model: str,
    payload: CreatePayload,
    *,
    user_metadata: Mapping[str, JsonValue] | None = None,
    session_id: str | None = None,
    idempotency_key: str | None = None,
) -> Operation:
    """Create a run with a fresh adapter. Raises NotFound for an unknown base model."""
    services.model(base_model)
    spec = run_spec(payload.lora, payload.optimizer, user_metadata)
    record, writes = services.streams.creation(
        run_id, tenant, StreamKind.RUN, base_model, spec=spec, session_id=session_id
    )
    return _submit(services, record, writes, OpKind.CREATE, payload, idempotency_key)


def served(services: Services, stream: StreamRecord) -> ModelInfo:
    """The stream's base model; for whoever submits an operation of a stream that exists.

    Raises Unavailable if this deployment does not serve it now: nobody would take the operation, and no
    queue would take the message about it.
    """
    info = services.models.get(stream.base_model)
    if info is None:
        raise Unavailable(
            f"base model {stream.base_model} is not served now, so nothing was submitted; the operator can "
            "start it again (`tensafe up --model`)",
            field="base_model",
        )
    return info


def check_rank(services: Services, base_model: str, rank: int, *, field: str) -> None:
    """Raise InvalidRequest for an adapter that no sampler here could hold, NotFound for the model."""
    highest = services.model(base_model).max_lora_rank
    if rank > highest:
        raise InvalidRequest(f"rank {rank} is over this deployment's limit; give 1 to {highest}", field=field)


def optimizer_family(stream: StreamRecord) -> str | None:
    """The type of the run's optimizer, fixed when it was created."""
    chosen = stream.spec.get("optimizer")
    return str(chosen["type"]) if isinstance(chosen, dict) and "type" in chosen else None


def telling_the_charge(*families: str | None, charge: str = FROZEN) -> AbstractContextManager[None]:
    """Around what decides on a request: if one of these optimizers is private, refusals tell the charge."""
    return nullcontext() if set(families).isdisjoint(PRIVATE_OPTIMIZERS) else telling(charge)


def load_run(
    services: Services,
    tenant: str,
    run_id: str,
    checkpoint: Checkpoint,
    payload: LoadPayload,
    *,
    user_metadata: Mapping[str, JsonValue] | None = None,
    session_id: str | None = None,
    idempotency_key: str | None = None,
) -> Operation:
    """Create a run from a checkpoint."""
    services.model(checkpoint.base_model)
    spec = run_spec(payload.lora, payload.optimizer, user_metadata)
    spec["parent"] = checkpoint.path
    record, writes = services.streams.creation(
        run_id, tenant, StreamKind.RUN, checkpoint.base_model, spec=spec, session_id=session_id
    )
    return _submit(services, record, writes, OpKind.LOAD, payload, idempotency_key)


def loadable_checkpoint(services: Services, tenant: str, ref: CheckpointRef) -> Checkpoint:
    """The tenant's training checkpoint or sampler weights. Raises NotFound or InvalidRequest."""
    kind = CheckpointKind(ref.kind)
    if kind is CheckpointKind.EXTERNAL:
        raise InvalidRequest("exports cannot be loaded; load weights or sampler_weights", field="path")
    return services.checkpoints.find(ref.run_id, kind, ref.name, tenant)


def load_payload(
    checkpoint: Checkpoint,
    ref: CheckpointRef,
    *,
    with_optimizer: bool,
    optimizer: OptimizerConfig | None,
) -> LoadPayload:
    """What a load restores: adapter shape always, optimizer family with its state.

    Raises Unsupported if another optimizer is named for restored optimizer state.
    """
    saved = checkpoint.details.get("optimizer") or {"type": "adamw"}
    lora = LoraSpec.model_validate(checkpoint.details["lora"])
    if with_optimizer:
        payload = LoadPayload.model_validate(
            {"source": ref, "with_optimizer": True, "lora": lora, "optimizer": saved}
        )
        if optimizer is not None and optimizer != payload.optimizer:
            raise Unsupported(
                "optimizer_config cannot differ from that of the restored optimizer state",
                field="optimizer_config",
            )
        return payload
    chosen: object = optimizer if optimizer is not None else {"type": "adamw"}
    return LoadPayload.model_validate(
        {"source": ref, "with_optimizer": False, "lora": lora, "optimizer": chosen}
    )


def run_spec(
    lora: LoraSpec, optimizer: OptimizerConfig, user_metadata: Mapping[str, JsonValue] | None
) -> dict[str, JsonValue]:
    """What is public about a run to its owner; frozen at creation."""
    return {
        "lora": lora.model_dump(mode="json"),
        "optimizer": optimizer.model_dump(mode="json"),
        "user_metadata": check_metadata(user_metadata),
    }


def _submit(
    services: Services,
    record: StreamRecord,
    writes: Sequence[Write],
    kind: OpKind,
    payload: Strict,
    key: str | None,
) -> Operation:
    submission = Submission(0, kind, payload.model_dump_json().encode(), idempotency_key=key)
    try:
        return admission.create(services, record, writes, submission)
    except Conflict:  # the run exists, with another configuration
        known = services.streams.find(record.stream_id) or record
        with telling_the_charge(optimizer_family(record), optimizer_family(known)):
            raise
