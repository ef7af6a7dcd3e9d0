"""The weights of private adapters in the clear, where their publisher chose to keep them in the vault.

They lie under the run's key beside the placement of the same name, are in no listing and have no path: they
are sampled from under HE_PREFERRED alone, when the adapter holder cannot answer. They go with their run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from tensafe.operations import layout
from tensafe.operations.records import StreamRecord
from tensafe.operations.streams import now_ms
from tensafe.operations.unclaimed import Announcement
from tensafe.storage.ports import Delete, Items, JsonValue, Key, Put, Write
from tensafe.vault.artifacts import ArtifactRef, Artifacts

PREFIX: Final = "kept:"


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """What is kept for a placement; `digest` is that of the quantised adapter which these weights are."""

    run_id: str
    name: str
    digest: str
    ref: ArtifactRef

    @property
    def label(self) -> str:
        """What samplers call them; never a checkpoint's, nor a private adapter's."""
        return f"{PREFIX}{self.run_id}/{self.name}"


class Keeping:
    """Writes, reads and deletes them."""

    def __init__(self, items: Items, artifacts: Artifacts, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = items
        self._artifacts = artifacts
        self._clock_ms = clock_ms

    def writing(self, run: StreamRecord, name: str, digest: str, data: bytes) -> list[Write]:
        """Seal the weights; writes that name them, for the transaction that places the adapter."""
        key = layout.kept_weights(run.stream_id, name)
        announce = Announcement(self._items, key, self._clock_ms)
        ref = self._artifacts.write(run.scope, _part(name), data, announce=announce)
        body: dict[str, JsonValue] = {
            "digest": digest,
            "blob": ref.blob_key,
            "artifact_size_bytes": ref.size_bytes,
            "sha256": ref.sha256,
        }
        return [Put(key, body, 0, sealed=ref.sealed_key), *announce.claiming]

    def peek(self, run_id: str, name: str) -> KeptWeights | None:
        """What is kept under a placement's name."""
        item = self._items.get(layout.kept_weights(run_id, name))
        if item is None:
            return None
        body = item.body
        size_bytes = cast(int, body["artifact_size_bytes"])
        ref = ArtifactRef(str(body["blob"]), item.sealed, size_bytes, str(body["sha256"]))
        return KeptWeights(run_id, name, str(body["digest"]), ref)

    def holds(self, label: str, digest: str) -> bool:
        """Whether weights with this label and digest are kept, and their run's key is there."""
        run_id, _, name = label.removeprefix(PREFIX).partition("/")
        kept = self.peek(run_id, name)
        present = self._items.get(layout.stream_item(run_id, "key")) is not None
        return present and kept is not None and kept.digest == digest

    def read(self, run: StreamRecord, kept: KeptWeights) -> bytes:
        """The weights in clear. Raises Gone after erasure, IntegrityError if altered."""
        return self._artifacts.read(run.scope, _part(kept.name), kept.ref)

    def delete(self, run_id: str, name: str) -> None:
        """Delete the record with its sealed key, then the ciphertext; absent is fine."""
        kept = self.peek(run_id, name)
        if kept is None:
            return
        due: Key = layout.due_blob(self._clock_ms(), kept.ref.blob_key)
        doomed: list[Write] = [
            Delete(layout.kept_weights(run_id, name), None),
            Put(due, {"blob": kept.ref.blob_key}, 0),
        ]
        self._items.write(doomed)
        self._artifacts.delete(kept.ref)


def _part(name: str) -> str:
    return f"kept/{name}"
