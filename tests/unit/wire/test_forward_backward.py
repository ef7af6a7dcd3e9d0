"""The protobuf body: what it means, and that everything else is refused with the path of the field."""

from __future__ import annotations

import numpy as np
import pytest

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge, TensafeError, Unsupported
from tensafe.wire import tinker_v0_38_pb2 as pb
from tensafe.wire.forward_backward import address_of, decode_request
from tensafe.wire.ids import RunId
from tensafe.wire.limits import WireLimits
from tests.unit.wire.messages import MODEL_ID, broken, datum, dense, request, sparse, text


def refused(change, error=InvalidRequest) -> TensafeError:
    with pytest.raises(error) as caught:
        decode_request(broken(change))
    return caught.value


def test_a_valid_request_says_what_it_says() -> None:
    message = request()
    message.forward_only = True
    decoded = decode_request(message.SerializeToString())
    assert (decoded.run, decoded.seq_id) == (RunId("s-0123", 0), 1)
    assert decoded.request.loss_fn == "cross_entropy"
    assert decoded.request.forward_only is True
    first = decoded.request.data[0]
    assert first.tokens.dtype == np.int32
    assert first.tokens.tolist() == [0, 1, 2]
    assert first.inputs["target_tokens"].dtype == np.int64
    assert first.inputs["weights"].dtype == np.float32
    assert first.inputs["weights"].flags.writeable
    assert first.unit_id is None
    assert decode_request(request().SerializeToString()).request.forward_only is False


def test_text_chunks_are_joined() -> None:
    message = request(1)
    del message.data[0].model_input[:]
    message.data[0].model_input.extend([text(5), text(), text(6, 7)])
    assert decode_request(message.SerializeToString()).request.data[0].tokens.tolist() == [5, 6, 7]


def test_the_unit_id_leaves_the_inputs() -> None:
    message = request(1)
    message.data[0].loss_fn_inputs["dp_unit_id"].CopyFrom(dense([-(2**63)], "int64"))
    example = decode_request(message.SerializeToString()).request.data[0]
    assert example.unit_id == -(2**63)
    assert set(example.inputs) == {"target_tokens", "weights"}


@pytest.mark.parametrize("tensor", [dense([1.0], "float32"), dense([1, 2], "int64"), dense([[1]], "int64")])
def test_a_unit_id_of_another_form_is_refused(tensor) -> None:
    error = refused(lambda m: m.data[1].loss_fn_inputs["dp_unit_id"].CopyFrom(tensor))
    assert error.field == "data[1].loss_fn_inputs.dp_unit_id"


def test_sparse_tensors_become_dense() -> None:
    message = request(1)
    message.data[0].loss_fn_inputs["weights"].CopyFrom(sparse([0.5, -1, 2], [0, 2, 2, 3], [0, 3, 1], [3, 4]))
    weights = decode_request(message.SerializeToString()).request.data[0].inputs["weights"]
    assert weights.tolist() == [[0.5, 0, 0, -1], [0, 0, 0, 0], [0, 2, 0, 0]]
    assert weights.dtype == np.float32


def test_an_empty_sparse_tensor_is_all_zeros() -> None:
    message = request(1)
    message.data[0].loss_fn_inputs["weights"].CopyFrom(sparse([], [0, 0, 0, 0], [], [3, 2]))
    assert not decode_request(message.SerializeToString()).request.data[0].inputs["weights"].any()


@pytest.mark.parametrize(
    ("row_starts", "columns", "shape", "where"),
    [
        ([0, 1], [0], [2, 2], "crow_indices"),
        ([0, 1, 2, 3], [0, 1, 1], [2, 2], "crow_indices"),
        ([1, 1, 3], [0, 0, 1], [2, 2], "crow_indices"),
        ([0, 4, 3], [0, 0, 1], [2, 2], "crow_indices"),
        ([0, 1, 2], [0, 0, 1], [2, 2], "crow_indices"),
        ([0, -(2**63), 3], [0, 0, 1], [2, 2], "crow_indices"),
        ([0, 1, 3], [0, 1], [2, 2], "col_indices"),
        ([0, 1, 3], [0, 0, 2], [2, 2], "col_indices"),
        ([0, 1, 3], [-1, 0, 1], [2, 2], "col_indices"),
        ([0, 1, 3], [0, 1, 0], [2, 2], "col_indices"),
        ([0, 1, 3], [0, 1, 1], [2, 2], "col_indices"),
    ],
)
def test_sparse_indices_that_do_not_fit_are_refused(row_starts, columns, shape, where) -> None:
    tensor = sparse([1, 2, 3], row_starts, columns, shape)
    error = refused(lambda m: m.data[2].loss_fn_inputs["weights"].CopyFrom(tensor))
    assert error.field == f"data[2].loss_fn_inputs.weights.sparse_csr.{where}"


def test_a_sparse_tensor_is_counted_dense_before_it_is_made() -> None:
    tensor = sparse([1], [0, 1, 1, 1], [0], [3, 2**62])
    error = refused(lambda m: m.data[0].loss_fn_inputs["weights"].CopyFrom(tensor), PayloadTooLarge)
    assert error.field == "data[0].loss_fn_inputs.weights"


def test_the_element_budget_is_shared_by_all_examples() -> None:
    raw = request(examples=4, length=10).SerializeToString()
    decode_request(raw, WireLimits(elements=4 * 30))
    with pytest.raises(PayloadTooLarge) as caught:
        decode_request(raw, WireLimits(elements=4 * 30 - 1))
    assert caught.value.field == "data[3].loss_fn_inputs.weights"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (dense([1, 2, 3], "float32", [4]), "shape"),
        (dense([1, 2, 3], "float32", [3, 0]), "dimensions"),
        (dense([1, 2, 3], "float32", [-3]), "dimensions"),
        (dense([1, 2, 3], "float32", [1, 1, 3]), "dimensions"),
        (pb.Tensor(dense=b"12345", dtype=pb.DTYPE_FLOAT32), "whole number"),
        (pb.Tensor(dense=b"1234", dtype=pb.DTYPE_INT32), "dtype"),
        (pb.Tensor(dense=b"12", dtype=pb.DTYPE_BFLOAT16), "dtype"),
        (pb.Tensor(dense=b"1234"), "dtype"),
        (pb.Tensor(dense=b"1234", dtype=99), "dtype"),
        (pb.Tensor(dtype=pb.DTYPE_FLOAT32), "no data"),
        (sparse([1], [0, 1], [0], [1]), "2 dimensions"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensor, words) -> None:
    error = refused(lambda m: m.data[2].loss_fn_inputs["weights"].CopyFrom(tensor))
    assert error.field is not None
    assert error.field.startswith("data[2].loss_fn_inputs.weights")
    assert words in error.message


@pytest.mark.parametrize(
    ("chunk", "error", "field"),
    [
        (pb.Chunk(image=pb.ImageChunk(data=b"x", format="png")), Unsupported, "data[1].model_input[1]"),
        (pb.Chunk(dmel=pb.DmelChunk(dmel=b"x")), Unsupported, "data[1].model_input[1]"),
        (pb.Chunk(), InvalidRequest, "data[1].model_input[1]"),
        (pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=b"123")), InvalidRequest, "data[1].model_input[1]"),
    ],
)
def test_other_chunks_are_refused(chunk, error, field) -> None:
    caught = refused(lambda m: m.data[1].model_input.append(chunk), error)
    assert type(caught) is error
    assert caught.field == field


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        (lambda m: m.ClearField("model_id"), InvalidRequest, "model_id"),
        (lambda m: setattr(m, "model_id", "s-1:sample:0"), InvalidRequest, "model_id"),
        (lambda m: setattr(m, "seq_id", 0), InvalidRequest, "seq_id"),
        (lambda m: setattr(m, "seq_id", -1), InvalidRequest, "seq_id"),
        (lambda m: m.ClearField("data"), InvalidRequest, "data"),
        (lambda m: setattr(m, "loss_fn", "stable_reinforce"), Unsupported, "loss_fn"),
        (lambda m: setattr(m, "loss_fn", "gspo"), Unsupported, "loss_fn"),
        (lambda m: setattr(m, "loss_fn", ""), InvalidRequest, "loss_fn"),
        (lambda m: m.loss_fn_config.update({"beta": float("nan")}), InvalidRequest, "loss_fn_config.beta"),
        (
            lambda m: setattr(m.loss_fn_config_v2["dp_unit"], "text", "x"),
            Unsupported,
            "loss_fn_config.dp_unit",
        ),
        (lambda m: m.loss_fn_config_v2["beta"].SetInParent(), InvalidRequest, "loss_fn_config.beta"),
    ],
)
def test_the_frame_of_the_request_is_checked(change, error, field) -> None:
    caught = refused(change, error)
    assert type(caught) is error
    assert caught.field == field


def test_an_unknown_loss_lists_the_known_ones() -> None:
    error = refused(lambda m: setattr(m, "loss_fn", "squared"))
    for name in ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro"):
        assert name in error.message


def test_settings_come_from_either_map_and_must_agree() -> None:
    def decode(v1: dict[str, float], v2: dict[str, float]) -> dict[str, float]:
        message = request(1)
        message.loss_fn_config.update(v1)
        for name, value in v2.items():
            message.loss_fn_config_v2[name].number = value
        return dict(decode_request(message.SerializeToString()).request.loss_config)

    assert decode({}, {}) == {}
    assert decode({"beta": 0.5}, {}) == {"beta": 0.5}
    assert decode({}, {"beta": 0.5}) == {"beta": 0.5}
    assert decode({"beta": 0.5}, {"beta": 0.5, "other": 0.0}) == {"beta": 0.5, "other": 0.0}
    for legacy in ({"beta": 0.4}, {"gamma": 1.0}):
        with pytest.raises(InvalidRequest, match="differs"):
            decode(legacy, {"beta": 0.5})


def spans(*lengths: int, **changes) -> list[pb.ProvenanceSpan]:
    fields = {"sequence_id": "s-0:sample:0:1:0", "offset": 0} | changes
    return [pb.ProvenanceSpan(sampled_tokens=pb.SampledProvenanceSpan(length=n, **fields)) for n in lengths]


def test_provenance_changes_nothing() -> None:
    plain = decode_request(request(1).SerializeToString()).request.data[0]
    message = request(1)
    message.data[0].model_input_spans.extend(spans(1, 2))
    message.data[0].loss_fn_input_spans.extend(spans(3))
    annotated = decode_request(message.SerializeToString()).request.data[0]
    assert annotated.tokens.tolist() == plain.tokens.tolist()
    assert set(annotated.inputs) == set(plain.inputs)


@pytest.mark.parametrize(
    "wrong",
    [spans(2), spans(4), spans(-1, 4), spans(3, offset=-1), spans(3, sequence_id=""), [pb.ProvenanceSpan()]],
)
@pytest.mark.parametrize("name", ["model_input_spans", "loss_fn_input_spans"])
def test_provenance_of_another_length_is_refused(name, wrong) -> None:
    error = refused(lambda m: getattr(m.data[1], name).extend(wrong))
    assert error.field is not None
    assert error.field.startswith(f"data[1].{name}")


def test_bodies_over_a_cap_are_refused() -> None:
    raw = request().SerializeToString()
    for limits in (
        WireLimits(body_bytes=len(raw) - 1),
        WireLimits(examples=2),
        WireLimits(elements=5),
        WireLimits(fields=20),
    ):
        with pytest.raises(PayloadTooLarge):
            decode_request(raw, limits)


def test_every_truncation_is_refused() -> None:
    raw = request(2).SerializeToString()
    for end in range(len(raw)):
        with pytest.raises(InvalidRequest) as caught:
            decode_request(raw[:end])
        assert caught.value.field


def test_tiny_messages_are_counted_before_they_are_parsed() -> None:
    raw = b"\x1a\x00" * 1_000_000  # a million empty examples in 2 MB
    with pytest.raises(PayloadTooLarge, match="fields"):
        decode_request(raw)


def nested(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + bytes([len(payload)]) + payload


@pytest.mark.parametrize(
    ("suffix", "field"),
    [
        (b"\x40\x01", "field_8"),
        (nested(3, b"\x28\x01"), "data[2].field_5"),
        (nested(3, nested(2, nested(2, b"\x28\x01"))), "data[2].loss_fn_inputs[0].value.field_5"),
        (nested(3, nested(2, b"\x18\x01")), "data[2].loss_fn_inputs[0].field_3"),
        (nested(3, nested(1, nested(1, b"\x10\x01"))), "data[2].model_input[0].encoded_text.field_2"),
        (b"\x10\x02", "seq_id"),
        (b"\x1a\x7f", "data"),
        (b"\x32\x01\x01", "forward_only"),
        (b"\x1b\x1c", "data"),
        (b"\xff" * 11, "body"),
    ],
)
def test_what_parsing_would_let_pass_is_refused(suffix, field) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_request(request(2).SerializeToString() + suffix)
    assert caught.value.field == field


def test_invalid_utf8_is_refused() -> None:
    raw = request(1).SerializeToString().replace(b"cross_entropy", b"cross_entrop\xff")
    with pytest.raises(InvalidRequest):
        decode_request(raw)


def test_a_long_name_is_cut_in_messages() -> None:
    message = request(1)
    message.data[0].loss_fn_inputs["x" * 10_000].CopyFrom(pb.Tensor())
    with pytest.raises(InvalidRequest) as caught:
        decode_request(message.SerializeToString())
    assert len(caught.value.message) < 300


def test_a_datum_helper_is_not_shared() -> None:
    assert datum() is not datum()


def test_a_refused_body_still_says_whose_it_is() -> None:
    bad = broken(lambda m: setattr(m, "loss_fn", "squared"))
    assert address_of(bad) == (MODEL_ID, 1)
    assert address_of(bad[:-3]) == (MODEL_ID, 1)
    assert address_of(bad + b"\x1a\x00" * 100_000) == (MODEL_ID, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.ClearField("model_id"),
        lambda m: m.ClearField("seq_id"),
        lambda m: setattr(m, "seq_id", -1),
        lambda m: setattr(m, "model_id", "nope"),
    ],
)
def test_a_body_without_an_address_has_none(change) -> None:
    assert address_of(broken(change)) is None


@pytest.mark.parametrize(
    "raw", [b"", b"\x0a", b"\x0a\x05ab", b"\xff" * 20, b"\x0a\x01\xff\x10\x01", b"\x10\x01"]
)
def test_what_is_no_request_has_no_address(raw) -> None:
    assert address_of(raw) is None
