"""Beginning a run from a checkpoint of the same tenant."""

from __future__ import annotations

from tensafe.contracts.errors import InvalidRequest, NotFound
from tensafe.contracts.payloads import LoadPayload
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.records import StreamRecord
from tensafe.packages.bundle import unpack_files
from tensafe.services import Services
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.peft_format import import_peft
from tensafe_gpu.trainer.state import RunState


def load_checkpoint(
    services: Services, engine: Engine, stream: StreamRecord, request: LoadPayload
) -> RunState:
    """The checkpoint's state, or its weights with a fresh optimizer.

    Raises NotFound (also for another tenant's), Gone, InvalidRequest for a kind without weights or a
    base model of another shape.
    """
    kind = CheckpointKind(request.source.kind)
    if kind is CheckpointKind.EXTERNAL or (kind is CheckpointKind.SAMPLER and request.with_optimizer):
        raise InvalidRequest("only weights hold an optimizer's state, and exports hold neither", field="path")
    checkpoint = services.checkpoints.find(request.source.run_id, kind, request.source.name, stream.tenant)
    source = services.streams.find(checkpoint.run_id)
    if source is None:
        raise NotFound("no such checkpoint", field="path")
    data = services.checkpoints.read(source, checkpoint)
    if kind is CheckpointKind.SAMPLER:
        return import_peft(unpack_files(data), engine.base, seed=request.lora.seed)
    if request.with_optimizer:
        return RunState.load(data, engine.base)
    return RunState.load_weights(data, engine.base)
