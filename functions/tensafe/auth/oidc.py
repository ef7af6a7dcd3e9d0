"""A verifier of one issuer's tokens over the network: what every composition root asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe.auth.oidc_settings import SCOPE_CLAIM, TENANT_CLAIM, oidc_settings

if TYPE_CHECKING:
    from tensafe.auth.tokens import Tokens


def token_verifier(
    issuer: str | None,
    audience: str | None,
    tenant_claim: str = TENANT_CLAIM,
    scope_claim: str = SCOPE_CLAIM,
) -> Tokens | None:
    """None without an issuer: then API keys alone are accepted. Asks the issuer nothing yet.

    Raises ConfigurationError for an issuer over plain http, or without an audience.
    """
    settings = oidc_settings(issuer, audience, tenant_claim, scope_claim)
    if settings is None:
        return None
    # Only where tokens are accepted: this loads the JOSE library.
    from tensafe.auth.issuer_keys import IssuerKeys  # noqa: PLC0415
    from tensafe.auth.tokens import Tokens  # noqa: PLC0415
    from tensafe.auth.web_documents import WebDocuments  # noqa: PLC0415

    return Tokens(settings, IssuerKeys(settings, WebDocuments()))
