"""Whether each thing that requests depend on answers: by name, each with a time-out of its own.

Nobody needs a credential to ask, so asking is cheap: an answer holds for a moment, the key ring's and the
signer's for a minute (each look may cost a call of KMS), and what hangs is not asked again until it has
returned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Final

from tensafe.contracts.errors import TensafeError
from tensafe.services import Services
from tensafe.storage.ports import Key
from tensafe.vault.scope import Scope

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 1.5
"""For all of them together, since they run at once; the supervisor waits for 2 s."""
_HOLDS_S: Final = 0.5
_KEYS_HOLD_S: Final = 60.0
_PROBE: Final = Scope("health", "health/probe")
"""A data key as of a tenant's run: the policy of the key on AWS refuses every other encryption context."""
OK: Final = "ok"
TIMED_OUT: Final = "timeout"


@dataclass(slots=True)
class _Probe:
    look: Callable[[], object]
    holds_s: float
    running: Future[str] | None = None
    good_until_s: float = 0.0


class Readiness:
    """Asks the dependencies. One for each application."""

    def __init__(
        self,
        services: Services,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        ports = services.ports
        self._services = services
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._probes = {
            "items": _Probe(lambda: ports.items.get(Key("health", "probe")), _HOLDS_S),
            "blobs": _Probe(lambda: ports.blobs.head("health/probe"), _HOLDS_S),
            "queues": _Probe(lambda: [ports.queues.depth(spec.name) for spec in ports.queue_specs], _HOLDS_S),
            "keys": _Probe(lambda: ports.keyring.check(_PROBE.context()), _KEYS_HOLD_S),
            "signer": _Probe(lambda: ports.signer.check(), _KEYS_HOLD_S),  # noqa: PLW0108 - a port of then
            "anchors": _Probe(lambda: ports.anchors.get("health/probe"), _HOLDS_S),
        }
        self._threads = ThreadPoolExecutor(len(self._probes), thread_name_prefix="ready")

    def checks(self) -> Mapping[str, str]:
        """By dependency `ok`, `timeout` or the code of its error; by role and model `ok` or `absent`."""
        deadline = self._clock() + self._timeout_s
        asked = {name: self._ask(name, probe) for name, probe in self._probes.items()}
        found = {name: self._answer(future, deadline) for name, future in asked.items()}
        if found["items"] == OK:
            found |= self._workers()
        return found

    def _ask(self, name: str, probe: _Probe) -> Future[str] | None:
        """The look that is going on or begins now; None while the last good one holds."""
        with self._lock:
            if self._clock() < probe.good_until_s:
                return None
            if probe.running is None or probe.running.done():
                probe.running = self._threads.submit(self._look, name, probe)
            return probe.running

    def _look(self, name: str, probe: _Probe) -> str:
        try:
            probe.look()
        except TensafeError as error:
            return error.code
        except Exception as error:
            log.error("readiness: %s", name, exc_info=error)
            return "internal_error"
        probe.good_until_s = self._clock() + probe.holds_s
        return OK

    def _answer(self, look: Future[str] | None, deadline_s: float) -> str:
        if look is None:
            return OK
        try:
            return look.result(timeout=max(0.0, deadline_s - self._clock()))
        except NotYet:
            return TIMED_OUT

    def _workers(self) -> dict[str, str]:
        try:
            alive = {(worker.role, worker.base_model) for worker in self._services.workers.list()}
        except TensafeError as error:
            return {"workers": error.code}
        return {
            f"{role}:{model}": OK if (role, model) in alive else "absent"
            for model in self._services.models
            for role in ("trainer", "sampler")
        }
