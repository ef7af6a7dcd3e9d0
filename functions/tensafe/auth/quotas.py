"""What a tenant is admitted to do, within its limits: asked at the edge before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tensafe.auth.ceilings import Ceilings
from tensafe.auth.limits import Limits
from tensafe.auth.tenant_items import Read, ReadTogether
from tensafe.auth.windows import WINDOW_S, Windows
from tensafe.contracts.errors import QuotaExceeded, RateLimited
from tensafe.operations import layout
from tensafe.operations.streams import Streams, now_ms
from tensafe.storage.ports import Items

_PAGE: Final = 1000
_OPEN_RETRY_S: Final = 2
_TENANTS_KNOWN_MAX: Final = 100_000


class Quotas:
    """Admits operations, runs and sessions. Every limit holds across processes."""

    def __init__(self, items: Items, streams: Streams, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self.limits = Limits(items, clock=lambda: clock_ms() / 1000)
        self._items = items
        self._streams = streams
        self._windows = Windows(items, clock_ms=clock_ms)
        self._ceilings = Ceilings(items, clock_ms=clock_ms)
        self._tenant_of: dict[str, str] = {}

    def admit_operation(self, tenant: str, payload_bytes: int) -> None:
        """One submission. Raises RateLimited, or QuotaExceeded for a payload that no window has room for."""
        read = ReadTogether(self._items, tenant).get
        self._admit_rate(tenant, payload_bytes, read)
        limits = self.limits.of(tenant, read)
        if not self._ceilings.take(
            tenant,
            "operations",
            limits.open_operations,
            self._count_open(tenant),
            batch_max=max(1, limits.open_operations // 64),
            read=read,
        ):
            raise RateLimited(
                f"{limits.open_operations} operations of this tenant have not ended yet; wait for some",
                code="too_many_open_operations",
                retry_after_s=_OPEN_RETRY_S,
            )

    def admit_request(self, tenant: str, payload_bytes: int = 0) -> None:
        """What costs a write and leaves no operation behind. Raises as `admit_operation`."""
        self._admit_rate(tenant, payload_bytes, ReadTogether(self._items, tenant).get)

    def _admit_rate(self, tenant: str, payload_bytes: int, read: Read) -> None:
        limits = self.limits.of(tenant, read)
        per_window = {
            "operations": limits.operations_per_s * WINDOW_S,
            "bytes": limits.bytes_per_s * WINDOW_S,
        }
        self._windows.take(tenant, {"operations": 1, "bytes": payload_bytes}, per_window, read)

    def admit_run(self, tenant: str) -> None:
        """One more run, which is created next. Raises QuotaExceeded."""
        limit = self.limits.of(tenant).runs
        if not self._ceilings.take(tenant, "runs", limit, self._count_listing(f"tenant/{tenant}/runs")):
            raise QuotaExceeded(f"this tenant has {limit} runs, as many as it may; erase some first")

    def admit_session(self, tenant: str) -> None:
        """One more client session, which is created next. Raises QuotaExceeded."""
        limit = self.limits.of(tenant).sessions
        listing = f"tenant/{tenant}/sessions"
        if not self._ceilings.take(tenant, "sessions", limit, self._count_listing(listing)):
            raise QuotaExceeded(
                f"this tenant has {limit} client sessions, as many as it may; unused ones go after 30 days"
            )

    def _count_listing(self, partition: str) -> Callable[[int], int]:
        return lambda enough: sum(1 for _ in self._entries(partition, enough))

    def _entries(self, partition: str, enough: int) -> list[str]:
        found: list[str] = []
        first = ""
        while len(found) < enough:
            page = self._items.query(partition, first=first, limit=min(_PAGE, enough - len(found)))
            found += [entry.key.sort for entry in page]
            if not page:
                break
            first = layout.after(page[-1].key.sort)
        return found

    def _count_open(self, tenant: str) -> Callable[[int], int]:
        def count(enough: int) -> int:
            total = 0
            for shard in layout.pending_shards():
                streams = (sort.split("/")[1] for sort in self._entries(shard, layout.SEQ_MAX))
                total += sum(1 for stream in streams if self._is_of(stream, tenant))
                if total >= enough:
                    break
            return total

        return count

    def _is_of(self, stream_id: str, tenant: str) -> bool:
        """Whether the stream is the tenant's; a stream keeps its tenant for ever."""
        known = self._tenant_of.get(stream_id)
        if known is None:
            record = self._streams.find(stream_id)
            if record is None:
                return False
            if len(self._tenant_of) >= _TENANTS_KNOWN_MAX:
                self._tenant_of.clear()
            known = self._tenant_of[stream_id] = record.tenant
        return known == tenant
