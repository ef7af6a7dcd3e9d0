"""What a publisher decides about a private adapter, and what that decision lets others learn."""

from __future__ import annotations

from collections.abc import Sequence
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


_CURVE: Final = ((0.125, 0.32), (0.5, 0.16))
"""Tokens seen over d_in, and the relative error of the delta that ridge regression then rebuilds: measured on
synthetic activations with a power-law spectrum (docs/helora.md)."""


def extraction_note(policy: Policy, widths: Sequence[int]) -> str:
    """What the budget means, for the publisher: how much of the adapter its answers give away."""
    tokens, width = policy.tokens_per_site, min(widths)
    share = tokens / width
    if share >= 1:
        return (
            f"{tokens} tokens per site are at least the {width} inputs of the narrowest site: a key holder "
            "that keeps every answer can compute that site's weights exactly. The budget meters use; it "
            "keeps no secret"
        )
    reached = [error for bound, error in _CURVE if share >= bound]
    rebuilt = f"to a relative error of about {reached[-1]}" if reached else "to a relative error above 0.3"
    return (
        f"{tokens} tokens per site are {share:.0%} of the {width} inputs of the narrowest site: a key holder "
        f"that keeps every answer can rebuild the delta {rebuilt}; a malicious one, which packs several "
        "weights into one answer, needs about three times fewer"
    )
