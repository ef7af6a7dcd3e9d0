"""LoRA on every projection and on lm_head, tied and untied, in the families that are served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.contracts.sampling import SampleRequest, SamplingParams
from tests.integration.sampler.conftest import (
    MODEL_SHAPE,
    AdapterFactory,
    Harness,
    Reference,
    adapter_factory,
)
from tests.integration.sampler.test_numbers import GREEDY, PROMPTS, check_prompt_logprobs
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[("qwen3", True), ("qwen2", True), ("llama", False)])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    family, tied = request.param
    return tiny_model(tmp_path_factory.mktemp(family), family, tied=tied, **MODEL_SHAPE)


@pytest.fixture(scope="module")
def reference(model_path: str) -> Reference:
    return Reference(model_path)


@pytest.fixture(scope="module")
def make_adapter(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> AdapterFactory:
    return adapter_factory(model_path, tmp_path_factory)


@pytest.fixture(scope="module")
def harness(model_path: str) -> Iterator[Harness]:
    harness = Harness(model_path, max_loras=1, max_lora_rank=8, max_resident_adapters=1)
    yield harness
    harness.close()


def test_tokens_and_prompt_logprobs_equal_peft(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory
) -> None:
    """With vLLM's only slot taken, the base model's requests still get the base model."""
    adapter, folder = make_adapter("a", seed=1, rank=8)
    cases: list[tuple[Path | None, tuple[int, ...]]] = [(f, p) for p in PROMPTS for f in (None, folder)]
    results = harness.together(
        *(
            harness.engine.sample(
                SampleRequest(prompt=prompt, params=GREEDY, prompt_logprobs=True, topk_prompt_logprobs=2),
                adapter if used else None,
            )
            for used, prompt in cases
        )
    )
    for (used, prompt), result in zip(cases, results, strict=True):
        assert result.sequences[0].tokens.tolist() == reference.greedy(prompt, used, 12)
        check_prompt_logprobs(result, prompt, reference.logprobs(list(prompt), used))


def test_lm_head_alone_changes_the_samples(
    harness: Harness, reference: Reference, make_adapter: AdapterFactory
) -> None:
    adapter, folder = make_adapter("head", seed=2, rank=8, modules=("lm_head",))
    request = SampleRequest(prompt=PROMPTS[0], params=SamplingParams(max_tokens=12, temperature=0, stop=()))
    result = harness.run(harness.engine.sample(request, adapter))
    assert result.sequences[0].tokens.tolist() == reference.greedy(PROMPTS[0], folder, 12)
    assert reference.greedy(PROMPTS[0], folder, 12) != reference.greedy(PROMPTS[0], None, 12)
