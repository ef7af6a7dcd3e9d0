"""In-memory stand-ins for the storage ports. They earn trust by passing tests/contract."""

from tests.fakes.anchors import MemoryAnchors
from tests.fakes.bell import MemoryBell
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.items import MemoryItems
from tests.fakes.keyring import MemoryKeyRing
from tests.fakes.queues import MemoryQueues
from tests.fakes.signers import P256Signer, memory_signer

__all__ = [
    "MemoryAnchors",
    "MemoryBell",
    "MemoryBlobs",
    "MemoryItems",
    "MemoryKeyRing",
    "MemoryQueues",
    "P256Signer",
    "memory_signer",
]
