"""A token of an OIDC issuer, through the authorizer to its tenant's data: the functions' own handlers.

What stands between them is as API Gateway does it: the authorizer is asked first, and what it says goes to
the API beside the credential.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest

from tensafe.cloud.callers import cloud_callers
from tensafe.lambdas.api import serving
from tensafe.lambdas.authorizer import authorizing
from tensafe.lambdas.entry import Handler
from tensafe.operations.records import OpKind, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tests.integration.lambdas.conftest import URL
from tests.support.as_caller import made_as, services_as
from tests.support.aws_stack import make_stack
from tests.support.cloud import MODEL
from tests.support.lambda_runtime.gateway import http_event, http_response
from tests.support.oidc_issuer import AUDIENCE, Issuer, oidc_issuer
from tests.support.wire_calls import recording_moto

FORBIDDEN = 403
"""API Gateway's own answer where the authorizer lets nobody in."""


@dataclass
class Edge:
    """Authorizer and API of one deployment, and its issuer."""

    authorizer: Handler
    api: Handler
    services: Services
    issuer: Issuer

    def asked(self, path: str, token: str) -> tuple[int, Any]:
        """Status and JSON of a GET with this token, once the authorizer let it in."""
        event = self.event(path, token)
        decided = self.authorizer({**event, "type": "REQUEST"}, None)
        if not decided["isAuthorized"]:
            return FORBIDDEN, None
        return self.api_alone(path, token, decided["context"])

    def api_alone(self, path: str, token: str, context: dict[str, str]) -> tuple[int, Any]:
        """The API by itself, told this of the caller."""
        event = self.event(path, token)
        event["requestContext"]["authorizer"] = {"lambda": context}
        answer = http_response(self.api(event, None))
        return answer.status, json.loads(answer.body)

    def event(self, path: str, token: str) -> dict[str, Any]:
        return http_event("GET", f"{URL}{path}", headers={"Authorization": f"Bearer {token}"})

    def run_of(self, tenant: str) -> str:
        record, creation = self.services.streams.creation(
            f"{uuid4().hex}:train:0", tenant, StreamKind.RUN, str(MODEL["name"]), spec={}
        )
        self.services.submissions.create(record, creation, Submission(0, OpKind.NOOP, b"{}"))
        return record.stream_id


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    with recording_moto() as wire, oidc_issuer() as issuer:
        stack = make_stack(wire.endpoint)
        told = {"TENSAFE_OIDC_ISSUER": issuer.url, "TENSAFE_OIDC_AUDIENCE": AUDIENCE}
        stack = replace(stack, environment=stack.environment | told)
        services = services_as("api", stack)
        callers = made_as("authorizer", stack, cloud_callers)
        yield Edge(authorizing(callers), serving(services, URL), services, issuer)


def with_tenant(token: str, tenant: str) -> str:
    """The same signature under another tenant's name."""
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    changed = json.dumps({**claims, "tenant": tenant}).encode()
    return f"{head}.{base64.urlsafe_b64encode(changed).rstrip(b'=').decode()}.{signature}"


def test_a_token_reaches_its_tenant_s_runs_and_no_other_s(edge: Edge) -> None:
    runs = {tenant: edge.run_of(tenant) for tenant in ("acme", "other")}
    for tenant, run in runs.items():
        token = edge.issuer.token(tenant=tenant)
        status, listed = edge.asked("/api/v1/training_runs", token)
        assert (status, [one["training_run_id"] for one in listed["training_runs"]]) == (200, [run])
        assert edge.asked(f"/api/v1/training_runs/{run}", token)[0] == 200
        for foreign in set(runs.values()) - {run}:
            assert edge.asked(f"/api/v1/training_runs/{foreign}", token)[0] == 404


def test_a_changed_tenant_claim_is_refused_by_both(edge: Edge) -> None:
    run = edge.run_of("victim")
    good = edge.issuer.token(tenant="acme")
    forged = with_tenant(good, "victim")
    context = edge.authorizer(edge.event("/", edge.issuer.token(tenant="victim")), None)["context"]
    assert context["tenant"] == "victim"
    path = f"/api/v1/training_runs/{run}"
    assert edge.asked(path, forged) == (FORBIDDEN, None)
    # Nor does the API believe what stands beside the credential.
    assert edge.api_alone(path, forged, context)[0] == 401
    assert edge.api_alone(path, good, context)[0] == 404
    assert edge.api_alone(path, edge.issuer.token(tenant="victim"), {})[0] == 200
