"""SampleRequest -> vLLM's arguments, and vLLM's flat lists -> SampleResult."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tensafe.contracts.errors import InvalidRequest, Unavailable
from tensafe.contracts.sampling import SampleRequest, SamplingParams
from tensafe_gpu.sampler.translate import Limits, check_request, sample_seed, sampling_arguments, to_result

LIMITS = Limits(vocab_size=100, max_context_tokens=32)


def request(**fields: Any) -> SampleRequest:
    params = {k: fields.pop(k) for k in list(fields) if k in SamplingParams.model_fields}
    return SampleRequest(**{"prompt": (1, 2, 3), "params": SamplingParams(**params)} | fields)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (request(prompt=(1,) * 32), "prompt"),
        (request(prompt=(1, 100)), "prompt"),
        (request(prompt=(1, -1)), "prompt"),
        (request(prompt=(1, 2**80)), "prompt"),
        (request(stop=(100,)), "params.stop"),
        (SampleRequest(prompt=(1,), topk_prompt_logprobs=64), "topk_prompt_logprobs"),
        (SampleRequest(prompt=(1,), topk_sample_logprobs=64), "topk_sample_logprobs"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_field(wrong: SampleRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request(wrong, Limits(vocab_size=63 if "topk" in field else 100, max_context_tokens=32))
    assert refused.value.field == field


def test_what_fits_is_accepted() -> None:
    check_request(request(prompt=(0, 99) * 15, stop=(0, 99), topk_sample_logprobs=64), LIMITS)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(num_samples=1024, max_tokens=1025), "num_samples"),
        (request(num_samples=27), "num_samples"),  # max_tokens: as many as the context has
        (request(num_samples=200, max_tokens=100, topk_sample_logprobs=64), "num_samples"),
        (request(prompt=(1,) * 16_200, max_tokens=1, topk_prompt_logprobs=64), "topk_prompt_logprobs"),
        (request(num_samples=1024, max_tokens=1023, prompt=(1,) * 2048, prompt_logprobs=True), "num_samples"),
    ],
)
def test_a_result_beyond_the_limit_is_refused_by_the_field_that_weighs_most(
    asked: SampleRequest, field: str
) -> None:
    with pytest.raises(
        InvalidRequest, match=r"logprobs, at most 1048576: num_samples x max_tokens"
    ) as refused:
        check_request(asked, Limits(vocab_size=100, max_context_tokens=40_960))
    assert refused.value.field == field


def test_a_result_at_the_limit_is_accepted() -> None:
    limits = Limits(vocab_size=100, max_context_tokens=40_960)
    for asked in (
        request(num_samples=1024, max_tokens=1024),
        request(num_samples=25),
        request(prompt=(1,) * 16_000, max_tokens=1, topk_prompt_logprobs=64),
        request(prompt=(1,) * 40_000, num_samples=1024),
    ):
        check_request(asked, limits)


@pytest.mark.parametrize("params", [
    {"temperature": 0.001}, {"temperature": 2.1}, {"stop": ""}, {"stop": ("a", "")}, {"stop": (-1,)},
    {"stop": ("x",) * 65}, {"stop": "x" * 1025}, {"stop": (2**31,)}, {"stop": (2**80,)},
    {"top_k": -2}, {"top_k": 2**31}, {"top_k": 2**80}, {"seed": -1}, {"seed": 2**63}, {"seed": 2**80},
    {"max_tokens": 0}, {"max_tokens": 1_000_001}, {"max_tokens": 2**80},
])  # fmt: skip
def test_the_contract_refuses_what_the_sampler_would_misread(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        SamplingParams(**params)
    assert {problem["loc"][0] for problem in refused.value.errors()} == set(params)


@pytest.mark.parametrize(("asked", "given"), [(None, 29), (5, 5), (29, 29), (500, 29)])
def test_max_tokens_end_at_the_context(asked: int | None, given: int) -> None:
    assert sampling_arguments(request(max_tokens=asked), LIMITS, 0)["max_tokens"] == given


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, {}),
        ((), {"ignore_eos": True}),
        ((7, 8), {"stop_token_ids": [7, 8]}),
        ("a", {"stop": ["a"], "detokenize": True, "skip_special_tokens": False}),
        (("a", "b"), {"stop": ["a", "b"], "detokenize": True, "skip_special_tokens": False}),
    ],
)
def test_stops(stop: Any, expected: dict[str, Any]) -> None:
    arguments = sampling_arguments(request(stop=stop), LIMITS, 0)
    assert arguments | expected == arguments
    about_stops = {"ignore_eos", "stop_token_ids", "stop"}
    assert about_stops & set(arguments) == about_stops & set(expected)


def test_seeds_differ_by_continuation_and_by_request() -> None:
    seeds = {sample_seed(seed, index) for seed in range(40) for index in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sampling_arguments(request(seed=5), LIMITS, 3)["seed"] == sample_seed(5, 3)
    assert sampling_arguments(request(), LIMITS, 3)["seed"] is None


def test_only_the_first_continuation_scores_the_prompt() -> None:
    asked = request(prompt_logprobs=True, topk_prompt_logprobs=4, num_samples=2)
    assert sampling_arguments(asked, LIMITS, 0)["prompt_logprobs"] == 4
    assert "prompt_logprobs" not in sampling_arguments(asked, LIMITS, 1)
    assert sampling_arguments(request(prompt_logprobs=True), LIMITS, 0)["prompt_logprobs"] == 0
    assert "prompt_logprobs" not in sampling_arguments(request(), LIMITS, 0)


def output(tokens: list[int], logprobs: list[float], ids: list[int], **fields: Any) -> Any:
    completion = SimpleNamespace(
        token_ids=tokens,
        logprobs=SimpleNamespace(logprobs=logprobs, token_ids=ids),
        finish_reason=fields.pop("finish_reason", "length"),
    )
    return SimpleNamespace(
        outputs=[completion], prompt_logprobs=fields.get("prompt"), num_cached_tokens=fields.get("cached")
    )


def test_flat_lists_become_arrays() -> None:
    prompt = SimpleNamespace(logprobs=[-3.0, -0.1, -4.0, -0.2], token_ids=[2, 50, 3, 60])
    first = output([9, 8], [-1.0, -0.5, -2.0, -0.6], [9, 40, 8, 41], prompt=prompt, cached=16)
    second = output([7], [-1.5, -0.7], [7, 42], finish_reason="stop")
    asked = request(num_samples=2, prompt_logprobs=True, topk_prompt_logprobs=1, topk_sample_logprobs=1)
    result = to_result(asked, [first, second])
    assert result.prompt_cache_hit_tokens == 16
    assert [s.stop_reason for s in result.sequences] == ["length", "stop"]
    a, b = result.sequences
    np.testing.assert_array_equal(a.tokens, np.array([9, 8], np.int32))
    np.testing.assert_allclose(a.logprobs, np.array([-1.0, -2.0], np.float32))
    np.testing.assert_array_equal(a.topk.token_ids, [[40], [41]])
    np.testing.assert_allclose(a.topk.logprobs, [[-0.5], [-0.6]], rtol=1e-6)
    assert b.topk.token_ids.dtype == np.int32
    np.testing.assert_allclose(result.prompt_logprobs, [np.nan, -3.0, -4.0])
    np.testing.assert_array_equal(result.topk_prompt_logprobs.token_ids, [[-1], [50], [60]])
    np.testing.assert_allclose(result.topk_prompt_logprobs.logprobs, [[np.nan], [-0.1], [-0.2]], rtol=1e-6)


def test_only_what_was_asked_for_is_returned() -> None:
    prompt = SimpleNamespace(logprobs=[-3.0, -4.0], token_ids=[2, 3])
    plain = to_result(request(prompt_logprobs=True), [output([9], [-1.0], [9], prompt=prompt)])
    assert plain.topk_prompt_logprobs is None
    assert plain.sequences[0].topk is None
    topk_only = SimpleNamespace(logprobs=[-3.0, -0.1, -4.0, -0.2], token_ids=[2, 50, 3, 60])
    result = to_result(request(topk_prompt_logprobs=1), [output([9], [-1.0], [9], prompt=topk_only)])
    assert result.prompt_logprobs is None
    assert result.topk_prompt_logprobs is not None


def test_a_prompt_of_one_token_has_one_undefined_logprob() -> None:
    nothing = SimpleNamespace(logprobs=[], token_ids=[])
    asked = request(prompt=(1,), prompt_logprobs=True)
    assert np.isnan(to_result(asked, [output([9], [-1.0], [9], prompt=nothing)]).prompt_logprobs).all()


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_unfinished_continuation_is_unavailable(reason: str | None) -> None:
    with pytest.raises(Unavailable):
        to_result(request(), [output([9], [-1.0], [9], finish_reason=reason)])


def test_logprobs_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        to_result(request(), [output([9], [float("nan")], [9])])
    broken = SimpleNamespace(logprobs=[-1.0, float("nan")], token_ids=[2, 3])
    with pytest.raises(InvalidRequest):
        to_result(request(prompt_logprobs=True), [output([9], [-1.0], [9], prompt=broken)])
