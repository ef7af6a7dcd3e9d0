"""What a sample's result is stored as, by who asked for it."""

from __future__ import annotations

import json

from tensafe.contracts.payloads import JSON, PROTOBUF, SamplePayload
from tensafe.contracts.sampling import SampleResult
from tensafe.contracts.text import TextResult
from tensafe.operations.records import Result
from tensafe.wire.results import Attested, encode_sample, keep_last_prompt_logprobs, sample_json


def sample_answer(payload: SamplePayload, result: SampleResult, word: Attested) -> Result:
    """Tokens and logprobs, in the form that the request names, with what attests them."""
    result = keep_last_prompt_logprobs(result, payload.prompt_logprobs_last_n)
    if payload.answer == "protobuf":
        return Result(PROTOBUF, encode_sample(result, word))
    return Result(JSON, json.dumps(sample_json(result, word), separators=(",", ":")).encode())


def text_answer(result: TextResult, word: Attested) -> Result:
    """Continuations as text; the edge makes of it what its face promises."""
    result = result.model_copy(update=word.fields())
    return Result(JSON, result.model_dump_json().encode())
