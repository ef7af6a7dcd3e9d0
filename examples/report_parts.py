"""What the sections of the report share."""

from __future__ import annotations

from html import escape

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def shown(text: str) -> str:
    """A model's words, or that there were none."""
    return escape(text.strip()) or '<span class="nothing">(nothing)</span>'
