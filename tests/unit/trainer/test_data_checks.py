"""Bad data: each is refused with the field's path and what would be right."""

from __future__ import annotations

import numpy as np
import pytest

from tensafe.contracts.data_checks import LOSS_RULES, check_request, resolve_config
from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.training import Datum, ForwardBackward, ModelInfo
from tests.support.training_data import random_request

INFO = ModelInfo(name="m", path="p", arch="a", vocab_size=512, max_context_tokens=16)


def with_input(request: ForwardBackward, name: str, value, index: int = 1) -> ForwardBackward:
    data = list(request.data)
    inputs = {**data[index].inputs, name: value}
    if value is None:
        del inputs[name]
    data[index] = Datum(data[index].tokens, inputs, data[index].unit_id)
    return ForwardBackward(tuple(data), request.loss_fn, request.loss_config, False)


def with_tokens(request: ForwardBackward, tokens) -> ForwardBackward:
    data = list(request.data)
    data[1] = Datum(tokens, data[1].inputs, None)
    return ForwardBackward(tuple(data), request.loss_fn, request.loss_config, False)


def refusal(request: ForwardBackward) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check_request(request, INFO)
    assert caught.value.message
    return caught.value


@pytest.mark.parametrize("loss_fn", LOSS_RULES)
def test_good_requests_pass(loss_fn):
    check_request(random_request((1, 4, 16), loss_fn=loss_fn), INFO)


def test_several_targets_pass_for_cross_entropy_only():
    check_request(random_request((3, 4), targets=3), INFO)
    error = refusal(random_request((3, 4), targets=3, loss_fn="ppo"))
    assert error.field == "data[0].loss_fn_inputs.target_tokens"
    assert "1-D" in error.message


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.array([], np.int32), "at least one"),
        (np.array([1, 512, 2], np.int32), "512 is outside"),
        (np.array([1, -1, 2], np.int32), "-1 is outside"),
        (np.ones(17, np.int32), "at most 16"),
        (np.ones(3, np.int64), "int32"),
        (np.ones((3, 1), np.int32), "1-D"),
    ],
)
def test_bad_tokens(tokens, says):
    error = refusal(with_tokens(random_request((3, 3)), tokens))
    assert error.field == "data[1].model_input"
    assert says in error.message


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (np.array([1, 2, 512]), "512 is outside"),
        (np.array([1, 2, -100]), "-100 is outside"),
        (np.array([1, 2]), "[3]"),
        (np.ones((3, 2, 2), np.int64), "[3, K]"),
        (np.ones((3, 0), np.int64), "targets per token"),
        (np.ones(3, np.float32), "int64"),
        (None, "needs target_tokens"),
    ],
)
def test_bad_targets(targets, says):
    error = refusal(with_input(random_request((3, 3)), "target_tokens", targets))
    assert error.field == "data[1].loss_fn_inputs.target_tokens"
    assert says in error.message


@pytest.mark.parametrize(
    ("loss_fn", "name"), [("cross_entropy", "weights"), ("ppo", "advantages"), ("dro", "logprobs")]
)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([0, np.nan, 0], np.float32), "[1]"),
        (np.array([0, 0, np.inf], np.float32), "finite"),
        (np.zeros(2, np.float32), "shape of target_tokens"),
        (np.zeros((3, 1), np.float32), "shape of target_tokens"),
        (np.zeros(3, np.int64), "float32"),
    ],
)
def test_bad_floats(loss_fn, name, value, says):
    error = refusal(with_input(random_request((3, 3), loss_fn=loss_fn), name, value))
    assert error.field == f"data[1].loss_fn_inputs.{name}"
    assert says in error.message


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo", "cispo", "dro"])
@pytest.mark.parametrize("name", ["logprobs", "advantages"])
def test_sampled_losses_need_their_inputs(loss_fn, name):
    error = refusal(with_input(random_request((3, 3), loss_fn=loss_fn), name, None))
    assert error.field == f"data[1].loss_fn_inputs.{name}"
    assert "needs" in error.message


@pytest.mark.parametrize(
    ("loss_fn", "name"), [("cross_entropy", "mask"), ("cross_entropy", "advantages"), ("ppo", "weights")]
)
def test_inputs_that_the_loss_would_ignore_are_refused(loss_fn, name):
    error = refusal(with_input(random_request((3, 3), loss_fn=loss_fn), name, np.zeros(3, np.float32)))
    assert error.field == f"data[1].loss_fn_inputs.{name}"
    assert "does not read" in error.message


@pytest.mark.parametrize("loss_fn", ["gspo", "stable_reinforce", "custom", "nonsense"])
def test_other_losses_are_refused_by_name(loss_fn):
    request = random_request((3,))
    with pytest.raises(Unsupported, match=loss_fn) as caught:
        check_request(ForwardBackward(request.data, loss_fn, {}, False), INFO)
    assert caught.value.field == "loss_fn"
    assert "cross_entropy" in caught.value.message


def test_an_empty_batch_is_refused():
    assert refusal(ForwardBackward((), "cross_entropy", {}, False)).field == "data"


@pytest.mark.parametrize(
    ("loss_fn", "config", "key"),
    [
        ("cross_entropy", {"beta": 0.1}, "beta"),
        ("ppo", {"clip_ratio": 0.2}, "clip_ratio"),
        ("ppo", {"clip_low_threshold": -0.1}, "clip_low_threshold"),
        ("ppo", {"clip_low_threshold": 1.3}, "clip_low_threshold"),
        ("ppo", {"clip_high_threshold": float("nan")}, "clip_high_threshold"),
        ("cispo", {"clip_high_threshold": float("inf")}, "clip_high_threshold"),
        ("dro", {"beta": -1.0}, "beta"),
        ("dro", {"beta": True}, "beta"),
        ("dro", {"beta": "0.1"}, "beta"),
    ],
)
def test_bad_settings(loss_fn, config, key):
    request = random_request((3,), loss_fn=loss_fn, config=config)
    assert refusal(request).field == f"loss_fn_config.{key}"


def test_settings_default_to_the_cookbooks():
    assert resolve_config("ppo", {}) == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert resolve_config("cispo", {}) == {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    assert resolve_config("dro", {"beta": 1}) == {"beta": 1.0}
