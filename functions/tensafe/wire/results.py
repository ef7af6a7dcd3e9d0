"""Results as the protobuf messages that the Tinker SDK decodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from tensafe.contracts.errors import TensafeError
from tensafe.contracts.payloads import JSON
from tensafe.contracts.sampling import SampleResult, StopReason, TopkLogprobs
from tensafe.contracts.sampling import Sequence as SampledSequence
from tensafe.wire import tinker_v0_38_pb2 as pb

NON_DP: Final = "non_dp/outputs:max"
"""Metric of value 1 in every forward and forward_backward of a private run: their outputs are not private.

Not meant are the metrics that begin with `dp_`, which say what has been spent.
"""
_METRIC: Final = re.compile(r"[^:]+:[a-z0-9_]+")
_EMPTY_TOKEN: Final = 0
_EMPTY_LOGPROB: Final = -99999.0
_STOP_REASONS: Final[dict[StopReason, pb.StopReason]] = {
    "stop": pb.STOP_REASON_STOP,
    "length": pb.STOP_REASON_LENGTH,
}

_ATTESTATION_FIELD: Final = 100_001
"""Far above the numbers that the SDK's messages use."""

Logprobs = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Attested:
    """An attestation as JSON, and the salt (hex) of its commitment to the sampled tokens."""

    document: dict[str, Any]
    salt: str

    def fields(self) -> dict[str, Any]:
        """As they stand in an answer."""
        return {"attestation": self.document, "attestation_salt": self.salt}


def encode_forward_backward(
    logprobs: Sequence[Logprobs] | None, metrics: Mapping[str, float], *, examples: int | None = None
) -> bytes:
    """ForwardBackwardOutput: per example float32 [T] or [T, K], in the order of the request.

    `logprobs` None withholds them, and `examples` then says how many there were: the client weighs
    metrics by that number. Every metric key is "name:reduction"; TensafeError otherwise, because the
    client would fail on it.
    """
    output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    for name, value in metrics.items():
        if not _METRIC.fullmatch(name):
            raise TensafeError(f"metric {name!r} is not of the form name:reduction")
        output.metrics[name] = value
    if logprobs is None:
        if examples is None:
            raise TensafeError("withheld logprobs need the number of examples")
        output.loss_fn_outputs.add(num_datums=examples)
        return _serialize(output)
    for _, group in groupby(logprobs, key=lambda array: array.shape[1:]):
        _add_record(output.loss_fn_outputs.add(), list(group))
    return _serialize(output)


def _add_record(record: pb.ArrayRecord, arrays: Sequence[Logprobs]) -> None:
    """Fill one record with consecutive examples of one trailing shape."""
    sizes = [array.size * 4 for array in arrays]
    tensor = record.fields["logprobs"]
    tensor.data = b"".join(_bytes(array, "<f4") for array in arrays)
    tensor.offsets = _bytes(np.cumsum([0, *sizes]), "<i8")
    tensor.dtype = pb.DTYPE_FLOAT32
    tensor.trailing_shape.extend(arrays[0].shape[1:])
    record.num_datums = len(arrays)


def encode_sample(result: SampleResult, attested: Attested | None = None) -> bytes:
    """SampleResponse. A sequence of no tokens decodes with logprobs None; `extra` has no field for it.

    An attestation follows as a field that the protocol does not have, which every protobuf reader skips.
    """
    response = pb.SampleResponse(prompt_cache_hit_tokens=result.prompt_cache_hit_tokens)
    for sequence in result.sequences:
        _fill_sequence(response.sequences.add(), sequence)
    if result.prompt_logprobs is not None:
        response.prompt_logprobs = _bytes(result.prompt_logprobs, "<f4")
    if result.topk_prompt_logprobs is not None:
        _fill_topk(response.topk_prompt_logprobs, result.topk_prompt_logprobs)
    return _serialize(response) + (b"" if attested is None else _appended(attested))


def _appended(attested: Attested) -> bytes:
    """One length-delimited field of the wire format."""
    data = json.dumps(attested.fields(), separators=(",", ":")).encode()
    return _varint(_ATTESTATION_FIELD << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def attested_of(data: bytes, content_type: str) -> Attested | None:
    """The attestation that a stored sampling result brings, or None."""
    if content_type == JSON:
        found = json.loads(data)
    else:
        response = pb.SampleResponse.FromString(data)
        fields = UnknownFieldSet(response)
        unknown = {fields[i].field_number: fields[i].data for i in range(len(fields))}
        found = json.loads(unknown.get(_ATTESTATION_FIELD, b"{}"))
    if not isinstance(found, dict) or "attestation" not in found:
        return None
    return Attested(found["attestation"], found["attestation_salt"])


def keep_last_prompt_logprobs(result: SampleResult, last_n: int | None) -> SampleResult:
    """Blank all prompt logprobs but the last `last_n` (None keeps all), as the request asked.

    The SDK fails when a position before them is scored.
    """
    if last_n is None:
        return result
    prompt, topk = result.prompt_logprobs, result.topk_prompt_logprobs
    if prompt is not None:
        prompt = prompt.copy()
        prompt[: max(0, prompt.size - last_n)] = np.nan
    if topk is not None:
        unscored = max(0, topk.token_ids.shape[0] - last_n)
        token_ids, logprobs = topk.token_ids.copy(), topk.logprobs.copy()
        token_ids[:unscored], logprobs[:unscored] = -1, np.nan
        topk = TopkLogprobs(token_ids, logprobs)
    return replace(result, prompt_logprobs=prompt, topk_prompt_logprobs=topk)


def _fill_sequence(message: pb.SampledSequence, sequence: SampledSequence) -> None:
    message.stop_reason = _STOP_REASONS[sequence.stop_reason]
    message.tokens = _bytes(sequence.tokens, "<i4")
    message.logprobs = _bytes(sequence.logprobs, "<f4")
    if sequence.topk is not None:
        _fill_topk(message.topk_sampled_logprobs, sequence.topk)


def _fill_topk(message: pb.TopkLogprobs, topk: TopkLogprobs) -> None:
    empty = topk.token_ids < 0
    message.token_ids = _bytes(np.where(empty, _EMPTY_TOKEN, topk.token_ids), "<i4")
    message.logprobs = _bytes(np.where(empty, _EMPTY_LOGPROB, topk.logprobs), "<f4")
    message.length, message.k = topk.token_ids.shape


def _serialize(message: Message) -> bytes:
    """The same message always gives the same bytes."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _bytes(array: npt.NDArray[Any], dtype: str) -> bytes:
    """Little-endian, row-major bytes."""
    return np.ascontiguousarray(array, dtype=np.dtype(dtype)).tobytes()


def forward_backward_json(
    logprobs: Sequence[Logprobs] | None, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """The same result for the native face; a number that is not finite becomes null.

    With the metric NON_DP, `non_dp` lists the fields that are not differentially private.
    """
    outputs = None if logprobs is None else [{"logprobs": _numbers(array)} for array in logprobs]
    body: dict[str, Any] = {
        "loss_fn_outputs": outputs,
        "metrics": {name: _number(value) for name, value in metrics.items()},
    }
    if NON_DP in metrics:
        others = (name for name in metrics if name != NON_DP and not name.startswith("dp_"))
        body["non_dp"] = ["loss_fn_outputs", *(f"metrics.{name}" for name in others)]
    return body


def sample_json(result: SampleResult, attested: Attested | None = None) -> dict[str, Any]:
    """A sampling result for the native face; null stands where nothing was scored."""
    return ({} if attested is None else attested.fields()) | {
        "sequences": [
            {
                "tokens": sequence.tokens.tolist(),
                "logprobs": _numbers(sequence.logprobs),
                "stop_reason": sequence.stop_reason,
                "topk_logprobs": None if sequence.topk is None else list(_topk_rows(sequence.topk)),
            }
            for sequence in result.sequences
        ],
        "prompt_logprobs": None if result.prompt_logprobs is None else _numbers(result.prompt_logprobs),
        "topk_prompt_logprobs": None
        if result.topk_prompt_logprobs is None
        else list(_topk_rows(result.topk_prompt_logprobs)),
        "prompt_cache_hit_tokens": result.prompt_cache_hit_tokens,
        "extra": dict(result.extra),
    }


def _topk_rows(topk: TopkLogprobs) -> Iterator[list[dict[str, Any]] | None]:
    for token_ids, logprobs in zip(topk.token_ids.tolist(), topk.logprobs.tolist(), strict=True):
        row = [
            {"token_id": token_id, "logprob": logprob}
            for token_id, logprob in zip(token_ids, logprobs, strict=True)
            if token_id >= 0
        ]
        yield row or None


def _numbers(array: Logprobs) -> list[Any]:
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return [_number(value) for value in array.tolist()]


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
