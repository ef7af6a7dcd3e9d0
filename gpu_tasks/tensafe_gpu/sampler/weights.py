"""From a sampling session to the adapter that it samples from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from tensafe.contracts.errors import Gone
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.records import Failure, StreamRecord
from tensafe.packages.bundle import unpack_files
from tensafe.services import Services
from tensafe.wire.paths import CheckpointPath
from tensafe_gpu.sampler.adapters import Adapter

_CACHED_BYTES: Final = 512 * 1024 * 1024
_GONE: Final = (
    "the weights of this sampling session were deleted or have expired; save them again, under a name if "
    "they are to stay"
)


class WeightsPending(Exception):
    """The operation that saves these weights has not ended; whoever ends it rings again."""


class WeightsFailed(Exception):
    """The operation that should have saved these weights failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Weights:
    """Reads sealed sampler weights and keeps the recent ones decrypted in memory. Thread-safe."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Adapter] = OrderedDict()

    def of(self, stream: StreamRecord) -> Adapter | None:
        """The session's adapter, None for the base model.

        Raises WeightsPending, WeightsFailed, or Gone if the weights were deleted or their run erased.
        """
        path_text = stream.spec.get("model_path")
        if not path_text:
            return None
        self._check_saved(stream)
        path = CheckpointPath.parse(str(path_text))
        kind = CheckpointKind(path.kind)
        checkpoint = self._services.checkpoints.peek(str(path.run), kind, path.name)
        source = self._services.streams.find(str(path.run))
        if checkpoint is None or source is None or checkpoint.tenant != stream.tenant:
            raise Gone(_GONE)
        self._services.checkpoints.used(checkpoint)
        with self._lock:
            cached = self._cache.get(checkpoint.artifact_id)
            if cached is not None:
                self._cache.move_to_end(checkpoint.artifact_id)
        if cached is not None and self._services.ports.items.get(source.scope.key_item) is not None:
            return cached
        adapter = self._read(source, checkpoint)
        self._keep(checkpoint.artifact_id, adapter)
        return adapter

    def _read(self, source: StreamRecord, checkpoint: Checkpoint) -> Adapter:
        files = unpack_files(self._services.checkpoints.read(source, checkpoint))
        # The artifact id is new with every save, so old prefix-cache blocks never match new weights.
        return Adapter(name=checkpoint.run_id, version=checkpoint.artifact_id, files=files)

    def _keep(self, artifact_id: str, adapter: Adapter) -> None:
        with self._lock:
            self._cache[artifact_id] = adapter
            while len(self._cache) > 1 and self._held_bytes() > _CACHED_BYTES:
                self._cache.popitem(last=False)

    def _held_bytes(self) -> int:
        return sum(len(data) for adapter in self._cache.values() for data in adapter.files.values())

    def _check_saved(self, stream: StreamRecord) -> None:
        run_id, seq = stream.spec.get("after_run"), stream.spec.get("after_seq")
        if run_id is None or seq is None:
            return
        saving = self._services.outcomes.peek(str(run_id), int(str(seq)))
        if saving is None:
            raise Gone("the run of this sampling session has been erased")
        if not saving.state.final:
            raise WeightsPending
        if saving.failure is not None:
            raise WeightsFailed(saving.failure)
