"""`/v1/sample`: sample from a base model or from saved weights, wherever these are held."""

from __future__ import annotations

from fastapi import APIRouter, Request

from tensafe.api import runs
from tensafe.api.bodies import DATA_MAX_BYTES, parse
from tensafe.api.context import Edge, SampleCaller
from tensafe.api.execution_policy import asked_policy
from tensafe.api.futures import Future
from tensafe.api.model_samplers import Asked, samplers_of
from tensafe.api.native import models
from tensafe.api.native.idempotency import IdempotencyKey
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.sampling import check_sample
from tensafe.contracts.payloads import SamplePayload
from tensafe.operations.records import OpKind, StreamRecord

router = APIRouter(prefix="/v1/sample", tags=["sampling"], responses=ERRORS)


@router.post("", status_code=202, openapi_extra=documented(models.ModelSample))
async def sample(
    request: Request, principal: SampleCaller, context: Edge, key: IdempotencyKey = None
) -> models.FutureState:
    """Sample from the model that is named; a private adapter is evaluated by its holder, or refused.

    `execution_policy`, or the header X-TenSafe-Execution-Policy, strengthens the policy of the adapter.
    """
    raw = await context.body(request, max_bytes=DATA_MAX_BYTES)
    samplers = samplers_of(request)

    def submit() -> Future:
        body = parse(models.ModelSample, raw, max_bytes=DATA_MAX_BYTES)
        wanted = body.to_request()

        def check(stream: StreamRecord) -> None:
            check_sample(wanted, runs.served(context.services, stream))

        policy = asked_policy(request, body.execution_policy)
        payload = SamplePayload(request=wanted, answer="json", execution_policy=policy)
        asked = Asked(OpKind.SAMPLE, payload.model_dump_json().encode(), key, check)
        return samplers.submit(principal.tenant, body.model, asked)

    return models.FutureState.of(await context.call(submit))
