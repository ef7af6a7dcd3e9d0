"""Our schema, decoder and encoders against the SDK's own: each side reads what the other writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tinker
import torch
from google.protobuf import descriptor_pb2
from tinker import types
from tinker.proto import request_conv, response_conv, tinker_public_pb2

from tensafe.contracts.errors import Unsupported
from tensafe.contracts.sampling import SampleResult, Sequence, TopkLogprobs
from tensafe.wire import results
from tensafe.wire import tinker_v0_38_pb2 as pb
from tensafe.wire.forward_backward import decode_request

MODEL_ID = "s-1:train:0"


def test_the_sdk_is_the_one_that_the_schema_describes() -> None:
    assert tinker.__version__ == "0.38.0"


# --- schema -------------------------------------------------------------------------------------------


def shape_of(file: Any) -> dict[str, Any]:
    """Every message, field, oneof and enum of a schema by full name, without its package."""
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    found: dict[str, Any] = {"syntax": proto.syntax}
    prefix = f".{proto.package}."

    def enum(one: descriptor_pb2.EnumDescriptorProto, path: str) -> None:
        found[f"enum {path}{one.name}"] = {value.name: value.number for value in one.value}

    def message(one: descriptor_pb2.DescriptorProto, path: str) -> None:
        name = f"{path}{one.name}"
        oneofs = [oneof.name for oneof in one.oneof_decl]
        found[f"message {name}"] = (one.options.map_entry, sorted(oneofs))
        for field in one.field:
            found[f"field {name}.{field.name}"] = (
                field.number,
                field.type,
                field.label,
                field.type_name.removeprefix(prefix),
                oneofs[field.oneof_index] if field.HasField("oneof_index") else None,
                field.proto3_optional,
                field.json_name,
            )
        for nested in one.nested_type:
            message(nested, f"{name}.")
        for nested_enum in one.enum_type:
            enum(nested_enum, f"{name}.")

    for one in proto.message_type:
        message(one, "")
    for top in proto.enum_type:
        enum(top, "")
    return found


def test_our_schema_is_the_sdks_in_both_directions() -> None:
    ours, theirs = shape_of(pb.DESCRIPTOR), shape_of(tinker_public_pb2.DESCRIPTOR)
    assert len(theirs) > 80
    assert set(ours) == set(theirs)
    assert {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]} == {}
    assert pb.DESCRIPTOR.package != tinker_public_pb2.DESCRIPTOR.package


# --- what the SDK's encoder writes ----------------------------------------------------------------------


def sdk_bytes(data: list[types.Datum], loss: Any = "cross_entropy", config: Any = None) -> bytes:
    request = types.ForwardBackwardRequest(
        forward_backward_input=types.ForwardBackwardInput(data=data, loss_fn=loss, loss_fn_config=config),
        model_id=MODEL_ID,
        seq_id=3,
    )
    return request_conv.forward_backward_request_to_proto(request).SerializeToString()


def sdk_datum(tokens: list[int], **inputs: Any) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def test_dense_tensors_arrive_unchanged() -> None:
    weights = torch.randn(4, generator=torch.Generator().manual_seed(0))
    data = [
        sdk_datum([1, 2, 3, 4], target_tokens=[2, 3, 4, 5], weights=weights),
        sdk_datum([9], target_tokens=np.array([8]), weights=np.array([0.25], np.float64)),
    ]
    decoded = decode_request(sdk_bytes(data))
    assert (str(decoded.run), decoded.seq_id) == (MODEL_ID, 3)
    first, second = decoded.request.data
    assert first.tokens.tolist() == [1, 2, 3, 4]
    assert first.inputs["target_tokens"].tolist() == [2, 3, 4, 5]
    np.testing.assert_array_equal(first.inputs["weights"], weights.numpy())
    assert second.inputs["weights"].tolist() == [0.25]


@pytest.mark.parametrize("density", [0.05, 0.9])
def test_two_dimensional_targets_arrive_whether_the_sdk_makes_them_sparse_or_not(density: float) -> None:
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(12, 7, generator=generator) < density
    targets = torch.randint(1, 100, (12, 7), generator=generator) * keep
    weights = torch.randn(12, 7, generator=generator) * keep
    datum = sdk_datum(list(range(12)), target_tokens=targets, weights=weights)
    assert (datum.loss_fn_inputs["weights"].sparse_crow_indices is not None) == (density < 0.5)
    inputs = decode_request(sdk_bytes([datum])).request.data[0].inputs
    np.testing.assert_array_equal(inputs["target_tokens"], targets.numpy())
    np.testing.assert_array_equal(inputs["weights"], weights.numpy())


def test_settings_units_chunks_and_provenance_arrive() -> None:
    datum = types.Datum(
        model_input=types.ModelInput(
            chunks=[types.EncodedTextChunk(tokens=[1, 2]), types.EncodedTextChunk(tokens=[3])]
        ),
        loss_fn_inputs={
            "target_tokens": [2, 3, 4],
            "logprobs": [-1.0, -2.0, -3.0],
            "advantages": [0.0, 1.0, 1.0],
            "dp_unit_id": torch.tensor([7]),
        },
    ).with_provenance(
        model_input=[
            types.PromptProvenanceSpan(sequence_id="s-1:sample:0:0:0", length=1),
            types.SampledProvenanceSpan(sequence_id="s-1:sample:0:0:0", length=2),
        ],
        loss_fn_inputs=[types.SampledProvenanceSpan(sequence_id="s-1:sample:0:0:0", length=3)],
    )
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    request = decode_request(sdk_bytes([datum], "ppo", config)).request
    assert request.loss_fn == "ppo"
    assert dict(request.loss_config) == config
    assert request.data[0].tokens.tolist() == [1, 2, 3]
    assert request.data[0].unit_id == 7
    assert set(request.data[0].inputs) == {"target_tokens", "logprobs", "advantages"}


def test_images_and_text_settings_are_refused_by_name() -> None:
    image = types.Datum(
        model_input=types.ModelInput(chunks=[types.ImageChunk(data=b"x", format="png", expected_tokens=1)]),
        loss_fn_inputs={"target_tokens": [1], "weights": [1.0]},
    )
    with pytest.raises(Unsupported, match=r"data\[0\].model_input\[0\] is of kind image"):
        decode_request(sdk_bytes([image]))
    plain = sdk_datum([1], target_tokens=[1], weights=[1.0])
    with pytest.raises(Unsupported, match="dp_unit is text"):
        decode_request(sdk_bytes([plain], config={"dp_unit": "record"}))


# --- what the SDK's decoder reads -----------------------------------------------------------------------


def test_logprobs_of_mixed_shapes_come_back_in_order() -> None:
    generator = np.random.default_rng(0)
    shapes = [(3,), (1,), (2, 4), (5, 4), (2, 3), (4,)]
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    raw = results.encode_forward_backward(arrays, {"loss:sum": 1.5, "clip:mean": float("nan")})
    output = response_conv.deserialize_forward_backward_output(raw)
    assert output.loss_fn_output_type == "ArrayRecord"
    assert output.metrics["loss:sum"] == 1.5
    assert np.isnan(output.metrics["clip:mean"])
    assert len(output.loss_fn_outputs) == len(arrays)
    for got, sent in zip(output.loss_fn_outputs, arrays, strict=True):
        np.testing.assert_array_equal(got["logprobs"].to_numpy(), sent)
        assert got["logprobs"].shape == list(sent.shape)


def test_withheld_logprobs_still_count_examples() -> None:
    raw = results.encode_forward_backward(None, {"loss:sum": 1.0}, examples=3)
    output = response_conv.deserialize_forward_backward_output(raw)
    assert output.loss_fn_outputs == [{}, {}, {}]


def test_samples_come_back_with_none_where_nothing_was_scored() -> None:
    nan = float("nan")
    topk = TopkLogprobs(
        np.array([[-1, -1], [5, 6], [7, -1]], np.int32),
        np.array([[nan, nan], [-0.5, -1.5], [-0.25, nan]], np.float32),
    )
    result = SampleResult(
        (
            Sequence(np.array([1, 2, 3], np.int32), np.array([-1, -2, -3], np.float32), "length", topk),
            Sequence(np.array([4], np.int32), np.array([-4], np.float32), "stop"),
            Sequence(np.zeros(0, np.int32), np.zeros(0, np.float32), "stop"),
        ),
        prompt_logprobs=np.array([nan, -0.5, -0.75], np.float32),
        topk_prompt_logprobs=topk,
        prompt_cache_hit_tokens=2,
    )
    response = response_conv.deserialize_sample_response(results.encode_sample(result))
    rows = [None, [(5, -0.5), (6, -1.5)], [(7, -0.25)]]
    assert response.prompt_logprobs == [None, -0.5, -0.75]
    assert response.topk_prompt_logprobs == rows
    assert response.prompt_cache_hit_tokens == 2
    first, second, empty = response.sequences
    assert (first.tokens, first.logprobs, first.stop_reason) == ([1, 2, 3], [-1.0, -2.0, -3.0], "length")
    assert first.topk_logprobs == rows
    assert (second.tokens, second.stop_reason, second.topk_logprobs) == ([4], "stop", None)
    assert (empty.tokens, empty.logprobs) == ([], None)
    assert response.target_prompt_logprobs is None
    assert response.prompt_alt_tokens is None


def test_what_was_not_asked_for_is_absent() -> None:
    sequence = Sequence(np.array([1], np.int32), np.array([-1], np.float32), "stop")
    response = response_conv.deserialize_sample_response(results.encode_sample(SampleResult((sequence,))))
    assert response.prompt_logprobs is None
    assert response.topk_prompt_logprobs is None
