"""Who a request comes from, and what that caller may do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tensafe.contracts.errors import Forbidden, InvalidRequest

_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class AccessScope(StrEnum):
    """What a key may do. `admin` includes the others."""

    ADMIN = "admin"
    TRAIN = "train"
    SAMPLE = "sample"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from."""

    tenant: str
    scopes: frozenset[AccessScope]
    key_id: str
    """16 hexadecimal digits: the API key's id, or of a token's issuer and subject."""
    expires_s: float | None = None
    """Unix time at which a token ends; None for an API key, which is looked up again instead."""

    def require(self, scope: AccessScope) -> None:
        """Raise Forbidden unless the key has the scope."""
        if scope not in self.scopes and AccessScope.ADMIN not in self.scopes:
            raise Forbidden(f"this API key lacks the scope {scope.value!r}")


def check_tenant(tenant: str) -> str:
    """Return the tenant's name if it is well formed, else raise InvalidRequest."""
    if not _TENANT.fullmatch(tenant):
        raise InvalidRequest("a tenant has 1 to 63 lower-case letters, digits or '-'", field="tenant")
    return tenant


def parse_scope(scope: str) -> AccessScope:
    """The scope of this name. Raises InvalidRequest listing them all."""
    try:
        return AccessScope(scope)
    except ValueError:
        names = ", ".join(AccessScope)
        raise InvalidRequest(f"no scope {scope!r}; there are: {names}", field="scope") from None
