"""What a sampling request says and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, field_validator

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.execution import Execution
from tensafe.contracts.training import Strict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_SAMPLES: Final = 1024
MAX_STOP_STRINGS: Final = 64
MAX_STOP_STRING_CHARS: Final = 1024
MAX_TOPK_LOGPROBS: Final = 64
MAX_RESULT_LOGPROBS: Final = 2**20
"""Pairs of token and logprob in one result: 8 MiB as protobuf, some 50 MB as JSON with top-k."""
MAX_INT32: Final = 2**31 - 1
"""Token ids and top_k are int32 in the engine."""
MIN_TEMPERATURE: Final = 0.01
MAX_TEMPERATURE: Final = 2.0
"""The sampler refuses more; below MIN_TEMPERATURE only 0, which is greedy, means what it says."""

StopReason = Literal["stop", "length"]


class SamplingParams(Strict):
    """How to draw tokens.

    `max_tokens` None, or more than there is room for, means as many as the model's context holds.
    `temperature` 0 is greedy; `top_k` -1 or 0 keeps all tokens. `seed` fixes the continuations; without
    one each request draws anew. `stop`: None stops at the model's end-of-sequence tokens; an empty list
    never stops before `max_tokens`; strings or token ids stop as well as the end of sequence. A
    continuation ends with the token that completed the stop.
    """

    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: (
        str
        | Annotated[tuple[str, ...], Field(fail_fast=True)]
        | Annotated[tuple[int, ...], Field(fail_fast=True)]
        | None
    ) = None
    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    top_k: int = Field(default=-1, ge=-1, le=MAX_INT32)
    top_p: float = Field(default=1.0, gt=0, le=1)

    @field_validator("temperature")
    @classmethod
    def _greedy_or_a_real_temperature(cls, temperature: float) -> float:
        if 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"give 0 (greedy) or at least {MIN_TEMPERATURE}")
        return temperature

    @field_validator("stop")
    @classmethod
    def _stops_that_can_match(
        cls, stop: str | tuple[str, ...] | tuple[int, ...] | None
    ) -> str | tuple[str, ...] | tuple[int, ...] | None:
        entries: tuple[str | int, ...] = () if stop is None else (stop,) if isinstance(stop, str) else stop
        if len(entries) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stops")
        for entry in entries:
            if isinstance(entry, int) and not 0 <= entry <= MAX_INT32:
                raise ValueError("a token id is 0 to 2**31 - 1")
            if isinstance(entry, str) and not 1 <= len(entry) <= MAX_STOP_STRING_CHARS:
                raise ValueError(f"a stop string has 1 to {MAX_STOP_STRING_CHARS} characters")
        return stop


class SampleRequest(Strict):
    """One prompt, `num_samples` continuations. Logprobs are those of temperature 1, unfiltered."""

    prompt: tuple[int, ...] = Field(min_length=1, max_length=10_000_000)
    num_samples: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    params: SamplingParams = SamplingParams()
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = Field(default=0, ge=0, le=MAX_TOPK_LOGPROBS)
    topk_sample_logprobs: int = Field(default=0, ge=0, le=MAX_TOPK_LOGPROBS)


def check_result_size(request: SampleRequest, max_context_tokens: int) -> None:
    """Raise InvalidRequest unless the largest result that this could have is within the limit.

    A request that asks for as many tokens as fit is counted with all of them.
    """
    room = max(0, max_context_tokens - len(request.prompt))
    new_tokens = room if request.params.max_tokens is None else min(room, request.params.max_tokens)
    sampled = request.num_samples * new_tokens * (1 + request.topk_sample_logprobs)
    scores_prompt = request.prompt_logprobs or request.topk_prompt_logprobs > 0
    scored = len(request.prompt) * (1 + request.topk_prompt_logprobs) if scores_prompt else 0
    if sampled + scored > MAX_RESULT_LOGPROBS:
        raise InvalidRequest(
            f"the result could have {sampled + scored} logprobs, at most {MAX_RESULT_LOGPROBS}: num_samples "
            f"x max_tokens ({new_tokens} here) x (1 + topk_sample_logprobs), and the prompt's tokens x "
            "(1 + topk_prompt_logprobs)",
            field="num_samples" if sampled >= scored else "topk_prompt_logprobs",
        )


@dataclass(frozen=True, slots=True)
class TopkLogprobs:
    """The k most likely tokens per position, likeliest first.

    Ids int32 [T, k], logprobs float32 [T, k]; -1 and NaN where nothing predicts (a prompt's position 0).
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sequence:
    """A continuation: tokens int32 [n], the stopping one included; logprobs float32 [n] at temperature 1."""

    tokens: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    stop_reason: StopReason
    topk: TopkLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """All continuations; `prompt_logprobs` float32 [len(prompt)], NaN at position 0.

    `prompt_cache_hit_tokens` counts the prompt tokens whose computation was reused.
    """

    sequences: tuple[Sequence, ...]
    prompt_logprobs: npt.NDArray[np.float32] | None = None
    topk_prompt_logprobs: TopkLogprobs | None = None
    prompt_cache_hit_tokens: int = 0
    extra: dict[str, str] = field(default_factory=dict)
    execution: Execution | None = None
    """What computed it, as the engine counted; None where no engine did."""
