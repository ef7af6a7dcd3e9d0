"""The native JSON body means the same as protobuf, and is refused the same way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge, Unsupported
from tensafe.wire.forward_backward import decode_request
from tensafe.wire.forward_backward_json import request_json_to_forward_backward
from tensafe.wire.limits import WireLimits
from tests.unit.wire.messages import dense, request


def body(**changes: Any) -> dict[str, Any]:
    example = {
        "tokens": [0, 1, 2],
        "loss_fn_inputs": {"target_tokens": [1, 2, 3], "weights": [1, 0.5, -2e-3]},
        "dp_unit_id": 7,
    }
    return {"data": [example], "loss_fn": "cross_entropy", **changes}


def decode(value: dict[str, Any], **limits: int) -> Any:
    return request_json_to_forward_backward(json.dumps(value).encode(), WireLimits(**limits))


def test_it_means_what_the_protobuf_means() -> None:
    message = request(1)
    message.data[0].loss_fn_inputs["weights"].CopyFrom(dense([1, 0.5, -2e-3], "float32"))
    message.data[0].loss_fn_inputs["dp_unit_id"].CopyFrom(dense([7], "int64"))
    wanted = decode_request(message.SerializeToString()).request
    got = decode(body())
    assert (got.loss_fn, dict(got.loss_config), got.forward_only) == ("cross_entropy", {}, False)
    for ours, theirs in zip(got.data, wanted.data, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens, strict=True)
        assert ours.unit_id == theirs.unit_id == 7
        assert set(ours.inputs) == set(theirs.inputs)
        for name in ours.inputs:
            np.testing.assert_array_equal(ours.inputs[name], theirs.inputs[name], strict=True)


def test_nested_lists_are_two_dimensional() -> None:
    value = body()
    value["data"][0]["loss_fn_inputs"] = {"target_tokens": [[1, 2], [3, 4], [5, 6]], "weights": [[1, 0]] * 3}
    inputs = decode(value).data[0].inputs
    assert inputs["target_tokens"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert inputs["weights"].shape == (3, 2)


def test_settings_are_numbers() -> None:
    value = body(loss_fn="ppo", loss_fn_config={"clip_low_threshold": 1}, forward_only=True)
    assert dict(decode(value).loss_config) == {"clip_low_threshold": 1.0}
    assert decode(value).forward_only is True
    with pytest.raises(Unsupported, match=r"loss_fn_config\.dp_unit is text"):
        decode(body(loss_fn_config={"dp_unit": "record"}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"data": []}, "data"),
        ({"data": None}, "data"),
        ({"loss_fn": 5}, "loss_fn"),
        ({"loss_fn": "nope"}, "loss_fn"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"forward_only": "yes"}, "forward_only"),
        ({"data": [{"loss_fn_inputs": {}}]}, "data[0].tokens"),
        ({"data": [{"tokens": [], "loss_fn_inputs": {}}]}, "data[0].tokens"),
        ({"data": [{"tokens": [1.5], "loss_fn_inputs": {}}]}, "data[0].tokens[0]"),
        ({"data": [{"tokens": [True], "loss_fn_inputs": {}}]}, "data[0].tokens[0]"),
        ({"data": [{"tokens": [-1], "loss_fn_inputs": {}}]}, "data[0].tokens"),
        ({"data": [{"tokens": [2**31], "loss_fn_inputs": {}}]}, "data[0].tokens"),
        ({"data": [{"tokens": [10**30], "loss_fn_inputs": {}}]}, "data[0].tokens"),
        ({"data": [{"tokens": [1], "loss_fn_inputs": {}, "dp_unit_id": 2**63}]}, "data[0].dp_unit_id"),
        ({"data": [{"tokens": [1], "loss_fn_inputs": {}, "unit": 1}]}, "data[0].unit"),
        (
            {"data": [{"tokens": [1], "loss_fn_inputs": {"dp_unit_id": [1]}}]},
            "data[0].loss_fn_inputs.dp_unit_id",
        ),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(body(**change))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("target_tokens", [1, 2.5, 3]),
        ("target_tokens", [1, 2, 2**63]),
        ("weights", [[1], [1, 2], [3]]),
        ("weights", [[], [], []]),
        ("weights", [1, [2], 3]),
    ],
)
def test_lists_that_are_no_tensor_are_refused(name: str, values: Any) -> None:
    value = body()
    value["data"][0]["loss_fn_inputs"][name] = values
    with pytest.raises(InvalidRequest) as caught:
        decode(value)
    assert caught.value.field == f"data[0].loss_fn_inputs.{name}"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'{"data": NaN}', b"\xff", b'"\\ud800"', b"[" * 100_000]
)
def test_what_is_not_such_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        request_json_to_forward_backward(raw)


def test_nan_is_refused_by_name() -> None:
    raw = json.dumps(body(loss_fn_config={"beta": float("nan")})).encode()
    with pytest.raises(InvalidRequest) as caught:
        request_json_to_forward_backward(raw)
    assert caught.value.field is not None
    assert caught.value.field.startswith("loss_fn_config.beta")


def test_caps() -> None:
    raw = json.dumps(body()).encode()
    for limits in (WireLimits(body_bytes=len(raw) - 1), WireLimits(elements=8)):
        with pytest.raises(PayloadTooLarge):
            request_json_to_forward_backward(raw, limits)
    with pytest.raises(PayloadTooLarge):
        decode(body(data=body()["data"] * 3), examples=2)


def test_messages_do_not_repeat_values() -> None:
    value = body()
    value["data"][0]["tokens"] = ["a secret"]
    with pytest.raises(InvalidRequest) as caught:
        decode(value)
    assert "secret" not in caught.value.message
