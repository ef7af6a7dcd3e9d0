"""Which OIDC issuer's tokens are accepted, and how their claims are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.network import trusted_url

TENANT_CLAIM: Final = "tenant"
SCOPE_CLAIM: Final = "scope"


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """Raises ConfigurationError for what could not be safe."""

    issuer: str
    """As tokens name it in `iss`, to the letter; `/.well-known/openid-configuration` lies below it."""
    audience: str
    """One of a token's `aud` must be this."""
    tenant_claim: str = TENANT_CLAIM
    """The claim that holds the tenant's name."""
    scope_claim: str = SCOPE_CLAIM
    """The claim with the scopes: a list, or names with spaces between them."""
    leeway_s: float = 30.0
    """How far the issuer's clock may be from ours."""
    cache_s: float = 600.0
    """How long a key that the issuer has withdrawn may still be accepted."""

    def __post_init__(self) -> None:
        if not trusted_url(self.issuer):
            raise ConfigurationError(
                "the OIDC issuer must be an https URL without query or fragment; http is for loopback alone"
            )
        if not self.audience or not self.tenant_claim or not self.scope_claim:
            raise ConfigurationError(
                "an OIDC issuer needs an audience (TENSAFE_OIDC_AUDIENCE), and claims cannot be nameless: "
                "without an audience, tokens made for other services would be accepted"
            )


def oidc_settings(
    issuer: str | None, audience: str | None, tenant_claim: str, scope_claim: str
) -> OidcSettings | None:
    """None without an issuer. Raises ConfigurationError, also for an audience without one."""
    if not issuer:
        if audience:
            raise ConfigurationError(
                "TENSAFE_OIDC_AUDIENCE is set without TENSAFE_OIDC_ISSUER; give both or neither"
            )
        return None
    return OidcSettings(issuer, audience or "", tenant_claim, scope_claim)
