"""Requests that make a fresh engine do everything once, so that no user pays for first-time work."""

from __future__ import annotations

from typing import Final

from tensafe.contracts.sampling import SampleRequest, SamplingParams

_PROMPT: Final = (0, 1, 2, 3)


def warmup_requests() -> tuple[SampleRequest, ...]:
    """Greedy, filtered and seeded sampling, with sampled, top-k and prompt logprobs."""
    greedy = SamplingParams(max_tokens=2, temperature=0.0, stop=())
    drawn = SamplingParams(max_tokens=2, seed=0, top_k=2, top_p=0.9, stop=())
    return (
        SampleRequest(prompt=_PROMPT, params=greedy, prompt_logprobs=True),
        SampleRequest(prompt=_PROMPT, params=drawn, topk_sample_logprobs=2, topk_prompt_logprobs=2),
        SampleRequest(prompt=_PROMPT, params=SamplingParams(max_tokens=2, stop=()), num_samples=2),
    )
