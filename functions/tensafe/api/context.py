"""What every route is handed: the services, who is calling, and how to wait without blocking the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Final, ParamSpec, TypeVar, cast

from fastapi import Depends, Request

from tensafe.api.readiness import Readiness
from tensafe.api.waiting import ResultWaiter
from tensafe.auth.callers import credential
from tensafe.auth.principal import AccessScope, Principal
from tensafe.auth.waits import ProcessWaits, Waits
from tensafe.contracts.errors import Forbidden, InvalidRequest, NotFound, PayloadTooLarge
from tensafe.correlation import carried
from tensafe.operations.records import StreamKind, StreamRecord
from tensafe.operations.sessions import Session
from tensafe.operations.streams import not_found
from tensafe.services import Services
from tensafe.wire.limits import WireLimits

_HEAD_BYTES: Final = 132 * 1024
"""A zstd block, 128 KiB at most, must be whole before any of it can be read."""
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Caps of the edge. A body counts as it arrives, before decompression."""

    body_bytes: int = 16 * 1024 * 1024
    long_poll_s: float = 20.0
    """As long as a Lambda behind API Gateway can hold a poll (29 s) with room to spare."""
    completion_s: float = 600.0
    """How long a completion of the OpenAI face may take; nobody can come back for it."""
    waits_per_tenant: int = 1000
    """Requests that wait at once. Each costs two looks at the store a second."""
    answer_bytes: int | None = None
    """The largest answer that the platform returns; a larger one is fetched elsewhere (`api/answers.py`)."""
    wire: WireLimits = field(default_factory=WireLimits)


class BodyTooLarge(PayloadTooLarge):
    """The body passes its cap; `head` is how it began."""

    def __init__(self, cap_bytes: int, head: bytes) -> None:
        super().__init__(f"the body passes {cap_bytes} bytes; send less at a time", field="body")
        self.head = head


class Context:
    """One per application."""

    def __init__(
        self,
        services: Services,
        limits: EdgeLimits,
        base_url: str | None = None,
        waits: Waits | None = None,
    ) -> None:
        """Without `base_url`, URLs are made for the address at which their request came.

        Without `waits`, this process alone answers: `limits.waits_per_tenant` is counted in it.
        """
        self.base_url = base_url
        self.services = services
        self.limits = limits
        self.waiter = ResultWaiter(services)
        self.readiness = Readiness(services)
        self._waits = waits or ProcessWaits(limits.waits_per_tenant)
        # Writes end in fsync: they leave the loop to these threads.
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="edge")
        # Apart from them: a slow identity provider must hold up nobody but those whose tokens need it.
        self._issuer_thread = ThreadPoolExecutor(1, thread_name_prefix="issuer")

    async def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a blocking call in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, carried(lambda: function(*args, **kwargs)))

    async def authenticate(self, presented: str | None) -> Principal:
        """Who presents this credential. Raises Unauthenticated, or Unavailable without the issuer's keys."""
        callers = self.services.callers
        known = callers.recognise(presented)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._issuer_thread, carried(callers.authenticate), presented)

    def run(self, principal: Principal, run_id: str) -> StreamRecord:
        """The caller's run. Raises NotFound for whatever else the text may be, Gone once erased."""
        return self._stream(self.services.streams.get, principal, run_id, StreamKind.RUN)

    def sampler(self, principal: Principal, sampler_id: str) -> StreamRecord:
        """The caller's sampling session. Raises NotFound for whatever else the text may be."""
        return self._stream(self.services.streams.get, principal, sampler_id, StreamKind.SAMPLER)

    def run_to_submit(self, principal: Principal, run_id: str) -> StreamRecord:
        """As `run`, for an operation that is submitted next: the record may be a while old."""
        return self._stream(self.services.streams.known, principal, run_id, StreamKind.RUN)

    def sampler_to_submit(self, principal: Principal, sampler_id: str) -> StreamRecord:
        """As `sampler`, for a sample that is submitted next: the record may be a while old."""
        return self._stream(self.services.streams.known, principal, sampler_id, StreamKind.SAMPLER)

    def session(self, principal: Principal, session_id: str) -> Session:
        """The caller's session. Raises NotFound for whatever else the text may be."""
        try:
            return self.services.sessions.get(session_id, principal.tenant)
        except InvalidRequest:
            raise NotFound("no such session; create one first", field="session_id") from None

    def _stream(
        self,
        find: Callable[[str, str, StreamKind], StreamRecord],
        principal: Principal,
        stream_id: str,
        kind: StreamKind,
    ) -> StreamRecord:
        try:
            return find(stream_id, principal.tenant, kind)
        except InvalidRequest:  # no text that could be an id
            raise not_found(kind) from None

    @contextmanager
    def waiting(self, tenant: str) -> Iterator[None]:
        """A place among the tenant's requests that wait, for `wait`. Raises TooManyRequests, Unavailable."""
        place = self._waits.begin(tenant)
        try:
            yield
        finally:
            self._waits.end(tenant, place)

    async def wait(
        self,
        request: Request,
        stream_id: str,
        look: Callable[[], _T | None],
        timeout_s: float,
        *,
        has_place: bool = False,
    ) -> _T | None:
        """What `look` returns once something of the stream has ended, or None after `timeout_s`.

        Raises Unauthenticated if the caller's key is revoked or expires meanwhile, or the token ends, and
        as `waiting`, unless the caller holds a place or there is nothing to wait for.
        """
        presented = credential(request.headers)
        principal = await principal_of(request)

        def look_for_the_caller() -> _T | None:
            self.services.callers.check_still(principal, presented)
            return look()

        with ExitStack() as held:

            def begin() -> None:
                if not has_place:
                    held.enter_context(self.waiting(principal.tenant))

            return await self.waiter.until(stream_id, look_for_the_caller, timeout_s, begin)

    async def body(self, request: Request, *, max_bytes: int | None = None) -> bytes:
        """The raw body. Raises BodyTooLarge once it is clear that it passes the cap."""
        cap = self.limits.body_bytes if max_bytes is None else min(max_bytes, self.limits.body_bytes)
        declared = request.headers.get("content-length", "")
        too_large = declared.isdigit() and int(declared[:20]) > cap
        received = bytearray()
        async for chunk in request.stream():
            received += chunk
            if len(received) > cap or (too_large and len(received) >= _HEAD_BYTES):
                too_large = True
                break
        if too_large:
            raise BodyTooLarge(cap, bytes(received[:_HEAD_BYTES]))
        return bytes(received)


def context_of(request: Request) -> Context:
    """The application's context."""
    return cast(Context, request.app.state.context)


async def principal_of(request: Request) -> Principal:
    """Who is calling. Raises Unauthenticated, Unavailable."""
    return await context_of(request).authenticate(credential(request.headers))


async def _trainer(request: Request) -> Principal:
    principal = await principal_of(request)
    principal.require(AccessScope.TRAIN)
    return principal


async def _sampler(request: Request) -> Principal:
    principal = await principal_of(request)
    principal.require(AccessScope.SAMPLE)
    return principal


async def _worker(request: Request) -> Principal:
    principal = await principal_of(request)
    if not principal.scopes & {AccessScope.TRAIN, AccessScope.SAMPLE, AccessScope.ADMIN}:
        raise Forbidden("this API key has neither the scope 'train' nor 'sample'")
    return principal


async def _context(request: Request) -> Context:
    return context_of(request)


Caller = Annotated[Principal, Depends(principal_of)]
"""Any valid key or token."""
WorkCaller = Annotated[Principal, Depends(_worker)]
"""A key that may train or sample."""
TrainCaller = Annotated[Principal, Depends(_trainer)]
SampleCaller = Annotated[Principal, Depends(_sampler)]
Edge = Annotated[Context, Depends(_context)]
