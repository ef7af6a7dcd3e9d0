"""What a deployment serves. Apart from what runs are made of, for whom a cold start would wait."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

MAX_RANK: Final = 256
"""Of an adapter."""


class Strict(BaseModel):
    """Frozen, and unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelInfo(Strict):
    """A base model that this deployment serves."""

    name: str
    path: str
    """Local folder with config.json and the tokenizer; never sent to another tenant's log."""
    arch: str
    vocab_size: int = Field(ge=1)
    """Rows of the embedding: every token id is below it."""
    max_context_tokens: int = Field(ge=1)
    """Tokens of a prompt and its continuation, or of a training example."""
    max_lora_rank: int = Field(default=64, ge=1, le=MAX_RANK)
    """Largest adapter rank that this deployment samples from, and so the largest that it trains."""
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """KV cache of its sampler; None leaves the size to the engine."""
