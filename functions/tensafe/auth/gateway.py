"""What an authorizer in front of the API answers: API Gateway's HTTP APIs, payload 2.0, simple responses.

It keeps strangers from starting the API's function. The API believes nothing of it: it looks at the
credential again by itself, so that no header and no context can stand for an identity. The context is for
the gateway's access log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from tensafe.auth.callers import Callers, credential
from tensafe.auth.principal import Principal
from tensafe.contracts.errors import Unauthenticated

log = logging.getLogger(__name__)

_REFUSED: Final[dict[str, Any]] = {"isAuthorized": False}


def authorize(callers: Callers, event: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a REQUEST authorizer's event.

    A refusal becomes a 403 of the gateway's own. Raises Unavailable where the identity provider or the
    store is away: the gateway then answers 500, which clients try again; nobody is let in.
    """
    headers = event.get("headers")
    named = {str(name).lower(): str(value) for name, value in dict(headers or {}).items()}
    try:
        principal = callers.authenticate(credential(named))
    except Unauthenticated:
        return _REFUSED
    return {"isAuthorized": True, "context": _context(principal)}


def _context(principal: Principal) -> dict[str, str]:
    return {
        "tenant": principal.tenant,
        "scopes": " ".join(sorted(principal.scopes)),
        "key_id": principal.key_id,
    }
