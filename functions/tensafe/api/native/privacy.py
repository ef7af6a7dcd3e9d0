"""`/v1/privacy/domains`: register a data set, see what its runs have spent, take the proof away."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from tensafe.api.bodies import read
from tensafe.api.context import Context, Edge, TrainCaller
from tensafe.api.native.privacy_models import (
    NAME_PATTERN,
    ContentKey,
    CreateDomain,
    DomainList,
    DomainPlan,
    DomainSummary,
    FinishDomain,
    LedgerRows,
    PrivacyDomain,
)
from tensafe.api.openapi import ERRORS, documented
from tensafe.auth.principal import Principal
from tensafe.contracts.domains import MAX_PAGE_UNITS, MAX_PAGES
from tensafe.contracts.errors import TooManyRequests
from tensafe.operations.streams import now_ms
from tensafe.privacy.domain_rules import require_open
from tensafe.privacy.loops import Loop
from tensafe.privacy.manifest import ENTRY_BYTES
from tensafe.privacy.planner import Question, plan

router = APIRouter(prefix="/v1/privacy/domains", tags=["privacy"], responses=ERRORS)

Name = Annotated[str, Path(max_length=200)]
_PAGE_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_planning = threading.BoundedSemaphore(2)
"""A plan takes a few seconds of a core."""


@router.post("", status_code=201, openapi_extra=documented(CreateDomain))
async def create(request: Request, principal: TrainCaller, context: Edge) -> PrivacyDomain:
    """Begin to register a data set; again with the same terms, the answer is the domain as it stands."""
    body = await read(CreateDomain, request, context)
    await context.call(context.services.domains.create, principal.tenant, body.name, body.terms())
    return await _shown(context, principal, body.name)


@router.get("")
async def list_all(
    principal: TrainCaller,
    context: Edge,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(min_length=1, max_length=128, pattern=NAME_PATTERN)] = None,
) -> DomainList:
    """The tenant's domains by name; those that were never registered are there from their first run on."""
    reader = context.services.domain_reader
    found = await context.call(reader.summaries, principal.tenant, limit=limit, after_name=after or "")
    return DomainList(domains=[DomainSummary.of(summary) for summary in found])


@router.get("/{name}")
async def show(name: Name, principal: TrainCaller, context: Edge) -> PrivacyDomain:
    """One domain: terms, N, root, warnings, and what every run has spent."""
    return await _shown(context, principal, name)


@router.put("/{name}/units/{page}", openapi_extra=_PAGE_BODY)
async def put_units(
    name: Name,
    page: Annotated[int, Path(ge=0, lt=MAX_PAGES)],
    request: Request,
    principal: TrainCaller,
    context: Edge,
) -> PrivacyDomain:
    """Keep a page of units: 1 to 8192 entries of 40 bytes, id (big-endian int64) and content hash.

    Pages are numbered from 0 without gaps, in any order of arrival. The same page may come again; another
    one under its number takes its place until the domain is finished.
    """
    entries = await context.body(request, max_bytes=MAX_PAGE_UNITS * ENTRY_BYTES)
    await _answerable(context, principal, name)
    await context.call(context.services.domains.add_units, principal.tenant, name, page, entries)
    return await _shown(context, principal, name)


@router.delete("/{name}/units/{page}")
async def remove_units(
    name: Name,
    page: Annotated[int, Path(ge=0, lt=MAX_PAGES)],
    principal: TrainCaller,
    context: Edge,
) -> PrivacyDomain:
    """Take a page away that was sent by mistake; again, it does nothing."""
    await _answerable(context, principal, name)
    await context.call(context.services.domains.remove_units, principal.tenant, name, page)
    return await _shown(context, principal, name)


@router.post("/{name}/finish", openapi_extra=documented(FinishDomain))
async def finish(name: Name, request: Request, principal: TrainCaller, context: Edge) -> PrivacyDomain:
    """Freeze the domain with the manifest of its pages, and open it."""
    body = await read(FinishDomain, request, context)
    await _answerable(context, principal, name)
    finishing = context.services.domains.finish
    await context.call(finishing, principal.tenant, name, units=body.units, root=body.root)
    return await _shown(context, principal, name)


@router.post("/{name}/close")
async def close(name: Name, principal: TrainCaller, context: Edge) -> PrivacyDomain:
    """Let nothing be charged to the domain any more, for ever."""
    await _shown(context, principal, name)  # what cannot be answered, for want of accountants, is not done
    await context.call(context.services.domains.close, principal.tenant, name)
    return await _shown(context, principal, name)


@router.get("/{name}/content_key")
async def content_key(name: Name, response: Response, principal: TrainCaller, context: Edge) -> ContentKey:
    """The key of the domain's content hashes, with which its owner computes them at home."""
    domains = context.services.domains
    domain = await context.call(domains.get, principal.tenant, name)
    key = await context.call(domains.content_key, domain)
    response.headers["Cache-Control"] = "no-store"
    return ContentKey(content_key=key.hex())


@router.get("/{name}/ledger")
async def ledger(
    name: Name,
    principal: TrainCaller,
    context: Edge,
    after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> LedgerRows:
    """Rows of the domain's ledger behind row `after`, in order: one charged step each."""
    reading = context.services.domain_reader.rows
    return LedgerRows(rows=await context.call(reading, principal.tenant, name, after=after, limit=limit))


@router.get(
    "/{name}/export",
    response_class=Response,
    responses={200: {"content": {"application/jsonl": {}}}},
)
async def export(name: Name, principal: TrainCaller, context: Edge) -> StreamingResponse:
    """The signed ledger as a file that `tensafe privacy verify` checks offline; no unit ids are in it.

    A file that was cut off lacks its signed last line, and the verifier refuses it.
    """
    lines = context.services.domain_reader.export(principal.tenant, name, at_ms=now_ms())
    first = await context.call(_first, lines)  # what is refused is refused before the answer begins
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(itertools.chain(first, lines), media_type="application/jsonl", headers=headers)


@router.get("/{name}/plan")
async def planned(
    name: Name,
    principal: TrainCaller,
    context: Edge,
    batch_size: Annotated[int, Query(ge=1, le=10_000_000)],
    epochs: Annotated[int, Query(ge=1, le=1_000_000)],
    epsilon: Annotated[float | None, Query(gt=0, le=1e4, allow_inf_nan=False)] = None,
    loop: Loop = Loop.RESHUFFLED,
) -> DomainPlan:
    """The noise that each mode needs for a training on the domain's N units at its delta.

    `epsilon` is the target, by default the domain's whole `max_epsilon`, whatever is spent already. `loop`
    says how the training comes by its batches; the answer marks what is honest for it.
    """
    domain = await context.call(context.services.domains.get, principal.tenant, name)
    require_open(domain)
    target = domain.terms.max_epsilon if epsilon is None else epsilon
    question = Question(domain.units, batch_size, epochs, target, domain.terms.delta)
    if not _planning.acquire(blocking=False):
        raise TooManyRequests("other plans are being computed; ask again in a few seconds")
    try:
        options = await context.call(plan, question)
    finally:
        _planning.release()
    return DomainPlan.of(question, options, loop, domain.warnings)


async def _answerable(context: Context, principal: Principal, name: str) -> None:
    """Nothing is done to a domain that could not be answered then, for want of accountants.

    Only one that is still being registered changes; all others are refused, or left as they are, in any case.
    """
    domain = await context.call(context.services.domains.find, principal.tenant, name)
    if domain is not None and domain.state == "registering":
        await _shown(context, principal, name)


async def _shown(context: Context, principal: Principal, name: str) -> PrivacyDomain:
    overview = await context.call(context.services.domain_reader.show, principal.tenant, name)
    return PrivacyDomain.of(overview)


def _first(lines: Iterator[bytes]) -> list[bytes]:
    return [next(lines)]
