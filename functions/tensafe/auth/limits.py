"""How much a tenant may use: the defaults, and what an operator set for one tenant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Final, cast

from tensafe.auth.principal import check_tenant
from tensafe.auth.tenant_items import Read, tenant_item
from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.ports import ConditionFailed, Delete, Item, Items, JsonValue, Key, Put

LIMIT_MAX: Final = 10**15
CACHE_S: Final = 30.0
"""How long a change may take to reach every process."""
_TENANTS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Each is a whole number from 1. Rates hold on average over a window of `windows.WINDOW_S`."""

    operations_per_s: int = 500
    """Submissions: training, saving, loading, sampling, opening a sampling session."""
    bytes_per_s: int = 64 * 1024 * 1024
    """Their payloads, before they are sealed."""
    open_operations: int = 20_000
    """Submitted and not ended, samples among them."""
    runs: int = 10_000
    """That have not been erased."""
    sessions: int = 10_000
    """Of SDK clients; one that nobody uses goes after 30 days."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 1 <= value <= LIMIT_MAX:
                raise InvalidRequest(f"{name} is a whole number from 1", field=name)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields, in order."""
        return tuple(one.name for one in fields(cls))


class Limits:
    """Reads and changes the limits of tenants."""

    def __init__(self, items: Items, *, clock: Callable[[], float]) -> None:
        self._items = items
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[float, TenantLimits]] = {}

    def of(self, tenant: str, read: Read | None = None) -> TenantLimits:
        """What holds for the tenant, as it was at most CACHE_S ago. `read` is how it is read."""
        now = self._clock()
        with self._lock:
            cached = self._cache.get(tenant)
        if cached is not None and 0 <= now - cached[0] < CACHE_S:
            return cached[1]
        found = _of_item((read or self._items.get)(_key(tenant)))
        with self._lock:
            if len(self._cache) >= _TENANTS_MAX:
                self._cache.clear()
            self._cache[tenant] = (now, found)
        return found

    def stored(self, tenant: str) -> TenantLimits:
        """What holds for the tenant now."""
        return _of_item(self._items.get(_key(tenant)))

    def change(self, tenant: str, changes: dict[str, int]) -> TenantLimits:
        """Set some of the tenant's limits. Raises InvalidRequest."""
        check_tenant(tenant)
        while True:
            item = self._items.get(_key(tenant))
            changed = replace(_of_item(item), **changes)
            own: dict[str, JsonValue] = {**(item.body if item else {}), **changes}
            try:
                self._items.write([Put(_key(tenant), own, item.version if item else 0)])
            except ConditionFailed:
                continue
            return changed

    def reset(self, tenant: str) -> TenantLimits:
        """The defaults again."""
        self._items.write([Delete(_key(tenant), None)])
        return TenantLimits()


def _of_item(item: Item | None) -> TenantLimits:
    """Only what was set is stored, so that defaults of a later release hold for the rest."""
    own = {name: cast(int, value) for name, value in (item.body if item else {}).items()}
    return TenantLimits(**own)


def _key(tenant: str) -> Key:
    return tenant_item(tenant, "limits")
