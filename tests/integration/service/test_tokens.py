"""`tensafe up --oidc-issuer`: tokens of an identity provider on the real service."""

from __future__ import annotations

import httpx
import pytest

from tests.support.native import Native, batch, example, make_key
from tests.support.oidc_issuer import Issuer
from tests.support.service import Service

pytestmark = pytest.mark.one_machine("its issuer is on loopback; lambdas/test_authorizer.py has tokens")


def test_a_token_trains_as_its_tenant_beside_api_keys(own_service: Service, issuer: Issuer) -> None:
    native = Native(own_service, issuer.token(tenant="clinic", scope="openid train"))
    run = native.create()
    native.do(run, "forward_backward", batch(example()))
    same_tenant = Native(own_service, make_key(own_service, "clinic"))
    assert [one["id"] for one in same_tenant.get("/v1/training_clients").json()["training_clients"]] == [run]
    other = Native(own_service, issuer.token(tenant="another"))
    assert other.get(f"/v1/training_clients/{run}").status_code == 404
    assert same_tenant.http.delete(f"/v1/training_clients/{run}").status_code == 200


def test_a_token_of_another_key_is_refused_and_never_logged(own_service: Service, issuer: Issuer) -> None:
    good = issuer.token(tenant="clinic")
    forged = f"{good[:-8]}AAAAAAAA"
    for token, status in ((good, 200), (forged, 401)):
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{own_service.url}/v1/training_clients", headers=headers).status_code == status
    logs = own_service.logs()
    assert '"reason":"signature"' in logs
    for token in (good, forged):
        assert not any(part in logs for part in token.split("."))
