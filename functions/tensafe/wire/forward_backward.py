"""The protobuf body of forward_backward as the contract's ForwardBackward.

Everything that a client could have meant differently is refused with the path of the field: unknown
fields, text settings, bytes that do not fit their shape. `contracts.data_checks.check_request` then
says whether the example fits its loss and the base model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge, Unsupported
from tensafe.contracts.training import Datum, ForwardBackward
from tensafe.wire import tinker_v0_38_pb2 as pb
from tensafe.wire.ids import RunId
from tensafe.wire.limits import ElementBudget, WireLimits
from tensafe.wire.loss_inputs import build_datum, check_loss_config, check_loss_name
from tensafe.wire.protobuf_scan import check_wire_format, head_length
from tensafe.wire.tensors import decode_tensor

_TOKEN: Final = np.dtype("<i4")
_DEFAULT_LIMITS: Final = WireLimits()
_ADDRESS_FIELDS: Final = ("model_id", "seq_id")
"""Fields 1 and 2, which every protobuf encoder writes first."""


@dataclass(frozen=True, slots=True)
class ForwardBackwardSubmission:
    """A decoded request: which run, which place in its log, and what to compute."""

    run: RunId
    seq_id: int
    request: ForwardBackward


def decode_request(raw: bytes, limits: WireLimits = _DEFAULT_LIMITS) -> ForwardBackwardSubmission:
    """Decode an uncompressed protobuf body.

    Raises InvalidRequest (with `field`), Unsupported or PayloadTooLarge; nothing is allocated beyond
    `limits` for a body that will be refused.
    """
    limits.check_body(len(raw))
    check_wire_format(raw, pb.ForwardBackwardRequest, max_fields=limits.fields)
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise InvalidRequest("the body is not a valid ForwardBackwardRequest", field="body") from error
    if message.seq_id < 1:
        raise InvalidRequest("seq_id must be 1 or more", field="seq_id")
    run = RunId.parse(message.model_id, field="model_id")
    loss = check_loss_name(message.loss_fn)
    config = check_loss_config(_loss_config(message))
    data = _decode_data(message.data, limits)
    return ForwardBackwardSubmission(
        run, message.seq_id, ForwardBackward(data, loss, config, message.forward_only)
    )


def address_of(raw: bytes) -> tuple[str, int] | None:
    """`model_id` and `seq_id` of a refused body, if its first fields say them.

    Reads the head alone: the body may have been refused because parsing it would cost too much.
    """
    head = head_length(raw, pb.ForwardBackwardRequest, _ADDRESS_FIELDS)
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(raw[:head])
        run = RunId.parse(message.model_id)
    except (DecodeError, InvalidRequest):
        return None
    return (str(run), message.seq_id) if message.seq_id >= 1 else None


def _decode_data(data: Iterable[pb.Datum], limits: WireLimits) -> tuple[Datum, ...]:
    messages = list(data)
    if not messages:
        raise InvalidRequest("data is empty; send at least one example", field="data")
    if len(messages) > limits.examples:
        raise PayloadTooLarge(
            f"data has {len(messages)} examples; at most {limits.examples} are accepted", field="data"
        )
    budget = ElementBudget(limits.elements)
    return tuple(_decode_datum(message, f"data[{i}]", budget) for i, message in enumerate(messages))


def _decode_datum(message: pb.Datum, field: str, budget: ElementBudget) -> Datum:
    tokens = _decode_tokens(message.model_input, f"{field}.model_input", budget)
    inputs = {
        name: decode_tensor(tensor, f"{field}.loss_fn_inputs.{name[:64]}", budget)
        for name, tensor in sorted(message.loss_fn_inputs.items())
    }
    datum = build_datum(tokens, inputs, field)
    # None of the losses that we compute reads provenance, and recipes attach it whatever the loss:
    # it is checked for form, then dropped.
    _check_spans(message.model_input_spans, tokens.size, f"{field}.model_input_spans")
    targets = datum.inputs.get("target_tokens")
    covered = targets.size if targets is not None and targets.ndim == 1 else None
    _check_spans(message.loss_fn_input_spans, covered, f"{field}.loss_fn_input_spans")
    return datum


def _decode_tokens(chunks: Iterable[pb.Chunk], field: str, budget: ElementBudget) -> npt.NDArray[np.int32]:
    """All text chunks one after the other, int32 [T]."""
    pieces: list[npt.NDArray[np.int32]] = []
    for i, chunk in enumerate(chunks):
        kind = chunk.WhichOneof("chunk")
        chunk_field = f"{field}[{i}]"
        if kind is None:
            raise InvalidRequest(f"{chunk_field} is empty; give encoded_text", field=chunk_field)
        if kind != "encoded_text":
            raise Unsupported(
                f"{chunk_field} is of kind {kind}; only encoded_text is supported", field=chunk_field
            )
        data = chunk.encoded_text.tokens
        if len(data) % _TOKEN.itemsize:
            raise InvalidRequest(
                f"{chunk_field}.tokens is not a whole number of int32 values", field=chunk_field
            )
        budget.take(len(data) // _TOKEN.itemsize, chunk_field)
        pieces.append(np.frombuffer(data, _TOKEN))
    if not pieces:
        return np.zeros(0, np.int32)
    return np.concatenate(pieces).astype(np.int32)


def _check_spans(spans: Iterable[pb.ProvenanceSpan], length: int | None, field: str) -> None:
    """Raise InvalidRequest unless the spans are well formed and, when given, tile `length` positions."""
    covered = None
    for i, span in enumerate(spans):
        span_field = f"{field}[{i}]"
        kind = span.WhichOneof("span")
        if kind is None:
            raise InvalidRequest(
                f"{span_field} names neither prompt_tokens nor sampled_tokens", field=span_field
            )
        run = span.prompt_tokens if kind == "prompt_tokens" else span.sampled_tokens
        if not run.sequence_id or run.offset < 0 or run.length < 0:
            raise InvalidRequest(
                f"{span_field} needs a sequence_id and an offset and length of 0 or more", field=span_field
            )
        covered = (covered or 0) + run.length
    if covered is not None and length is not None and covered != length:
        raise InvalidRequest(f"{field} covers {covered} positions; the field has {length}", field=field)


def _loss_config(message: pb.ForwardBackwardRequest) -> Mapping[str, float | str]:
    """loss_fn_config_v2 where it is given, else the older map of numbers; both must agree."""
    legacy = dict(message.loss_fn_config)
    if not message.loss_fn_config_v2:
        return legacy
    config: dict[str, float | str] = {}
    for name, value in sorted(message.loss_fn_config_v2.items()):
        kind = value.WhichOneof("value")
        if kind is None:
            field = f"loss_fn_config.{name[:64]}"
            raise InvalidRequest(f"{field} has no value", field=field)
        config[name] = value.number if kind == "number" else value.text
    for name, number in sorted(legacy.items()):
        given = config.get(name)
        if given != number and not (given != given and number != number):  # noqa: PLR0124  NaN twice agrees
            field = f"loss_fn_config.{name[:64]}"
            raise InvalidRequest(f"{field} differs between loss_fn_config and loss_fn_config_v2", field=field)
    return config
