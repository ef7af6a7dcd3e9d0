"""The authorizer of API Gateway: payload 2.0 in, simple responses out."""

from __future__ import annotations

from typing import Any

import pytest

from tensafe.auth.callers import Callers, credential
from tensafe.auth.gateway import authorize
from tensafe.auth.keys import ApiKeys
from tensafe.contracts.errors import Unavailable
from tests.fakes import MemoryItems


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys(MemoryItems())


def event(**headers: str) -> dict[str, Any]:
    """As API Gateway sends it: names in lower case, repeated headers joined by commas."""
    return {
        "version": "2.0",
        "type": "REQUEST",
        "routeArn": "arn:aws:execute-api:eu-central-1:123456789012:api/$default/POST/api/v1/optim_step",
        "identitySource": None,
        "routeKey": "POST /api/v1/optim_step",
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
    }


@pytest.mark.parametrize("how", ["x_api_key", "authorization"])
def test_a_key_is_let_in_with_its_tenant_and_scopes(keys: ApiKeys, how: str) -> None:
    key, record = keys.create("acme", ["train", "sample"])
    presented = key if how == "x_api_key" else f"Bearer {key}"
    assert authorize(Callers(keys), event(**{how: presented})) == {
        "isAuthorized": True,
        "context": {"tenant": "acme", "scopes": "sample train", "key_id": record.key_id},
    }


def test_nothing_else_is(keys: ApiKeys) -> None:
    key, record = keys.create("acme", ["train"])
    other, _ = keys.create("evil", ["train"])
    callers = Callers(keys)
    refused = [
        {},
        event(),
        {"headers": None},
        event(authorization=key),
        event(authorization=f"Basic {key}"),
        event(x_api_key=f"{other},{key}"),
        event(x_api_key="tml-" + "0" * 16 + "-" + "A" * 43),
        event(x_api_key="x" * 100_000),
        # What the gateway's own context says cannot be said by a client.
        event(x_tenant="acme", x_amzn_authorizer_context="acme") | {"requestContext": {"authorizer": {}}},
    ]
    for one in refused:
        assert authorize(callers, one) == {"isAuthorized": False}
    keys.revoke(record.key_id)
    assert authorize(callers, event(x_api_key=key)) == {"isAuthorized": False}


def test_nobody_is_let_in_while_the_store_is_away(keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the store is away")

    key, _ = keys.create("acme", ["train"])
    monkeypatch.setattr(keys._items, "get", away)
    with pytest.raises(Unavailable):
        authorize(Callers(keys), event(x_api_key=key))


def test_the_api_key_header_comes_first_as_it_does_at_the_api() -> None:
    assert credential({"x-api-key": "a", "authorization": "Bearer b"}) == "a"
    assert credential({"x-api-key": "", "authorization": "Bearer b"}) == ""
    assert credential({"authorization": "bearer  b "}) == "b"
    assert credential({}) is None
