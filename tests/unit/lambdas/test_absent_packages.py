"""What the functions' package leaves out is refused with a stable code, not an error of ours."""

from __future__ import annotations

import json
from typing import NoReturn

import pytest

from tensafe.lambdas.api import serving
from tensafe.operations.sessions import Sessions
from tests.support.lambda_runtime import http_event, http_response
from tests.unit.operations.world import TENANT, World


def test_a_request_that_needs_an_accountant_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: object) -> NoReturn:
        raise ModuleNotFoundError("No module named 'dp_accounting'", name="dp_accounting")

    monkeypatch.setattr(Sessions, "create", create)
    world = World()
    key, _ = world.services.api_keys.create(TENANT, ["train"])
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    event = http_event("POST", "https://x/api/v1/create_session", headers=headers, body=b"{}")
    event["body"] = json.dumps({"tags": [], "sdk_version": "0.38.0"})
    answer = http_response(serving(world.services)(event, None))
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (501, "unsupported"), answer.body
