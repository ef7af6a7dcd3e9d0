"""`tensafe tenants limits`."""

from __future__ import annotations

from dataclasses import asdict, replace

from tensafe.auth.limits import TenantLimits
from tensafe.services import Services
from tests.unit.cli.conftest import Tensafe


def test_limits_are_shown_changed_and_reset(tensafe: Tensafe, services: Services) -> None:
    def limits(*options: object) -> object:
        return tensafe("tenants", "limits", "acme", *options, "--json").json

    defaults = {"tenant": "acme", **asdict(TenantLimits())}
    assert limits() == defaults
    assert limits("--runs", 3, "--bytes-per-s", 1000) == {**defaults, "runs": 3, "bytes_per_s": 1000}
    assert services.quotas.limits.stored("acme") == replace(TenantLimits(), runs=3, bytes_per_s=1000)
    assert limits("--reset", "--sessions", 7) == {**defaults, "sessions": 7}


def test_a_wrong_limit_or_tenant_is_refused(tensafe: Tensafe, services: Services) -> None:
    assert tensafe("tenants", "limits", "acme", "--runs", 0).code == 2
    refused = tensafe("tenants", "limits", "../acme", "--runs", 1)
    assert (refused.code, "a tenant has" in refused.err) == (2, True)
