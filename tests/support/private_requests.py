"""What tests of private adapters ask of a sampling engine, and how they read its answers."""

from __future__ import annotations

from typing import Final

from tensafe.contracts.sampling import SampleRequest, SampleResult, SamplingParams

NEW: Final = 12
"""Tokens of a completion, unless a test says otherwise."""
ALL: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PART: Final = ("q_proj", "v_proj", "o_proj")


def greedy(prompt: tuple[int, ...], tokens: int = NEW, **more: object) -> SampleRequest:
    params = SamplingParams(max_tokens=tokens, temperature=0.0, stop=())
    return SampleRequest(prompt=prompt, params=params, **more)


def tokens_of(result: SampleResult | BaseException) -> list[int]:
    assert isinstance(result, SampleResult), result
    return result.sequences[0].tokens.tolist()
