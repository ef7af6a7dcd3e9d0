"""What a publisher decides about a private adapter; `extraction` says what that lets others learn."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}$")]
MAX_TOKENS: Final = 2**40


class Policy(BaseModel):
    """Which tenants may use the adapter, and how many tokens per site all of them together in one epoch.

    There is no default: a publisher has to choose.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenants: Annotated[list[TenantName], Field(min_length=1, max_length=1000)]
    tokens_per_site: Annotated[int, Field(ge=1, le=MAX_TOKENS)]

    @field_validator("tenants")
    @classmethod
    def _each_once(cls, tenants: list[str]) -> list[str]:
        if len(set(tenants)) != len(tenants):
            raise ValueError("a tenant is named twice")
        return tenants
