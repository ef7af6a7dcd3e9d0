"""The authorizer as Lambda would run it: keys, tokens of an issuer, and no more than its role allows."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tensafe.services import Services
from tests.integration.lambdas.conftest import TENANT
from tests.support.aws_stack import Stack
from tests.support.lambda_runtime import Crashed, Function
from tests.support.oidc_issuer import AUDIENCE, Issuer, oidc_issuer
from tests.support.recording_proxy import recording_proxy
from tests.support.templates import CORE, read_template

REFUSED = {"isAuthorized": False}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with oidc_issuer() as running:
        yield running


@pytest.fixture(scope="module")
def authorizer(function: Callable[..., Function], issuer: Issuer) -> Function:
    return function("authorizer", TENSAFE_OIDC_ISSUER=issuer.url, TENSAFE_OIDC_AUDIENCE=AUDIENCE)


def event(**headers: str) -> dict[str, Any]:
    """As API Gateway sends it to a REQUEST authorizer, payload 2.0."""
    return {
        "version": "2.0",
        "type": "REQUEST",
        "routeArn": "arn:aws:execute-api:eu-central-1:123456789012:api/$default/POST/api/v1/optim_step",
        "routeKey": "POST /api/v1/optim_step",
        "rawPath": "/api/v1/optim_step",
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
        "requestContext": {"http": {"method": "POST", "path": "/api/v1/optim_step"}},
    }


def test_a_key_of_the_table_is_let_in_until_it_is_revoked(authorizer: Function, services: Services) -> None:
    key, record = services.api_keys.create(TENANT, ["train"])
    allowed = {"tenant": TENANT, "scopes": "train", "key_id": record.key_id}
    for headers in ({"x_api_key": key}, {"authorization": f"Bearer {key}"}):
        assert authorizer.invoke(event(**headers)) == {"isAuthorized": True, "context": allowed}
    assert authorizer.invoke(event()) == REFUSED
    assert authorizer.invoke(event(x_api_key=f"{key[:-1]}!")) == REFUSED
    services.api_keys.revoke(record.key_id)
    deadline = time.monotonic() + 30
    while authorizer.invoke(event(x_api_key=key)) != REFUSED:  # within half a second
        assert time.monotonic() < deadline


def test_a_token_of_the_issuer_is_let_in_and_no_other(authorizer: Function, issuer: Issuer) -> None:
    good = authorizer.invoke(event(authorization=f"Bearer {issuer.token()}"))
    assert good["isAuthorized"] is True
    assert good["context"]["tenant"] == "acme"
    assert good["context"]["scopes"] == "sample train"
    for wrong in ({"aud": "else"}, {"exp": 1}, {"tenant": None}, {"iss": "https://else.example"}):
        assert authorizer.invoke(event(authorization=f"Bearer {issuer.token(**wrong)}")) == REFUSED


def refusals(function: Function) -> list[str]:
    """Why tokens were refused, as the log has it."""
    lines = [json.loads(one) for one in function.logged.splitlines() if one.startswith("{")]
    return [one["reason"] for one in lines if one.get("event") == "token refused"]


def symmetric(issuer: Issuer, algorithm: str, secret: bytes) -> str:
    """A token whose MAC is made with `secret`; unsigned for `none`."""
    kid, _, _ = issuer.key()
    head, body = (
        base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode()
        for one in ({"alg": algorithm, "kid": kid, "typ": "JWT"}, issuer.claims())
    )
    mac = hmac.digest(secret, f"{head}.{body}".encode(), "sha256") if algorithm == "HS256" else b""
    return f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def test_no_token_chooses_how_it_is_checked(authorizer: Function, issuer: Issuer) -> None:
    """The issuer's public key is everybody's: a MAC that is made with it proves nothing."""
    _, algorithm, key = issuer.key()
    published = json.dumps({**key.as_dict(private=False), "alg": algorithm, "use": "sig"}).encode()
    pem = key.as_pem(private=False)
    forged = [symmetric(issuer, "HS256", secret) for secret in (pem, pem.strip(), published, b"")]
    forged += [symmetric(issuer, name, b"") for name in ("none", "None", "NONE", "ES512", "")]
    before = len(refusals(authorizer))
    for token in forged:
        for header in (f"Bearer {token}", f"bearer {token}"):
            assert authorizer.invoke(event(authorization=header)) == REFUSED
        assert authorizer.invoke(event(x_api_key=token)) == REFUSED
    assert set(refusals(authorizer)[before:]) <= {"algorithm", "form"}
    # An allowed algorithm that is not the key's.
    mixed = symmetric(issuer, "RS256", b"") + "AAAA"
    assert authorizer.invoke(event(authorization=f"Bearer {mixed}")) == REFUSED
    good = issuer.token()
    assert authorizer.invoke(event(authorization=f"Bearer {good}"))["isAuthorized"] is True
    bare = good.rpartition(".")[0]  # and the good one without its signature
    assert authorizer.invoke(event(authorization=f"Bearer {bare}.")) == REFUSED


@pytest.mark.slow
def test_a_rotated_key_is_picked_up_and_the_withdrawn_one_ends(authorizer: Function, issuer: Issuer) -> None:
    old = issuer.token()
    assert authorizer.invoke(event(authorization=f"Bearer {old}"))["isAuthorized"] is True
    issuer.rotate("second", "EdDSA")
    new = issuer.token()
    deadline = time.monotonic() + 60
    while authorizer.invoke(event(authorization=f"Bearer {new}")) == REFUSED:  # asked once in 10 s
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert authorizer.invoke(event(authorization=f"Bearer {old}")) == REFUSED
    assert authorizer.starts == 1
    asked = issuer.requests.count("/jwks")
    for _ in range(5):  # a key id that nobody has costs the issuer nothing for as long
        stranger = issuer.token(header={"kid": "third"})
        assert authorizer.invoke(event(authorization=f"Bearer {stranger}")) == REFUSED
    assert issuer.requests.count("/jwks") == asked


def test_while_the_table_is_away_nobody_is_let_in(function: Callable[..., Function], key: str) -> None:
    away = function("authorizer", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    with pytest.raises(Crashed, match="Unavailable"):  # the gateway answers 500, which clients try again
        away.invoke(event(x_api_key=key))


def test_it_makes_the_calls_that_its_role_allows_and_no_other(
    function: Callable[..., Function], stack: Stack, key: str
) -> None:
    """moto keeps no policies, so what it was asked is held against the template's."""
    policy = read_template(CORE)["Resources"]["AuthorizerPolicy"]["Properties"]["PolicyDocument"]
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    with recording_proxy(stack.endpoint) as proxy:
        started = function("authorizer", AWS_ENDPOINT_URL=proxy.url)
        assert started.invoke(event(x_api_key=key))["isAuthorized"] is True
        assert started.invoke(event(x_api_key="tml-" + "0" * 16 + "-" + "A" * 43)) == REFUSED
    assert proxy.called == ["DynamoDB_20120810.GetItem"] * 2
    outside = ("logs:", "xray:")  # Lambda's own doing
    assert {one for one in allowed if not one.startswith(outside)} == {"dynamodb:GetItem"}
