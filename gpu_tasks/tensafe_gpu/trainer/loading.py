"""Beginning a run from a checkpoint of the same tenant."""

from __future__ import annotations

from tensafe.contracts.errors import InvalidRequest, NotFound
from tensafe.contracts.payloads import LoadPayload
from tensafe.contracts.training import PRIVATE_OPTIMIZERS, PrivateConfig
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.records import StreamRecord
from tensafe.packages.bundle import unpack_files
from tensafe.services import Services
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.method import Method
from tensafe_gpu.trainer.peft_format import import_peft
from tensafe_gpu.trainer.state import RunState


def load_checkpoint(
    services: Services, engine: Engine, stream: StreamRecord, request: LoadPayload
) -> tuple[RunState, Checkpoint]:
    """The checkpoint's state, or its weights with a fresh optimizer; and the checkpoint.

    A private run begins from what differential privacy protects already, or from weights that its owner
    declares to hold nothing of the data. Raises NotFound (also for another tenant's), Gone, InvalidRequest
    for a kind without weights, a base model of another shape, another optimizer's state, weights that
    would void the run's privacy, or with which a run that freezes A could not learn.
    """
    kind = CheckpointKind(request.source.kind)
    if kind is CheckpointKind.EXTERNAL or (kind is CheckpointKind.SAMPLER and request.with_optimizer):
        raise InvalidRequest("only weights hold an optimizer's state, and exports hold neither", field="path")
    checkpoint = services.checkpoints.find(request.source.run_id, kind, request.source.name, stream.tenant)
    source = services.streams.find(checkpoint.run_id)
    if source is None:
        raise NotFound("no such checkpoint", field="path")
    _check_optimizer(checkpoint, request)
    data = services.checkpoints.read(source, checkpoint)
    method = Method.of(request.optimizer)
    if kind is CheckpointKind.SAMPLER:
        state = import_peft(unpack_files(data), engine.base, seed=request.lora.seed, method=method)
        return _able_to_learn(state), checkpoint
    if not request.with_optimizer:
        return _able_to_learn(RunState.load_weights(data, engine.base, method)), checkpoint
    state = RunState.load(data, engine.base)
    if state.method != method:
        raise InvalidRequest(
            "freeze_lora_a is not the same in the run whose state this is and in this run; load the weights "
            "alone",
            field="path",
        )
    if state.pending_data and isinstance(request.optimizer, PrivateConfig):
        raise InvalidRequest(
            "the checkpoint holds a gradient that was never clipped; load the weights alone", field="path"
        )
    return state, checkpoint


def _able_to_learn(state: RunState) -> RunState:
    """The state, unless it freezes an A of zeros: B has no gradient then, and noise alone would move it."""
    if state.method.freeze_a:
        for site, (a, _) in zip(state.layout.sites, state.layout.pairs(state.params), strict=True):
            if not bool(a.any()):
                raise InvalidRequest(
                    f"these weights have an A of zeros ({site.name}), so with freeze_lora_a=true its B could "
                    "not learn; leave freeze_lora_a out, or begin from other weights",
                    field="path",
                )
    return state


def _check_optimizer(checkpoint: Checkpoint, request: LoadPayload) -> None:
    optimizer = checkpoint.details.get("optimizer")
    saved = optimizer.get("type") if isinstance(optimizer, dict) else "adamw"
    if request.with_optimizer and saved != request.optimizer.type:
        raise InvalidRequest(
            f"this is the state of the optimizer {saved}, and the run's is {request.optimizer.type}; load "
            "the weights alone",
            field="path",
        )
    declared = not isinstance(request.optimizer, PrivateConfig) or request.optimizer.allow_nonprivate_weights
    if saved not in PRIVATE_OPTIMIZERS and not declared:
        raise InvalidRequest(
            "these weights were trained without differential privacy, and the run's epsilon would not cover "
            "what they hold; if none of it is data of the domain, say so with allow_nonprivate_weights=true "
            "in the run's optimizer",
            field="path",
        )
