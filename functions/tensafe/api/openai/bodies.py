"""Request bodies of the OpenAI face, as far as they mean something here.

A field that OpenAI has and this service does not is accepted at the value that changes nothing, since
clients send those, and refused by name at any other.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.sampling import MAX_SAMPLES, MAX_TOPK_LOGPROBS, SamplingParams
from tensafe.contracts.text import MAX_MESSAGES, MAX_PROMPT_CHARS, ChatMessage, TextPayload
from tensafe.wire.json_body import RequestModel, build

MAX_PROMPTS: Final = 64
DEFAULT_MAX_TOKENS: Final = 16
"""What OpenAI's completions draw if nothing is said."""
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Tokens = Annotated[list[int], Field(min_length=1, max_length=1_000_000)]
Stop = str | Annotated[list[str], Field(max_length=64)] | None


class StreamOptions(RequestModel):
    """`include_usage` adds a last chunk that counts tokens."""

    include_usage: bool = False


class _Asked(RequestModel):
    """What both routes take."""

    model: str = Field(min_length=1, max_length=512)
    n: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: Stop = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=512)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    execution_policy: ExecutionPolicy | None = None
    """Ours: strengthens the adapter's own policy."""

    @field_validator("presence_penalty", "frequency_penalty")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("penalties are not supported; leave it out, or give 0")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _no_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value:
            raise ValueError("biases are not supported; leave it out")
        return value

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _params(self, max_tokens: int | None) -> SamplingParams:
        values = {
            "max_tokens": max_tokens,
            "seed": self.seed,
            "stop": tuple(self.stop) if isinstance(self.stop, list) else self.stop,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
        # An empty list of stops means none; for a sampler it would mean never to stop.
        given = {name: value for name, value in values.items() if value is not None and value != ()}
        return build(SamplingParams, given, field="")


class CompletionBody(_Asked):
    """`POST /v1/completions`."""

    prompt: Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOPK_LOGPROBS)
    echo: Literal[False] = False
    best_of: int | None = None
    suffix: None = None

    @field_validator("best_of")
    @classmethod
    def _no_best(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError("best_of is not supported; leave it out and use n")
        return value

    def payloads(self) -> list[TextPayload]:
        """One for each prompt, in order."""
        return [
            build(
                TextPayload,
                {
                    "prompt": prompt if isinstance(prompt, str) else tuple(prompt),
                    "num_samples": self.n,
                    "params": self._params(self.max_tokens),
                    "top_logprobs": self.logprobs,
                    "stream": self.stream,
                    "execution_policy": self.execution_policy,
                },
                field="",
            )
            for prompt in _prompts(self.prompt)
        ]


class TextPart(RequestModel):
    """A part of a message; other kinds than text are refused."""

    type: Literal["text"]
    text: Text


class Message(RequestModel):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)]
    name: str | None = Field(default=None, max_length=128)

    def to_message(self) -> ChatMessage:
        """`developer` is what OpenAI calls `system` by now."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=text)


class ResponseFormat(RequestModel):
    """Plain text is all there is."""

    type: Literal["text"]


class ChatBody(_Asked):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOPK_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: None = None
    tool_choice: Literal["none"] | None = None

    def payloads(self) -> list[TextPayload]:
        """One; a list as for completions."""
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        values = {
            "messages": tuple(message.to_message() for message in self.messages),
            "num_samples": self.n,
            "params": self._params(limit),
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "stream": self.stream,
            "execution_policy": self.execution_policy,
        }
        return [build(TextPayload, values, field="")]


def _prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str] | list[list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt
