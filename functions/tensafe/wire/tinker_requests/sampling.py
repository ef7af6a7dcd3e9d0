"""Sampling sessions and sampling requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, JsonValue

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.sampling import MAX_STOP_STRINGS, SampleRequest, SamplingParams
from tensafe.wire.ids import RequestId, SamplerId, check_session_id
from tensafe.wire.json_body import RequestModel, build
from tensafe.wire.paths import CheckpointPath
from tensafe.wire.tinker_requests.fields import Count, Id, Name

_TOKEN_MAX: Final = 2**31 - 1
_MAX_STOP_CHARS: Final = 1024


class CreateSamplingSessionBody(RequestModel):
    """POST create_sampling_session: from saved weights, or from a base model as it is."""

    session_id: Id
    sampling_session_seq_id: Count
    base_model: Name | None = None
    model_path: str | None = None
    type: Literal["create_sampling_session"] = "create_sampling_session"

    def to_sampler_id(self) -> SamplerId:
        """The id of the session to create; repeating the call names the same one."""
        return SamplerId(check_session_id(self.session_id), self.sampling_session_seq_id)

    def to_path(self) -> CheckpointPath | None:
        """The weights, or None for the base model; one of the two must be given."""
        if self.model_path is None:
            if self.base_model is None:
                raise InvalidRequest("give model_path or base_model", field="model_path")
            return None
        path = CheckpointPath.parse(self.model_path, "model_path")
        if path.kind == "external_weights":
            raise Unsupported("external_weights cannot be sampled; use sampler_weights", field="model_path")
        return path


class JoinSamplingSessionBody(RequestModel):
    """POST join_sampling_session, which the client configuration turns off."""

    sampling_session_id: Id
    type: Literal["join_sampling_session"] = "join_sampling_session"


class PromptChunk(RequestModel):
    """A piece of the prompt; kinds other than text keep their fields and are refused by name."""

    model_config = ConfigDict(extra="allow")

    type: str = "encoded_text"
    tokens: Annotated[list[int], Field(fail_fast=True)] | None = None


class Prompt(RequestModel):
    """The prompt as the SDK sends it."""

    chunks: list[PromptChunk] = Field(max_length=100_000, fail_fast=True)


class SamplingParamsJson(RequestModel):
    """How to draw tokens, as the SDK sends it."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: (
        str | Annotated[list[str], Field(fail_fast=True)] | Annotated[list[int], Field(fail_fast=True)] | None
    ) = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class SampleSubmission:
    """A sampling request and its place. `prompt_logprobs_last_n` limits which prompt tokens are scored."""

    request_id: RequestId
    request: SampleRequest
    prompt_logprobs_last_n: int | None


class SampleBody(RequestModel):
    """POST asample."""

    sampling_session_id: Id | None = None
    seq_id: Count | None = None
    num_samples: int = 1
    prompt: Prompt
    sampling_params: SamplingParamsJson
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    base_model: Name | None = None
    model_path: str | None = None
    target_prompt_logprobs: JsonValue = None
    prompt_alt_tokens_k: int = 0
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"

    def to_sample(self) -> SampleSubmission:
        """The contract's request; a feature that this service lacks is refused by name."""
        self._refuse_unsupported()
        if self.sampling_session_id is None or self.seq_id is None:
            field = "sampling_session_id" if self.sampling_session_id is None else "seq_id"
            raise InvalidRequest(f"{field} is missing", field=field)
        request_id = RequestId(SamplerId.parse(self.sampling_session_id), self.seq_id)
        prompt = _to_tokens(self.prompt)
        self._check_last_n(len(prompt))
        values = {
            "prompt": prompt,
            "num_samples": self.num_samples,
            "params": _to_sampling_params(self.sampling_params),
            "prompt_logprobs": bool(self.prompt_logprobs),
            "topk_prompt_logprobs": self.topk_prompt_logprobs,
            "topk_sample_logprobs": self.topk_sample_logprobs,
        }
        return SampleSubmission(
            request_id, build(SampleRequest, values, field=""), self.prompt_logprobs_last_n
        )

    def _refuse_unsupported(self) -> None:
        reasons: dict[str, tuple[bool, str]] = {
            "base_model": (self.base_model is not None, "create a sampling session first"),
            "model_path": (self.model_path is not None, "create a sampling session first"),
            "target_prompt_logprobs": (
                self.target_prompt_logprobs is not None,
                "use topk_prompt_logprobs, or put the token into the prompt",
            ),
            "prompt_alt_tokens_k": (self.prompt_alt_tokens_k != 0, "leave it 0"),
            "record_stability_info": (
                bool(self.record_stability_info),
                "it serves the stable_reinforce loss; train with importance_sampling, ppo or cispo",
            ),
        }
        for name, (given, advice) in reasons.items():
            if given:
                raise Unsupported(f"{name} is not supported; {advice}", field=name)

    def _check_last_n(self, prompt_tokens: int) -> None:
        last_n = self.prompt_logprobs_last_n
        if last_n is None:
            return
        if not self.prompt_logprobs:
            raise InvalidRequest(
                "prompt_logprobs_last_n needs prompt_logprobs", field="prompt_logprobs_last_n"
            )
        if not 1 <= last_n < prompt_tokens:
            raise InvalidRequest(
                f"prompt_logprobs_last_n must be between 1 and {prompt_tokens - 1}, one less than the prompt",
                field="prompt_logprobs_last_n",
            )


def _to_tokens(prompt: Prompt) -> tuple[int, ...]:
    tokens: list[int] = []
    for i, chunk in enumerate(prompt.chunks):
        field = f"prompt.chunks[{i}]"
        if chunk.type != "encoded_text":
            raise Unsupported(
                f"{field} is of type {chunk.type[:40]!r}; only encoded_text is supported",
                field=f"{field}.type",
            )
        unknown: dict[str, Any] = chunk.model_extra or {}
        if unknown:
            name = min(unknown)[:64]
            raise InvalidRequest(f"{field}.{name} is not a field of this request", field=f"{field}.{name}")
        if chunk.tokens is None:
            raise InvalidRequest(f"{field}.tokens is missing", field=f"{field}.tokens")
        _check_token_ids(chunk.tokens, f"{field}.tokens")
        tokens += chunk.tokens
    return tuple(tokens)


def _to_sampling_params(params: SamplingParamsJson) -> SamplingParams:
    field = "sampling_params.stop"
    stop = params.stop
    strings = [stop] if isinstance(stop, str) else [s for s in stop or () if isinstance(s, str)]
    if isinstance(stop, list):
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"{field} has {len(stop)} entries; at most {MAX_STOP_STRINGS}", field=field)
        _check_token_ids([token for token in stop if isinstance(token, int)], field)
    if any(not 1 <= len(string) <= _MAX_STOP_CHARS for string in strings):
        raise InvalidRequest(f"{field} strings have 1 to {_MAX_STOP_CHARS} characters", field=field)
    values = params.model_dump() | {"stop": tuple(stop) if isinstance(stop, list) else stop}
    return build(SamplingParams, values, field="sampling_params")


def _check_token_ids(token_ids: Sequence[int], field: str) -> None:
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) <= _TOKEN_MAX:
        raise InvalidRequest(f"{field} must be token ids from 0 to 2**31 - 1", field=field)
