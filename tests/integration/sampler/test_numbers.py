"""What the engine returns, against transformers and PEFT: tokens equal, logprobs within 1e-3."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tensafe.audit.attestation import files_digest
from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tests.integration.sampler.conftest import AdapterFactory, Harness, Reference

pytestmark = pytest.mark.slow

PROMPTS = ((5, 6, 7, 8, 9), (100, 200, 300), (17,) * 20, (400, 3, 2, 80, 81, 82, 83))
GREEDY = SamplingParams(max_tokens=12, temperature=0, stop=())

FILES = (CONFIG_FILE, WEIGHTS_FILE)


@pytest.fixture(scope="package")
def who(make_adapter: AdapterFactory) -> dict:
    """name -> (adapter, folder); the base model is (None, None). Two adapters fill all vLLM's slots."""
    return {"base": (None, None), "a": make_adapter("a", seed=1, rank=8), "b": make_adapter("b", seed=2)}


def test_a_mixed_batch_equals_peft(harness: Harness, reference: Reference, who: dict) -> None:
    """vLLM 0.32 alone gives every base request here the adapter of its last slot."""
    cases = [(name, prompt) for prompt in PROMPTS for name in who]
    results = harness.together(
        *(harness.engine.sample(SampleRequest(prompt=p, params=GREEDY), who[name][0]) for name, p in cases)
    )
    for (name, prompt), result in zip(cases, results, strict=True):
        assert result.sequences[0].tokens.tolist() == reference.greedy(prompt, who[name][1], 12), name
        adapter, execution = who[name][0], result.execution
        assert execution is not None
        loaded = None if adapter is None else {one: adapter.files[one] for one in FILES}
        assert execution.digest == (None if loaded is None else files_digest(loaded)), name
    folders = [folder for _, folder in who.values()]
    assert len({tuple(reference.greedy(PROMPTS[0], folder, 12)) for folder in folders}) == 3


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_are_those_of_temperature_1(
    harness: Harness, reference: Reference, who: dict, temperature: float
) -> None:
    params = SamplingParams(max_tokens=24, temperature=temperature, top_k=50, seed=7, stop=())
    request = SampleRequest(prompt=PROMPTS[0], num_samples=2, params=params, topk_sample_logprobs=3)
    results = harness.together(*(harness.engine.sample(request, adapter) for adapter, _ in who.values()))
    for (_, folder), result in zip(who.values(), results, strict=True):
        for sequence in result.sequences:
            tokens = [*PROMPTS[0], *sequence.tokens.tolist()]
            rows = reference.logprobs(tokens, folder)[len(PROMPTS[0]) - 1 : -1]
            expected = rows.gather(1, torch.tensor(sequence.tokens.astype(np.int64))[:, None])[:, 0]
            np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-3)
            top = rows.topk(3)
            np.testing.assert_allclose(sequence.topk.logprobs, top.values, atol=1e-3)
            assert (sequence.topk.token_ids == top.indices.numpy()).mean() > 0.95  # near-ties may swap


def check_prompt_logprobs(result: SampleResult, prompt: tuple[int, ...], rows: torch.Tensor) -> None:
    expected = rows[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert np.isnan(result.prompt_logprobs[0])
    np.testing.assert_allclose(result.prompt_logprobs[1:], expected, atol=1e-3)
    topk = result.topk_prompt_logprobs
    assert topk.token_ids[0].tolist() == [-1, -1]
    assert np.isnan(topk.logprobs[0]).all()
    np.testing.assert_allclose(topk.logprobs[1:], rows[:-1].topk(2).values, atol=1e-3)


def test_concurrent_prompt_logprobs_with_lora_on_lm_head(
    harness: Harness, reference: Reference, who: dict
) -> None:
    """The case that ends vLLM 0.32's engine on CPU and silently drops the adapter on CUDA."""
    cases = [(name, prompt) for prompt in PROMPTS for name in who]
    scored = harness.together(
        *(
            harness.engine.sample(
                SampleRequest(prompt=p, params=GREEDY, prompt_logprobs=True, topk_prompt_logprobs=2),
                who[n][0],
            )
            for n, p in cases
        )
    )
    for (name, prompt), result in zip(cases, scored, strict=True):
        check_prompt_logprobs(result, prompt, reference.logprobs(list(prompt), who[name][1]))
        assert result.sequences[0].tokens.tolist() == reference.greedy(prompt, who[name][1], 12)


def test_prompt_logprobs_of_prompts_that_take_several_steps(
    harness: Harness, reference: Reference, who: dict
) -> None:
    """24 prompts of 190 to 213 tokens are over the 2048 tokens of one step, while others decode."""
    prompts = [tuple((7 * i + 3 * j) % 500 for j in range(190 + i)) for i in range(24)]
    names = [list(who)[i % 3] for i in range(24)]
    scoring = SamplingParams(max_tokens=1, temperature=0)
    results = harness.together(
        *(
            harness.engine.sample(
                SampleRequest(prompt=p, params=scoring, prompt_logprobs=True, topk_prompt_logprobs=2),
                who[n][0],
            )
            for n, p in zip(names, prompts, strict=True)
        ),
        harness.engine.sample(SampleRequest(prompt=PROMPTS[1], params=GREEDY), who["b"][0]),
    )
    assert results.pop().sequences[0].tokens.tolist() == reference.greedy(PROMPTS[1], who["b"][1], 12)
    for name, prompt, result in zip(names, prompts, results, strict=True):
        check_prompt_logprobs(result, prompt, reference.logprobs(list(prompt), who[name][1]))


def test_a_sample_scored_again_has_the_same_logprobs(harness: Harness, who: dict) -> None:
    adapter = who["a"][0]
    params = SamplingParams(max_tokens=20, seed=3, stop=())
    drawn = harness.run(harness.engine.sample(SampleRequest(prompt=PROMPTS[3], params=params), adapter))
    tokens = (*PROMPTS[3], *drawn.sequences[0].tokens.tolist())
    request = SampleRequest(prompt=tokens, params=SamplingParams(max_tokens=1), prompt_logprobs=True)
    scored = harness.run(harness.engine.sample(request, adapter))
    np.testing.assert_allclose(
        scored.prompt_logprobs[len(PROMPTS[3]) :], drawn.sequences[0].logprobs, atol=1e-4
    )
