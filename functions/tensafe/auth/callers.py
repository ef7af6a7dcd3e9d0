"""Who is calling: the one place that tells an API key from a token, by its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tensafe.auth.keys import ApiKeys
from tensafe.auth.principal import Principal

if TYPE_CHECKING:
    from tensafe.auth.tokens import Tokens

_JSON_IN_BASE64: Final = "ey"
"""How a token begins; the SDK goes by this too."""


def credential(headers: Mapping[str, str]) -> str | None:
    """The credential in `x-api-key`, or in `authorization: Bearer`; names of headers are in lower case."""
    key = headers.get("x-api-key")
    if key is not None:
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class Callers:
    """Authenticates what a request presents, be it an API key or, where an issuer is configured, a JWT."""

    def __init__(self, api_keys: ApiKeys, tokens: Tokens | None = None) -> None:
        self._api_keys = api_keys
        self._tokens = tokens

    def recognise(self, presented: str | None) -> Principal | None:
        """The principal, without a word over the network; None if `authenticate` has to ask the issuer.

        Raises Unauthenticated.
        """
        tokens = self._tokens_for(presented)
        if tokens is None or presented is None:
            return self._api_keys.authenticate(presented)
        return tokens.recognise(presented)

    def authenticate(self, presented: str | None) -> Principal:
        """The principal. Raises Unauthenticated, or Unavailable if the issuer has to be asked and is away."""
        tokens = self._tokens_for(presented)
        if tokens is None or presented is None:
            return self._api_keys.authenticate(presented)
        return tokens.authenticate(presented)

    def check_still(self, principal: Principal, presented: str | None) -> None:
        """Raise Unauthenticated if the key was revoked or the token ended since."""
        tokens = self._tokens_for(presented)
        if tokens is None:
            self._api_keys.authenticate(presented)
        else:
            tokens.check_running(principal)

    def _tokens_for(self, presented: str | None) -> Tokens | None:
        return self._tokens if presented is not None and presented.startswith(_JSON_IN_BASE64) else None
