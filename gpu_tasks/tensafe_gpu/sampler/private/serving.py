"""The sampler's side of private adapters: admission, watching, and counting what was evaluated.

The engine's process opens an adapter in the background and says when it has failed; here it is waited
for, asked about while requests run, and held to its counts when they have ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tensafe.contracts.errors import HeRefused
from tensafe.contracts.execution import Execution, ExecutionMode
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.sampler.private.adapter import PrivateAdapter, vllm_name
from tensafe_gpu.sampler.private.counting import counted, together
from tensafe_gpu.sampler.private.preparing import BLOCK_S, LOW_WATER

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)

GONE_ON: Final = ("he_adapter_holder_absent", "he_version_mismatch")
"""Failures of an adapter that has been open for a while which opening it again may heal."""
OF_ONE_REQUEST: Final = ("he_activations_not_finite",)
"""Failures after which an adapter serves all others as before."""
_OPEN_POLL_S: Final = 0.05
_WATCH_S: Final = 0.1
"""How soon the requests of an adapter that has failed are aborted; until then they run on zero deltas."""
_STANDS_S: Final = 1.0
"""After so long without a sign of an adapter's connection a request asks whether it stands."""
OPEN_S: Final = 120.0
"""Longest wait for an adapter that is being opened to come one block of its first preprocessing further."""


class NeverBegun(HeRefused):
    """Nothing of a request was given to the engine, and its adapter serves all others as before."""


Rpc = Callable[[str, tuple[Any, ...]], Awaitable[Any]]
"""One method of the worker extension; the answer of the first worker."""


class PrivateServing:
    """Opens private adapters in the worker and vouches for what they answered."""

    def __init__(self, rpc: Rpc, *, open_s: float = OPEN_S, block_s: float = BLOCK_S) -> None:
        self._rpc = rpc
        self._open_s, self._block_s = open_s, block_s
        self._facts: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, asyncio.Event] = {}
        self._codes: dict[str, str] = {}
        self._stood: dict[str, float] = {}
        """When a connection was last known to stand, by the name of its adapter."""
        self._asking: dict[str, asyncio.Task[str | None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._running = 0

    async def open(self, adapter: PrivateAdapter, adapter_id: int) -> None:
        """Open and wait until it can be evaluated. Raises HeRefused; nothing is left open then."""
        name, began = vllm_name(adapter, adapter_id), time.monotonic()
        wanted = {
            "name": adapter.name,
            "version": adapter.version,
            "digest": adapter.digest,
            "base_model": adapter.base_model,
        }
        await self._rpc("tensafe_private_open", (name, wanted, dict(adapter.holder)))
        try:
            facts = await self._opened(name, began)
        except BaseException:
            await self._rpc("tensafe_private_close", (name,))
            raise
        self._facts[name] = facts
        self._failed[name] = asyncio.Event()
        self._stood[name] = time.monotonic()
        open_ms = round(1000 * (time.monotonic() - began), 1)
        _LOG.info("private adapter opened", extra={"adapter_id": adapter_id, "open_ms": open_ms})

    async def close(self, name: str) -> None:
        """End the adapter; absent is fine."""
        if self._facts.pop(name, None) is not None:
            self._failed.pop(name)
            self._stood.pop(name, None)
            self._codes.pop(name, None)
            await self._rpc("tensafe_private_close", (name,))

    async def run(
        self, name: str, work: Coroutine[Any, Any, T], rows: int = 0, least: int | None = None
    ) -> T:
        """The work's result, begun once so many rows are prepared, or a block of each site.

        Of these `least` are enough where no more are made: the prompt of one continuation.

        Cancels it and raises HeRefused as soon as the adapter fails.
        """
        failed = self._failed[name]
        task = asyncio.ensure_future(self._when_prepared(name, work, rows, rows if least is None else least))
        failing = asyncio.create_task(failed.wait())
        self._running += 1
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="watch private adapters")
        try:
            await asyncio.wait({task, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failed.is_set():
                raise HeRefused(self._codes[name])
            return task.result()
        finally:
            self._running -= 1
            failing.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            work.close()  # it may never have begun

    async def _when_prepared(self, name: str, work: Coroutine[Any, Any, T], rows: int, least: int) -> T:
        """Wait outside of the engine: in a forward pass everybody would wait, for one site after the other.

        A pass waits for what was used up by others meanwhile, or is beyond a block. Raises HeRefused, with
        the reason, if a block that it waits for is not made.
        """
        await self._standing(name)
        blocks, began, failures = 0.0, time.monotonic(), None
        while rows > LOW_WATER:
            found: dict[str, Any] = await self._rpc("tensafe_private_missing", (name, min(rows, N)))
            if not found["missing"]:
                break
            if failures is None:
                failures = found["failures"]  # before it wanted any
            elif found["failures"] > failures:
                if min(rows, N) - found["missing"] >= min(least, N):
                    break
                code = str(found["code"])
                # Only another epoch has it opened anew: what is prepared at the other sites is good.
                raise HeRefused(code) if code == "he_version_mismatch" else NeverBegun(code)
            if found["blocks"] > blocks:
                blocks, began = found["blocks"], time.monotonic()
            elif time.monotonic() - began > max(self._block_s, found["block_s"]):
                raise NeverBegun("he_not_prepared")
            await asyncio.sleep(_OPEN_POLL_S)
        return await work

    async def _standing(self, name: str) -> None:
        """Wait until the adapter's connection stands, if nothing was heard of it for a while.

        It may have ended while nobody used it, and is then made anew outside of the engine: a forward pass
        that finds it gone fails its requests. All who come meanwhile ask once. Raises HeRefused.
        """
        if time.monotonic() - self._stood.get(name, 0.0) < _STANDS_S:
            return
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._stands(name))
            asking.add_done_callback(lambda _: self._asking.pop(name, None))
        code = await asyncio.shield(asking)
        if code is not None:
            raise HeRefused(code)

    async def _stands(self, name: str) -> str | None:
        """None once it does, else the code of the failure."""
        while True:
            found: dict[str, Any] = await self._rpc("tensafe_private_standing", (name,))
            if found["code"] is not None:
                return str(found["code"])
            if found["connected"]:
                if name in self._facts:
                    self._stood[name] = time.monotonic()
                return None
            await asyncio.sleep(_OPEN_POLL_S)

    async def vouch(
        self, adapter: PrivateAdapter, name: str, requests: Sequence[str], outputs: Sequence[RequestOutput]
    ) -> Execution:
        """What evaluated these finished requests. Raises HeRefused unless it was all of it."""
        reports = await self.reports(requests)
        facts = self._facts.get(name, {"sites": 0})
        accounts = [
            counted(report, output, int(facts["sites"]))
            for report, output in zip(reports, outputs, strict=True)
        ]
        if name in self._stood:
            self._stood[name] = time.monotonic()
        return Execution(
            mode=ExecutionMode.HE,
            adapter=f"{adapter.name}@{adapter.version}",
            digest=str(facts["digest"]),
            epoch=int(facts["epoch"]),
            parameters=str(facts["parameters"]),
            **together(accounts),
        )

    async def reports(self, requests: Sequence[str]) -> list[dict[str, Any]]:
        """The worker's accounts of requests that have ended, which it closes."""
        found: list[dict[str, Any]] = await self._rpc("tensafe_private_report", (list(requests),))
        return found

    async def _opened(self, name: str, began: float) -> dict[str, Any]:
        blocks = 0
        while time.monotonic() - began < self._open_s:
            facts: dict[str, Any] = await self._rpc("tensafe_private_state", (name,))
            if facts["state"] == "ready":
                return facts
            if facts["state"] == "failed":
                raise HeRefused(facts["code"])
            if facts.get("blocks", 0) > blocks:  # it comes along, and a wide model has many sites
                blocks, began = facts["blocks"], time.monotonic()
            await asyncio.sleep(_OPEN_POLL_S)
        raise HeRefused("he_timeout")

    async def _watch(self) -> None:
        """Ask the worker for failures while anything private runs."""
        while self._running:
            try:
                failures: dict[str, str] = await self._rpc("tensafe_private_failures", ())
            except Exception as error:  # noqa: BLE001 - requests learn of the engine's death by themselves
                _LOG.warning("private adapters not watched", extra={"error": type(error).__name__})
                return
            for name, code in failures.items():
                if name in self._failed and not self._failed[name].is_set():
                    self._codes[name] = code
                    self._failed[name].set()
            await asyncio.sleep(_WATCH_S)
