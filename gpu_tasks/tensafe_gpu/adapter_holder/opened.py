"""The adapters that are open in memory: while somebody uses them, and never for long once they are over."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

import numpy as np

from tensafe.vault import forgetting
from tensafe_gpu.adapter_holder.store import AdapterStore, Loaded
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.adapter import ServedAdapter
from tensafe_gpu.helora.direct import DirectSite, layout_of
from tensafe_gpu.helora.keystream import derived_key
from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.ports import HOLDER_ABSENT, NOT_ALLOWED, HeUnavailable, SiteId
from tensafe_gpu.helora.quantise import Float64Array

log = logging.getLogger(__name__)

KEEP_S: Final = 60.0
"""How long an adapter that nobody uses stays open, for who comes again."""
MAX_OPENED_BYTES: Final = 4 << 30
"""Of all that is open together, but that one is always opened."""
_PLAIN_BYTES: Final = 8 * len(PRIMES) * N

Name = tuple[str, int, int]
"""Adapter, version and epoch."""


class OpenedAdapter:
    """A loaded version with what serving needs per site, made when first asked for. Thread-safe."""

    def __init__(self, loaded: Loaded) -> None:
        self.info = loaded.adapter.info
        self.widths = {shape.site: shape.d_in for shape in self.info.sites}
        self.size_bytes = sum(_size_bytes(loaded.adapter, site) for site in self.widths)
        """With all that serving may need of it."""
        self._loaded: Loaded | None = loaded
        self._columns: dict[SiteId, Float64Array] = {}
        self._direct: dict[SiteId, DirectSite] = {}
        self.direct_lock = threading.Lock()

    @property
    def name(self) -> Name:
        return self.info.name, self.info.version, self.info.epoch

    @property
    def closed(self) -> bool:
        return self._loaded is None

    @property
    def adapter(self) -> ServedAdapter:
        """Raises HeUnavailable once it is closed."""
        return self._open().adapter

    def columns(self, site: SiteId) -> Float64Array:
        """A of a site as float64 [d_in, R]. Raises HeUnavailable once it is closed."""
        found = self._columns.get(site)
        if found is None:
            a = self.adapter.sites[site].a
            found = self._columns[site] = np.ascontiguousarray(a.T.astype(np.float64))
        return found

    def direct(self, site: SiteId) -> DirectSite:
        """A site's plaintexts for the direct mode; call and use it under `direct_lock`.

        Raises HeUnavailable once it is closed, and for a site that is too large.
        """
        found = self._direct.get(site)
        if found is None:
            found = self._direct[site] = DirectSite(self.adapter.sites[site].a)
        return found

    def share_key(self, site: SiteId, block_id: bytes, salt: bytes) -> bytes:
        """Keys the block's s: made again after a restart from its salt, other in another epoch.

        Raises HeUnavailable once it is closed.
        """
        known = (*self.name, site, block_id, salt)
        return derived_key(self._open().secret, "shares", *known)

    def close(self) -> None:
        """Let go of the weights, whoever still has this."""
        self._loaded, self._columns, self._direct = None, {}, {}

    def _open(self) -> Loaded:
        if self._loaded is None:
            raise HeUnavailable(NOT_ALLOWED, "the adapter has been closed")
        return self._loaded


class Shelf:
    """The open adapters of a store. Thread-safe. `forgetting` looks through it every few seconds."""

    def __init__(
        self,
        store: AdapterStore,
        accepted: AcceptLog,
        *,
        over: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`over` is called before what is over is closed, so that who asks for it hears why."""
        self._store, self._accepted, self._over, self._clock = store, accepted, over, clock
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._opened: OrderedDict[Name, OpenedAdapter] = OrderedDict()
        """The one that was given back last is at the end."""
        self._users: Counter[Name] = Counter()
        self._idle_since: dict[Name, float] = {}
        forgetting.WATCH.add(self)

    def take(self, name: Name) -> OpenedAdapter:
        """Open it, or what its version is by now; `give_back` it.

        Raises HeUnavailable while others in use leave no room for it, and what `AdapterStore.load` raises.
        """
        with self._lock:
            if name in self._opened:
                return self._used(self._opened[name])
        with self._loading:  # one after the other, so that as little as can be is beyond the bound
            with self._lock:
                if name in self._opened:
                    return self._used(self._opened[name])
            opened = OpenedAdapter(self._store.load(*name[:2]))
            with self._lock:
                if opened.name in self._opened:
                    return self._used(self._opened[opened.name])
                self._make_room(opened.size_bytes)
                self._opened[opened.name] = self._used(opened)
        try:
            self._accepted.forget_blocks_before(*opened.name)
        except BaseException:
            self.give_back(opened)
            raise
        return opened

    def give_back(self, opened: OpenedAdapter) -> None:
        """What was taken."""
        with self._lock:
            self._users[opened.name] -= 1
            if self._users[opened.name]:
                return
            del self._users[opened.name]
            if self._opened.get(opened.name) is opened:
                self._idle_since[opened.name] = self._clock()
                self._opened.move_to_end(opened.name)

    def close(self) -> None:
        """Close all that are open; whoever uses one is refused."""
        with self._lock:
            for name in list(self._opened):
                self._close(name, "stopped")

    def forget_stale(self) -> None:
        """Close what was revoked, or is of an epoch before, also under those who use it; and what is idle."""
        with self._lock:
            names, oldest = list(self._opened), self._clock() - KEEP_S
            for name in [name for name, since in self._idle_since.items() if since <= oldest]:
                self._close(name, "idle")
        for name in names:
            published = self._store.get(*name[:2])
            if published.active and published.epoch == name[2]:
                continue
            self._over()
            with self._lock:
                if name in self._opened:
                    self._close(name, "over" if published.active else "revoked")
            if not published.active:
                self._store.forget_key(*name[:2])
            first = published.epoch if published.active else published.epoch + 1
            self._accepted.forget_blocks_before(*name[:2], first)

    def _used(self, opened: OpenedAdapter) -> OpenedAdapter:
        self._users[opened.name] += 1
        self._idle_since.pop(opened.name, None)
        return opened

    def _make_room(self, size_bytes: int) -> None:
        held = sum(one.size_bytes for one in self._opened.values())
        for name in list(self._opened):
            if held + size_bytes <= MAX_OPENED_BYTES:
                return
            if name in self._idle_since:
                held -= self._opened[name].size_bytes
                self._close(name, "no room")
        if held and held + size_bytes > MAX_OPENED_BYTES:
            raise HeUnavailable(HOLDER_ABSENT, "the adapters in use leave no memory for another one")

    def _close(self, name: Name, reason: str) -> None:
        self._idle_since.pop(name, None)
        self._opened.pop(name).close()
        facts = {"adapter": name[0], "version": name[1], "epoch": name[2], "reason": reason}
        log.info("adapter closed", extra=facts)


def _size_bytes(adapter: ServedAdapter, site: SiteId) -> int:
    one = adapter.sites[site]
    layout = layout_of(one.shape.d_in, one.shape.rank_rows)
    columns = one.a.size * np.dtype(np.float64).itemsize
    b = sum(matrix.nbytes for matrix in one.b.values())
    return one.a.nbytes + columns + b + layout.groups * layout.chunks * _PLAIN_BYTES
