"""Opened manifests, kept for a while so that not every request opens one: few, capped, forgotten in time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from tensafe.contracts.domains import MAX_MANIFEST_UNITS
from tensafe.privacy.manifest import Manifest
from tensafe.vault import forgetting
from tensafe.vault.scope import Scope

KEPT_S: Final = 300.0
_DOMAINS: Final = 8
_UNITS: Final = MAX_MANIFEST_UNITS
"""Of all kept manifests together; the newest stays whatever its size. 48 bytes each in memory."""


class ManifestCache:
    """Manifests by domain and digest, for `kept_s` after they were opened. Thread-safe."""

    def __init__(
        self,
        *,
        kept_s: float = KEPT_S,
        max_units: int = _UNITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept_s = kept_s
        self._max_units = max_units
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Scope, str], tuple[float, Manifest]] = OrderedDict()

    def get(self, scope: Scope, digest: str, load: Callable[[], Manifest]) -> Manifest:
        """The manifest; `load` opens it if it is not kept."""
        with self._lock:
            kept = self._kept.get((scope, digest))
            if kept is not None and self._clock() - kept[0] < self._kept_s:
                self._kept.move_to_end((scope, digest))
                return kept[1]
        manifest = load()
        with self._lock:
            self._kept[scope, digest] = (self._clock(), manifest)
            self._kept.move_to_end((scope, digest))
            while len(self._kept) > 1 and (len(self._kept) > _DOMAINS or self._units() > self._max_units):
                self._kept.popitem(last=False)
        forgetting.WATCH.add(self)
        return manifest

    def forget_stale(self) -> None:
        """Drop the manifests whose time is over."""
        oldest = self._clock() - self._kept_s
        with self._lock:
            for key in [key for key, (since, _) in self._kept.items() if since <= oldest]:
                del self._kept[key]

    def _units(self) -> int:
        return sum(manifest.units for _, manifest in self._kept.values())
