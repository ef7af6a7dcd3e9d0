"""Operations of a tiny run, as both faces would write them, and what a run's state is in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensafe.contracts.payloads import CheckpointRef, CreatePayload, LoadPayload, SavePayload
from tensafe.contracts.training import (
    AdamParams,
    AdamWConfig,
    DpAdamWConfig,
    DpSgdConfig,
    LoraSpec,
    OptimizerConfig,
    SgdParams,
)
from tensafe.operations import layout
from tensafe.operations.records import Operation, OpKind, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe.vault.artifacts import ArtifactRef
from tensafe_gpu.trainer.hot_run import unpack_snapshot
from tests.support.tiny_models import tiny_model

VOCAB = 320
LORA = LoraSpec(rank=2, seed=7)
ADAMW = AdamWConfig()

Step = tuple[OpKind, bytes]


def smallest_model(folder: Path) -> str:
    """One layer: an operation takes a few milliseconds."""
    return tiny_model(folder, vocab=VOCAB, hidden=16, layers=1, heads=2, kv_heads=1, max_context=64)


def private(**changes: Any) -> DpAdamWConfig:
    """A DP optimizer whose budget is not in the way unless a test makes it so."""
    settings: dict[str, Any] = {
        "type": "tensafe_dp_adamw",
        "clip_norm": 0.5,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "batch_size": 4,
        "max_participations": 1,
        "domain": "letters",
    }
    return DpAdamWConfig.model_validate({**settings, **changes})


def private_sgd(**changes: Any) -> DpSgdConfig:
    """The same with plain SGD."""
    return DpSgdConfig.model_validate({**private().model_dump(), "type": "tensafe_dp_sgd", **changes})


def create(lora: LoraSpec = LORA, optimizer: OptimizerConfig = ADAMW) -> Step:
    return OpKind.CREATE, CreatePayload(lora=lora, optimizer=optimizer).model_dump_json().encode()


def load(
    run_id: str,
    name: str,
    *,
    with_optimizer: bool = True,
    kind: str = "weights",
    lora: LoraSpec = LORA,
    optimizer: OptimizerConfig = ADAMW,
) -> Step:
    payload = LoadPayload(
        source=CheckpointRef(run_id=run_id, kind=kind, name=name),
        with_optimizer=with_optimizer,
        lora=lora,
        optimizer=optimizer,
    )
    return OpKind.LOAD, payload.model_dump_json().encode()


def forward_backward(
    seed: int = 0,
    *,
    units: Sequence[int] | None = None,
    count: int = 3,
    forward_only: bool = False,
    tokens: Sequence[Sequence[int]] | None = None,
    **changes: Any,
) -> Step:
    """Random data, or the given token ids; one datum per unit if there are units."""
    rng = np.random.default_rng(seed)
    rows = tokens or [
        rng.integers(0, VOCAB, int(length)).tolist()
        for length in rng.integers(2, 9, len(units) if units is not None else count)
    ]
    data = []
    for index, row in enumerate(rows):
        datum: dict[str, Any] = {
            "tokens": list(row),
            "loss_fn_inputs": {
                "target_tokens": [int(token) for token in np.roll(row, -1)],
                "weights": rng.uniform(0.5, 1.5, len(row)).round(3).tolist(),
            },
        }
        if units is not None:
            datum["dp_unit_id"] = units[index]
        data.append(datum)
    body = {"data": data, "loss_fn": "cross_entropy", "forward_only": forward_only, **changes}
    return OpKind.FORWARD_BACKWARD, json.dumps(body).encode()


def optim_step(learning_rate: float = 1e-2, **changes: Any) -> Step:
    params = AdamParams(learning_rate=learning_rate, **changes)
    return OpKind.OPTIM_STEP, params.model_dump_json().encode()


def sgd_step(learning_rate: float = 1e-1, **changes: Any) -> Step:
    params = SgdParams(learning_rate=learning_rate, **changes)
    return OpKind.OPTIM_STEP, params.model_dump_json().encode()


def save(name: str, kind: OpKind = OpKind.SAVE, **changes: Any) -> Step:
    return kind, SavePayload(name=name, **changes).model_dump_json().encode()


def begin(
    services: Services,
    run_id: str,
    base_model: str,
    step: Step | None = None,
    *,
    tenant: str = "acme",
    optimizer: OptimizerConfig = ADAMW,
) -> Operation:
    """Create the run with its first operation; again, it finds them."""
    spec = {"lora": LORA.model_dump(mode="json"), "optimizer": optimizer.model_dump(mode="json")}
    record, writes = services.streams.creation(run_id, tenant, StreamKind.RUN, base_model, spec=spec)
    kind, payload = step or create(optimizer=optimizer)
    return services.submissions.create(record, writes, Submission(0, kind, payload))


def submit(services: Services, run_id: str, seq: int, step: Step, *, tenant: str = "acme") -> Operation:
    stream = services.streams.get(run_id, tenant)
    return services.submissions.submit(stream, Submission(seq, *step))


def snapshot_of(services: Services, run_id: str) -> tuple[bytes, set[int]]:
    """`RunState.dump()` and the accumulated units, as the run's last snapshot holds them."""
    stream = services.streams.find(run_id)
    item = services.ports.items.get(layout.stream_item(run_id, "snapshot"))
    assert stream is not None
    assert item is not None
    body: dict[str, Any] = dict(item.body)
    ref = ArtifactRef(body["blob"], item.sealed, body["artifact_size_bytes"], body["sha256"])
    return unpack_snapshot(services.artifacts.read(stream.scope, f"snapshot/{body['seq']}", ref))


def result_of(services: Services, run_id: str, seq: int) -> Any:
    """The JSON result of a completed operation."""
    stream = services.streams.find(run_id)
    assert stream is not None
    operation = services.outcomes.get(stream, seq)
    assert operation.failure is None, operation.failure
    return json.loads(services.outcomes.result(stream, operation).data)
