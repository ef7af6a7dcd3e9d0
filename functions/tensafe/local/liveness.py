"""Finds processes that live and do nothing: a worker that is silent, an API that does not answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from tensafe.contracts.errors import TensafeError
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Key, Put

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
LOOKS: Final = 24
"""So many in a row before a process counts as hung: two to three minutes, since an announcement lasts
30 s and a look may wait 2 s for the API. A busy worker announces itself every 10 s, from its own thread."""
API: Final = "api"
_PROBE: Final = Key("supervisor", "probe")


class Watch:
    """Looked at by one thread, asked by another.

    Looks are counted, not seconds: after the whole machine or container has slept, nobody is blamed at
    once. A worker counts from its first announcement and the API from its first answer, so a slow start
    is no fault. While the store takes no writes nobody can announce anything, and nobody is blamed.
    """

    def __init__(self, services: Services, api_answers: Callable[[], bool], *, looks: int = LOOKS) -> None:
        self._services = services
        self._api_answers = api_answers
        self._looks = looks
        self._silent: dict[str, int] = {}
        """Looks in a row that did not see it, by owner of a worker or API."""
        self._hung: set[str] = set()

    def look(self) -> None:
        """See who is there. Raises TensafeError if the store cannot be read."""
        try:
            there = {worker.owner for worker in self._services.workers.list()}
            if self._api_answers():
                there.add(API)
            if not self._silent.keys() <= there:
                self._write()
        except TensafeError:
            self._silent = dict.fromkeys(self._silent, 0)
            raise
        self._silent |= dict.fromkeys(there, 0)
        for name in self._silent.keys() - there:
            self._silent[name] += 1
            if self._silent[name] >= self._looks:
                del self._silent[name]
                self._hung.add(name)

    def hung(self) -> set[str]:
        """Owners, and perhaps API, that have become silent since the last call; many of them just died."""
        found: set[str] = set()
        while self._hung:
            found.add(self._hung.pop())
        return found

    def _write(self) -> None:
        """Raises TensafeError unless the store takes writes."""
        present = self._services.ports.items.get(_PROBE)
        put = Put(_PROBE, {}, present.version if present else 0, expires_at_s=int(time.time() + 60))
        try:
            self._services.ports.items.write([put])
        except ConditionFailed:
            return  # another wrote: it does take writes
