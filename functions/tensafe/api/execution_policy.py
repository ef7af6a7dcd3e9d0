"""The execution policy that a request asks for: in its body, by a header, or both."""

from __future__ import annotations

from typing import Final

from fastapi import Request

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.execution import ExecutionPolicy

POLICY_HEADER: Final = "X-TenSafe-Execution-Policy"


def policy_of(value: str | None) -> ExecutionPolicy | None:
    """The policy that a header names. Raises InvalidRequest for one that there is not."""
    try:
        return None if value is None else ExecutionPolicy(value)
    except ValueError:
        there = ", ".join(ExecutionPolicy)
        raise InvalidRequest(f"{POLICY_HEADER} must be one of {there}", field=POLICY_HEADER) from None


def asked_policy(request: Request, in_body: ExecutionPolicy | None) -> ExecutionPolicy | None:
    """The stronger one of header and body, since a request can only strengthen. Raises InvalidRequest."""
    asked = [one for one in (policy_of(request.headers.get(POLICY_HEADER)), in_body) if one is not None]
    return max(asked, key=lambda one: one.strength, default=None)
