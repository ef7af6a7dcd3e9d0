"""From a sampling session to the adapter that it samples from."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

from tensafe.contracts.errors import Gone, IntegrityError, Unavailable
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.operations import layout
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.kept_weights import PREFIX
from tensafe.operations.placements import Placement
from tensafe.operations.records import Failure, StreamRecord
from tensafe.packages.bundle import unpack_files
from tensafe.services import Services
from tensafe.vault import forgetting
from tensafe.wire.paths import CheckpointPath
from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.private.adapter import PrivateAdapter, held_as, is_private
from tensafe_gpu.sampler.residency import AnyAdapter

log = logging.getLogger(__name__)

_CACHED_BYTES: Final = 512 * 1024 * 1024
CHECK_S: Final = 30.0
"""How often it is asked whether decrypted weights may still be held."""
_GONE: Final = (
    "the weights of this sampling session were deleted or have expired; save them again, under a name if "
    "they are to stay"
)


class Resident(Protocol):
    """An engine, as far as it is asked to forget."""

    def resident(self) -> list[str]: ...

    async def forget(self, identity: str) -> None: ...


def still_there(services: Services, identity: str) -> bool:
    """Whether the adapter's artifact is registered and its run's key is there; one read or two.

    Of a private adapter: whether a placement names it; of its weights in the clear, whether they are kept.
    """
    if is_private(identity):
        return services.placements.holds(*held_as(identity))
    run_id, _, artifact_id = identity.rpartition("@")
    if run_id.startswith(PREFIX):
        return services.keeping.holds(run_id, artifact_id)
    keys = (layout.artifact_item(artifact_id), layout.stream_item(run_id, "key"))
    return all(services.ports.items.get(key) is not None for key in keys)


async def forget_gone(services: Services, engine: Resident) -> None:
    """Take adapters that have gone out of the engine too, until cancelled."""
    while True:
        await asyncio.sleep(CHECK_S)
        for identity in engine.resident():
            try:
                if not await asyncio.to_thread(still_there, services, identity):
                    await engine.forget(identity)
            except Exception:  # it is asked about again, and so are the others
                log.exception("adapter not checked")


class WeightsPending(Exception):
    """The operation that saves these weights has not ended; whoever ends it rings again."""


class WeightsFailed(Exception):
    """The operation that should have saved these weights failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Weights:
    """Reads sealed sampler weights and keeps the recent ones decrypted in memory. Thread-safe.

    What was deleted, expired or erased meanwhile is dropped within `CHECK_S` and a tick of `forgetting`.
    """

    def __init__(
        self,
        services: Services,
        *,
        private: Callable[[], Mapping[str, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`private` gives what this sampler adds to every way to an adapter holder: files of its own."""
        self._services = services
        self._private = private or dict
        self._clock = clock
        self._checked_s = clock()
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Adapter] = OrderedDict()

    def of(self, stream: StreamRecord) -> AnyAdapter | None:
        """The session's adapter, plain or private, None for the base model.

        Raises WeightsPending, WeightsFailed, or Gone if the weights were deleted or their run erased.
        """
        path_text = stream.spec.get("model_path")
        if not path_text:
            return None
        self._check_saved(stream)
        path = CheckpointPath.parse(str(path_text))
        kind = CheckpointKind(path.kind)
        placement = self._services.placements.peek(str(path.run), path.name)
        if placement is not None and placement.tenant == stream.tenant:
            return self._placed(placement, self._kept(placement))
        checkpoint = self._services.checkpoints.peek(str(path.run), kind, path.name)
        source = self._services.streams.find(str(path.run))
        if checkpoint is None or source is None or checkpoint.tenant != stream.tenant:
            raise Gone(_GONE)
        self._services.checkpoints.used(checkpoint)
        read = partial(self._services.checkpoints.read, source, checkpoint)
        # The artifact id is new with every save, so old prefix-cache blocks never match new weights.
        return self._held(source, checkpoint.run_id, checkpoint.artifact_id, read)

    def _held(self, source: StreamRecord, name: str, version: str, read: Callable[[], bytes]) -> Adapter:
        """The adapter from memory, if its run's key is still there, else as `read` gives it."""
        with self._lock:
            cached = self._cache.get(version)
            if cached is not None:
                self._cache.move_to_end(version)
        if cached is not None and self._services.ports.items.get(source.scope.key_item) is not None:
            return cached
        adapter = Adapter(name=name, version=version, files=unpack_files(read()))
        self._keep(version, adapter)
        return adapter

    def _kept(self, placement: Placement) -> Adapter | None:
        """A private adapter's weights in the clear, where they may answer and were not erased."""
        if placement.policy is not ExecutionPolicy.HE_PREFERRED:
            return None
        kept = self._services.keeping.peek(placement.run_id, placement.name)
        source = self._services.streams.find(placement.run_id)
        if kept is None or source is None:
            return None
        try:
            return self._held(
                source, kept.label, kept.digest, partial(self._services.keeping.read, source, kept)
            )
        except Gone:  # with the run: what is left of it is at the adapter holder
            return None
        except (IntegrityError, Unavailable) as error:  # which the adapter holder may answer all the same
            log.warning("kept weights cannot be read", extra={"error": type(error).__name__})
            return None

    def _placed(self, placement: Placement, kept: Adapter | None) -> PrivateAdapter:
        holder = {
            **self._private(),
            "address": placement.address,
            "tenant": placement.holder_tenant,
            "adapter": placement.adapter,
            "version": str(placement.version),
            **({} if placement.digest is None else {"digest": placement.digest}),
        }
        return PrivateAdapter(
            placement.adapter,
            str(placement.version),
            holder,
            placement.policy,
            digest=placement.digest,
            plain=kept,
            plain_digest=None if kept is None else kept.version,
            base_model=placement.base_model,
        )

    def forget_stale(self) -> None:
        """Drop what nobody may sample from any more, if it is time to look again."""
        if self._clock() - self._checked_s < CHECK_S:
            return
        self._checked_s = self._clock()
        with self._lock:
            held = list(self._cache.values())
        for adapter in held:
            if not still_there(self._services, adapter.identity):
                with self._lock:
                    self._cache.pop(adapter.version, None)

    def _keep(self, artifact_id: str, adapter: Adapter) -> None:
        with self._lock:
            self._cache[artifact_id] = adapter
            while len(self._cache) > 1 and self._held_bytes() > _CACHED_BYTES:
                self._cache.popitem(last=False)
        forgetting.WATCH.add(self)

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
