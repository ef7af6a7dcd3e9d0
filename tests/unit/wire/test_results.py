"""The JSON results of the native face, and blanking what was not to be scored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensafe.contracts.errors import TensafeError
from tensafe.contracts.sampling import SampleResult, Sequence, TopkLogprobs
from tensafe.wire.results import (
    NON_DP,
    encode_forward_backward,
    encode_sample,
    forward_backward_json,
    keep_last_prompt_logprobs,
    sample_json,
)

NAN = float("nan")


def result() -> SampleResult:
    topk = TopkLogprobs(
        np.array([[-1, -1], [5, 6], [7, -1]], np.int32),
        np.array([[NAN, NAN], [-0.5, -1.5], [-0.25, NAN]], np.float32),
    )
    sequence = Sequence(np.array([1, 2, 3], np.int32), np.array([-1, -2, -0.5], np.float32), "stop", topk)
    return SampleResult(
        (sequence,),
        prompt_logprobs=np.array([NAN, -0.5, -0.75], np.float32),
        topk_prompt_logprobs=topk,
        prompt_cache_hit_tokens=2,
        extra={"attestation": "x"},
    )


def test_forward_backward() -> None:
    logprobs = [np.array([-1, NAN], np.float32), np.array([[-1, -2], [-3, -0.5]], np.float32)]
    value = forward_backward_json(logprobs, {"loss:sum": 3.0, "grad:max": float("inf")})
    assert value == {
        "loss_fn_outputs": [{"logprobs": [-1.0, None]}, {"logprobs": [[-1.0, -2.0], [-3.0, -0.5]]}],
        "metrics": {"loss:sum": 3.0, "grad:max": None},
    }
    assert forward_backward_json(None, {})["loss_fn_outputs"] is None

    json.dumps(value, allow_nan=False)


def test_what_is_not_private_is_listed_where_a_run_is() -> None:
    metrics = {"loss:sum": 1.0, "non_dp/units:sum": 2.0, "dp_epsilon:max": 0.5}
    assert "non_dp" not in forward_backward_json([], metrics)
    listed = forward_backward_json([], {**metrics, NON_DP: 1.0})["non_dp"]
    assert listed == ["loss_fn_outputs", "metrics.loss:sum", "metrics.non_dp/units:sum"]


def test_sample() -> None:
    rows = [
        None,
        [{"token_id": 5, "logprob": -0.5}, {"token_id": 6, "logprob": -1.5}],
        [{"token_id": 7, "logprob": -0.25}],
    ]
    value = sample_json(result())
    assert value == {
        "sequences": [
            {
                "tokens": [1, 2, 3],
                "logprobs": [-1.0, -2.0, -0.5],
                "stop_reason": "stop",
                "topk_logprobs": rows,
            }
        ],
        "prompt_logprobs": [None, -0.5, -0.75],
        "topk_prompt_logprobs": rows,
        "prompt_cache_hit_tokens": 2,
        "extra": {"attestation": "x"},
    }
    json.dumps(value, allow_nan=False)


def test_only_the_last_prompt_tokens_stay_scored() -> None:
    whole = result()
    assert keep_last_prompt_logprobs(whole, None) is whole
    last = sample_json(keep_last_prompt_logprobs(whole, 1))
    assert last["prompt_logprobs"] == [None, None, -0.75]
    assert last["topk_prompt_logprobs"] == [None, None, [{"token_id": 7, "logprob": -0.25}]]
    assert sample_json(whole)["prompt_logprobs"] == [None, -0.5, -0.75]
    assert sample_json(keep_last_prompt_logprobs(whole, 3)) == sample_json(whole)


def test_equal_results_are_equal_bytes() -> None:
    assert encode_sample(result()) == encode_sample(result())
    logprobs = [np.array([-1], np.float32)]
    first = encode_forward_backward(logprobs, {"a:sum": 1, "b:sum": 2})
    assert first == encode_forward_backward(logprobs, {"b:sum": 2, "a:sum": 1})


def test_rows_that_are_not_contiguous_are_written_in_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert encode_forward_backward([array], {}) == encode_forward_backward([array.copy(order="C")], {})


def test_withheld_logprobs_need_their_number() -> None:
    with pytest.raises(TensafeError):
        encode_forward_backward(None, {})
