"""In-memory stand-ins for the storage ports. They earn trust by passing tests/contract."""

from tests.fakes.bell import MemoryBell
from tests.fakes.blobs import MemoryBlobs
from tests.fakes.items import MemoryItems
from tests.fakes.keyring import MemoryKeyRing
from tests.fakes.queues import MemoryQueues

__all__ = ["MemoryBell", "MemoryBlobs", "MemoryItems", "MemoryKeyRing", "MemoryQueues"]
