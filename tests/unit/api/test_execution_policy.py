"""HE-01: the policy that a request asks for reaches the operation, in every face, or is refused by name."""

from __future__ import annotations

import pytest
from fastapi import Request

from tensafe.api.execution_policy import POLICY_HEADER, asked_policy, policy_of
from tensafe.api.native import models
from tensafe.api.native.futures import failed
from tensafe.api.openai.bodies import CompletionBody
from tensafe.contracts.errors import HE_CODES, HeRefused, InvalidRequest
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.operations.records import Failure

REQUIRED = ExecutionPolicy.HE_REQUIRED


def test_it_is_read_by_every_face() -> None:
    assert policy_of("HE_REQUIRED") is REQUIRED
    assert policy_of(None) is None
    with pytest.raises(InvalidRequest) as refused:
        policy_of("HE")
    assert refused.value.field == POLICY_HEADER
    body = CompletionBody.model_validate_json('{"model":"m","prompt":"a","execution_policy":"HE_REQUIRED"}')
    assert [payload.execution_policy for payload in body.payloads()] == [REQUIRED]
    assert (
        models.Sample.model_validate_json('{"prompt":[1],"execution_policy":"HE_REQUIRED"}').execution_policy
        is REQUIRED
    )


@pytest.mark.parametrize(
    ("header", "body", "asked"),
    [
        (None, None, None),
        ("HE_PREFERRED", None, "HE_PREFERRED"),
        (None, "HE_REQUIRED", "HE_REQUIRED"),
        ("HE_REQUIRED", "PLAINTEXT_ONLY", "HE_REQUIRED"),
        ("PLAINTEXT_ONLY", "HE_PREFERRED", "HE_PREFERRED"),
    ],
)
def test_of_header_and_body_the_stronger_one_is_asked_for(
    header: str | None, body: str | None, asked: str | None
) -> None:
    headers = [] if header is None else [(POLICY_HEADER.lower().encode(), header.encode())]
    request = Request({"type": "http", "headers": headers})
    in_body = None if body is None else ExecutionPolicy(body)
    assert asked_policy(request, in_body) == asked


@pytest.mark.parametrize("code", HE_CODES)
def test_what_had_to_be_encrypted_and_was_not_is_unavailable(code: str) -> None:
    error = failed(Failure.of(HeRefused(code)))
    assert isinstance(error, HeRefused)
    assert (error.code, error.message) == (code, HeRefused(code).message)
    assert isinstance(failed(Failure("invalid_request", "no", "user")), InvalidRequest)
