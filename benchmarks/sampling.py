"""Sampling through the API, with the SDK, against vllm.LLM.generate on the same prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.harness import Bench, Benchmark, Measure, NotRun, at_least, cores, cpu, interleaved, ratio
from benchmarks.peer import Peer
from benchmarks.sdk import sdk_client
from benchmarks.service import MODEL, deployed
from benchmarks.vllm_loop import vllm_loop

if TYPE_CHECKING:
    import tinker

ROUNDS = 6
WARM_ROUNDS = 2
PROMPTS = 32
PROMPT_TOKENS = 64
NEW_TOKENS = 128
CONTEXT_TOKENS = 1024
_VOCABULARY = 8192


def run(bench: Bench) -> Mapping[str, float]:
    """Both sides get all prompts of a round at once; every round has prompts of its own."""
    if find_spec("vllm") is None:
        raise NotRun("vllm is not installed")
    model, threads = models.thirty_million(bench.folder), cores()
    with (
        Peer(vllm_loop, str(model), CONTEXT_TOKENS, threads, NEW_TOKENS) as direct,
        deployed(bench.folder, model, roles=("api", "sampler"), threads=threads) as service,
        sdk_client(service) as client,
    ):
        sampler = client.create_sampling_client(base_model=MODEL)
        bench.note("taking turns")
        seconds = interleaved(
            {
                "api": lambda index: _through_api(sampler, _prompts(index)),
                "vllm": lambda index: _whole(direct(_prompts(index))),
            },
            ROUNDS,
            WARM_ROUNDS,
        )
    tokens = PROMPTS * NEW_TOKENS
    return {
        "sampling_ratio": ratio(seconds["vllm"], seconds["api"]),
        "sampling_tokens_per_s": tokens / statistics.median(seconds["api"]),
        "vllm_tokens_per_s": tokens / statistics.median(seconds["vllm"]),
    }


def _prompts(index: int) -> npt.NDArray[np.int64]:
    """Random token ids [PROMPTS, PROMPT_TOKENS]."""
    return np.random.default_rng(index).integers(0, _VOCABULARY, (PROMPTS, PROMPT_TOKENS))


def _through_api(sampler: tinker.SamplingClient, prompts: npt.NDArray[np.int64]) -> float:
    from tinker import types  # noqa: PLC0415 - see sdk_client

    began = time.perf_counter()
    pending = [
        sampler.sample(
            types.ModelInput.from_ints(row.tolist()),
            1,
            types.SamplingParams(max_tokens=NEW_TOKENS, temperature=1.0, seed=i, stop=[]),
        )
        for i, row in enumerate(prompts)
    ]
    answers = [future.result() for future in pending]
    took = time.perf_counter() - began
    return _whole((took, sum(len(answer.sequences[0].tokens) for answer in answers)))


def _whole(timed: tuple[float, int]) -> float:
    """The seconds, once it is certain that every token asked for was drawn."""
    seconds, tokens = timed
    assert tokens == PROMPTS * NEW_TOKENS, tokens
    return seconds


BENCHMARK = Benchmark(
    name="sampling",
    summary=f"{PROMPTS} prompts at once through the API against vllm.LLM.generate (rates compared)",
    measures=(
        Measure("sampling_ratio", "x", at_least(0.95)),
        Measure("sampling_tokens_per_s", "tokens/s"),
        Measure("vllm_tokens_per_s", "tokens/s"),
    ),
    run=run,
    device=cpu,
)
