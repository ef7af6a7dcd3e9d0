"""What no sampler could run is refused at the edge, before it is written anywhere."""

from __future__ import annotations

import pytest

from tensafe.api.sampling import check_sample
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.sampling import SampleRequest, SamplingParams
from tests.unit.api.conftest import MODEL

LONG = MODEL.model_copy(update={"max_context_tokens": 40_960})


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (SampleRequest(prompt=(1,) * 64), "prompt"),
        (SampleRequest(prompt=(1, 300)), "prompt[1]"),
        (SampleRequest(prompt=(2**80,)), "prompt[0]"),
    ],
)
def test_prompts_that_do_not_fit(request_: SampleRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sample(request_, MODEL)
    assert refused.value.field == field


def test_a_result_that_would_be_too_large_names_the_fields_and_the_limit() -> None:
    asked = SampleRequest(prompt=(1,), num_samples=1024, params=SamplingParams(max_tokens=2000))
    check_sample(asked, MODEL)  # no more than the context of 64 tokens
    with pytest.raises(
        InvalidRequest, match=r"at most 1048576: num_samples x max_tokens \(2000 here\)"
    ) as refused:
        check_sample(asked, LONG)
    assert refused.value.field == "num_samples"
