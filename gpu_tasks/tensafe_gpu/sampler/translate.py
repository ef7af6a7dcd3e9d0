"""Between TenSafe's sampling contract and vLLM's parameters and outputs.

Everything that vLLM could refuse, clamp or misread is settled here, before admission: an error inside
its forward pass would end the engine for all requests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest, Unavailable
from tensafe.contracts.execution import Execution, ExecutionMode
from tensafe.contracts.sampling import (
    SampleRequest,
    SampleResult,
    Sequence,
    StopReason,
    TopkLogprobs,
    check_result_size,
)

if TYPE_CHECKING:
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import RequestOutput


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model allows."""

    vocab_size: int
    max_context_tokens: int


def check_request(request: SampleRequest, limits: Limits) -> None:
    """Raise InvalidRequest (with `field`) for what this model cannot do."""
    if len(request.prompt) >= limits.max_context_tokens:
        raise InvalidRequest(
            f"the prompt has {len(request.prompt)} tokens; with one new token at least it must fit into "
            f"{limits.max_context_tokens}",
            field="prompt",
        )
    _check_tokens(request.prompt, limits.vocab_size, "prompt")
    params = request.params
    if not isinstance(params.stop, str | None):
        _check_tokens([s for s in params.stop if isinstance(s, int)], limits.vocab_size, "params.stop")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs"):
        if getattr(request, name) > limits.vocab_size:
            raise InvalidRequest(f"the vocabulary has {limits.vocab_size} tokens", field=name)
    check_result_size(request, limits.max_context_tokens)


def _check_tokens(tokens: tuple[int, ...] | list[int], vocab_size: int, field: str) -> None:
    if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
        raise InvalidRequest(f"token ids must be from 0 to {vocab_size - 1}", field=field)


def sampling_arguments(request: SampleRequest, limits: Limits, index: int) -> dict[str, Any]:
    """Arguments of vllm.SamplingParams for continuation `index`; only the first scores the prompt."""
    params = request.params
    room = limits.max_context_tokens - len(request.prompt)
    arguments: dict[str, Any] = {
        "n": 1,
        "max_tokens": room if params.max_tokens is None else min(params.max_tokens, room),
        "temperature": params.temperature,
        "top_k": max(params.top_k, 0),
        "top_p": params.top_p,
        "seed": None if params.seed is None else sample_seed(params.seed, index),
        "logprobs": request.topk_sample_logprobs,
        "flat_logprobs": True,
        "detokenize": False,
    }
    if index == 0 and (request.prompt_logprobs or request.topk_prompt_logprobs):
        arguments["prompt_logprobs"] = request.topk_prompt_logprobs
    return arguments | _stop_arguments(params.stop)


def sample_seed(seed: int, index: int) -> int:
    """The seed of continuation `index`: neighbouring request seeds share no continuation."""
    digest = hashlib.sha256(b"tensafe/sample-seed/1" + seed.to_bytes(8) + index.to_bytes(8)).digest()
    return int.from_bytes(digest[:8]) >> 1


def _stop_arguments(stop: str | tuple[str, ...] | tuple[int, ...] | None) -> dict[str, Any]:
    """None: end of sequence. Empty: run to the limit. Otherwise these as well as the end of sequence."""
    if stop is None:
        return {}
    if not stop:
        return {"ignore_eos": True}
    entries = [stop] if isinstance(stop, str) else list(stop)
    tokens = [s for s in entries if isinstance(s, int)]
    if tokens:
        return {"stop_token_ids": tokens}
    # Stop strings are matched in the text; special tokens have to be part of it to be matched.
    return {
        "stop": entries,
        "detokenize": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


def to_result(
    request: SampleRequest, outputs: list[RequestOutput], execution: Execution | None = None
) -> SampleResult:
    """The finished outputs of all continuations, in order, and what computed them.

    Raises Unavailable if one did not finish and InvalidRequest if an adapter made logits that are not
    numbers: what was drawn from those means nothing.
    """
    first = outputs[0]
    prompt_logprobs, topk_prompt = None, None
    if first.prompt_logprobs is not None:
        flat, k = cast("FlatLogprobs", first.prompt_logprobs), request.topk_prompt_logprobs
        _require_numbers(np.asarray(flat.logprobs))
        target, topk = _prompt_arrays(flat, len(request.prompt), k)
        prompt_logprobs = target if request.prompt_logprobs else None
        topk_prompt = topk if request.topk_prompt_logprobs else None
    return SampleResult(
        sequences=tuple(_sequence(output, request.topk_sample_logprobs) for output in outputs),
        prompt_logprobs=prompt_logprobs,
        topk_prompt_logprobs=topk_prompt,
        prompt_cache_hit_tokens=first.num_cached_tokens or 0,
        execution=execution,
    )


def in_the_clear(
    outputs: list[RequestOutput],
    adapter: str | None = None,
    *,
    digest: str | None = None,
    fallback: str | None = None,
) -> Execution:
    """What computed these outputs here: the base model, or the adapter of this identity.

    `fallback` is a private adapter's; see `Execution`.
    """
    return Execution(
        ExecutionMode.NONE if adapter is None else ExecutionMode.PLAINTEXT,
        adapter,
        digest,
        fallback=fallback,
        prompt_tokens=sum(len(output.prompt_token_ids or ()) for output in outputs),
        cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
    )


def _sequence(output: RequestOutput, k: int) -> Sequence:
    completion = output.outputs[0]
    tokens = np.asarray(completion.token_ids, dtype=np.int32)
    logprobs, topk = _rows(cast("FlatLogprobs", completion.logprobs), k, len(tokens))
    _require_numbers(logprobs)
    return Sequence(tokens, logprobs, _stop_reason(completion.finish_reason), topk if k else None)


def _require_numbers(logprobs: npt.NDArray[np.floating[Any]]) -> None:
    if np.isnan(logprobs).any():
        raise InvalidRequest(
            "the weights of this adapter are too large: its logits overflow", field="adapter"
        )


def _stop_reason(finish_reason: str | None) -> StopReason:
    if finish_reason == "stop":
        return "stop"
    if finish_reason == "length":
        return "length"
    raise Unavailable("the engine gave the request up; try again")


def _rows(flat: FlatLogprobs, k: int, rows: int) -> tuple[npt.NDArray[np.float32], TopkLogprobs]:
    """vLLM's flat lists -> the chosen token's logprobs [rows] and the k most likely tokens [rows, k].

    Each position holds the chosen token first, then the k most likely ones by rank.
    """
    width = k + 1
    logprobs = np.asarray(flat.logprobs[: rows * width], dtype=np.float32).reshape(rows, width)
    tokens = np.asarray(flat.token_ids[: rows * width], dtype=np.int32).reshape(rows, width)
    return logprobs[:, 0].copy(), TopkLogprobs(tokens[:, 1:].copy(), logprobs[:, 1:].copy())


def _prompt_arrays(flat: FlatLogprobs, length: int, k: int) -> tuple[npt.NDArray[np.float32], TopkLogprobs]:
    """As `_rows` for a prompt, with the first position, which nothing predicts, as NaN and -1."""
    target, topk = _rows(flat, k, length - 1)
    return (
        np.concatenate([np.full(1, np.nan, np.float32), target]),
        TopkLogprobs(
            np.concatenate([np.full((1, k), -1, np.int32), topk.token_ids]),
            np.concatenate([np.full((1, k), np.nan, np.float32), topk.logprobs]),
        ),
    )
