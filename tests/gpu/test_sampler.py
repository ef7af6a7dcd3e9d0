"""The sampler on a GPU: vLLM for CUDA beside transformers and PEFT on a CPU, with private adapters too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from tensafe.contracts.execution import ExecutionMode
from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams
from tensafe_gpu.sampler.environment import configure_environment
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tests.gpu.conftest import DEVICE
from tests.integration.sampler.conftest import (
    MODEL_SHAPE,
    AdapterFactory,
    Harness,
    Reference,
    adapter_factory,
)
from tests.support.holder_process import HolderProcess
from tests.support.private_requests import ALL, NEW, greedy, tokens_of
from tests.support.quantised_reference import QuantisedReference, served_integers
from tests.support.tiny_models import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(900)]

SITES = 8
"""q, k and v share one in each of two layers, as do gate and up; o and down have one each."""
PROMPTS = ((5, 9, 301, 44), (7, 8, 9, 10, 11, 12, 13), (480, 3, 77))
CONNECT = "tensafe_gpu.sampler.private.connecting:connect"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model"), "qwen3", **MODEL_SHAPE)


@pytest.fixture(scope="module")
def make_adapter(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> AdapterFactory:
    return adapter_factory(model_path, tmp_path_factory)


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        configure_environment(device=DEVICE, threads=1)
        yield


def engine(model_path: str, dtype: str = "float32", **settings: object) -> Harness:
    """With little of the GPU's memory: others may be on it."""
    sizes = {"max_loras": 2, "max_lora_rank": 8, "kv_cache_bytes": 2**28}
    return Harness(model_path, start_s=600, dtype=dtype, **sizes, **settings)


@pytest.fixture(scope="module")
def private_engine(model_path: str, environment: None) -> Iterator[Harness]:
    """Eager, with the layers that add what an adapter holder computed."""
    harness = engine(model_path, key_holder=CONNECT)
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def compiled_engine(model_path: str, environment: None) -> Iterator[Harness]:
    """As a GPU serves without private adapters: compiled, and with CUDA graphs."""
    harness = engine(model_path)
    yield harness
    harness.close()


@pytest.mark.parametrize("which", ["compiled_engine", "private_engine"])
def test_greedy_tokens_and_logprobs_of_base_and_adapter_are_the_reference_s(
    which: str, request: pytest.FixtureRequest, model_path: str, make_adapter: AdapterFactory
) -> None:
    """In one batch, with prompt logprobs, which vLLM itself gives with another adapter's lm_head."""
    harness = request.getfixturevalue(which)
    reference = Reference(model_path)
    adapter, folder = make_adapter("P", seed=3)
    results = harness.together(
        *(
            harness.engine.sample(greedy(prompt, prompt_logprobs=True), one)
            for prompt in PROMPTS
            for one in (None, adapter)
        )
    )
    for index, result in enumerate(results):
        prompt, where = PROMPTS[index // 2], folder if index % 2 else None
        tokens = tokens_of(result)
        assert tokens == reference.greedy(prompt, where, NEW)
        assert isinstance(result, SampleResult)
        logprobs = reference.logprobs([*prompt, *tokens], where)
        expected = [logprobs[t, token].item() for t, token in enumerate([*prompt, *tokens][1:])]
        assert result.prompt_logprobs is not None
        found = [*result.prompt_logprobs[1:], *result.sequences[0].logprobs]
        np.testing.assert_allclose(np.array(found, np.float64), expected, atol=1e-3)


def test_a_seed_gives_its_tokens_again(compiled_engine: Harness) -> None:
    drawn = SamplingParams(max_tokens=NEW, seed=11, top_k=50, top_p=0.95, temperature=0.9, stop=())
    asked = SampleRequest(prompt=PROMPTS[0], params=drawn)
    first = tokens_of(compiled_engine.run(compiled_engine.engine.sample(asked)))
    noise = [compiled_engine.engine.sample(greedy(prompt)) for prompt in PROMPTS]
    again = compiled_engine.together(compiled_engine.engine.sample(asked), *noise)[0]
    assert tokens_of(again) == first


def test_bfloat16_is_close_to_float32(model_path: str, environment: None) -> None:
    harness = engine(model_path, "bfloat16")
    try:
        result = harness.run(harness.engine.sample(greedy(PROMPTS[1], 1, prompt_logprobs=True)))
    finally:
        harness.close()
    logprobs = Reference(model_path).logprobs(list(PROMPTS[1]), None)
    expected = [logprobs[t, token].item() for t, token in enumerate(PROMPTS[1][1:])]
    assert result.prompt_logprobs is not None
    assert np.abs(result.prompt_logprobs[1:].astype(np.float64) - expected).max() < 0.5


@pytest.fixture(scope="module")
def holder(make_adapter: AdapterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    _, folder = make_adapter("E", seed=11, modules=ALL)
    process = HolderProcess(tmp_path_factory.mktemp("holder"))
    process.publish("E", folder, base_model="tiny", tenant="t", tokens_per_site=1000)
    yield process
    process.kill()


def test_an_encrypted_adapter_gives_the_tokens_of_its_integers_in_the_clear(
    private_engine: Harness, holder: HolderProcess, model_path: str
) -> None:
    """Activations leave the GPU, are encrypted on the CPU, and their deltas come back to it."""
    adapter = PrivateAdapter("E", "1", holder.reached("E", tenant="t"))
    sample = private_engine.engine.sample
    results = private_engine.together(
        *(sample(greedy(prompt), one) for prompt in PROMPTS for one in (adapter, None))
    )
    quantised, reference = QuantisedReference(model_path), Reference(model_path)
    for index, result in enumerate(results):
        prompt = PROMPTS[index // 2]
        base = reference.greedy(prompt, None, NEW)
        if index % 2:
            assert tokens_of(result) == base
            continue
        with quantised.adapted(served_integers(holder.data_dir, "E")):
            assert tokens_of(result) == quantised.greedy(prompt, NEW) != base
        assert isinstance(result, SampleResult)
        assert result.execution is not None
        assert result.execution.mode is ExecutionMode.HE
        assert result.execution.evaluated == result.execution.tokens * SITES
