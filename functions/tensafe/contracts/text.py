"""Text in, text out: what the OpenAI face asks of a sampler, and what the sampler answers.

The sampler holds the model's tokenizer and its chat template, so the edge needs neither.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.sampling import MAX_SAMPLES, MAX_TOPK_LOGPROBS, SamplingParams, StopReason
from tensafe.contracts.training import Strict

MAX_PROMPT_CHARS: Final = 4_000_000
MAX_MESSAGES: Final = 4096


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_PROMPT_CHARS)


class TextPayload(Strict):
    """Continue a prompt (text, or token ids as they are) or a conversation.

    `top_logprobs` None asks for no logprobs, n for each token's own and those of the n likeliest.
    `stream`: what has been drawn so far is stored as it grows (operations/progress.py).
    """

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | tuple[int, ...] | None = None
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    num_samples: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    params: SamplingParams = SamplingParams()
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOPK_LOGPROBS)
    stream: bool = False
    execution_policy: ExecutionPolicy | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TextPayload:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        return self


class TokenText(Strict):
    """One drawn token: its text alone, its logprob at temperature 1, and the likeliest instead of it."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class TextChoice(Strict):
    """One continuation; `text` ends before the stop string and holds no special tokens."""

    text: str
    stop_reason: StopReason
    tokens: tuple[TokenText, ...] | None = None


class TextResult(Strict):
    """All continuations, and how many tokens were read and drawn (the stopping ones included)."""

    choices: tuple[TextChoice, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    attestation: dict[str, Any] | None = None
    attestation_salt: str | None = None
    """What computed it, and the salt of its commitment to the tokens (audit/attestation.py)."""


class TextSoFar(Strict):
    """What has been added to each continuation since the last part, by its index."""

    added: dict[int, str]
