"""vllm.LLM over the same model with the settings of the service's own engine."""

from __future__ import annotations

import time
from pathlib import Path

import numpy.typing as npt

from benchmarks.peer import Handler


def vllm_loop(model_path: str, context_tokens: int, threads: int, new_tokens: int) -> Handler:
    """Called with prompts (token ids [prompts, length]), it returns seconds and the number of new tokens."""
    from tensafe_gpu.sampler.environment import configure_environment  # noqa: PLC0415 - in the peer alone

    configure_environment(device="cpu", threads=threads)
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - reads the environment when it is imported

    from tensafe_gpu.sampler.launch import EngineSettings  # noqa: PLC0415

    settings = EngineSettings(
        model_path=Path(model_path),
        dtype="float32",
        max_context_tokens=context_tokens,
        max_loras=4,
        max_lora_rank=64,
        max_resident_adapters=16,
        max_sequences=64,
    )
    arguments = settings.vllm_arguments()
    arguments.pop("enable_log_requests")  # of AsyncLLM alone
    llm = LLM(**arguments)
    # The seed of each prompt follows from its number, as the API's clients do it here.
    common = {"temperature": 1.0, "max_tokens": new_tokens, "ignore_eos": True, "logprobs": 0}

    def generate(prompts: npt.NDArray[npt.Any]) -> tuple[float, int]:
        inputs = [{"prompt_token_ids": row.tolist()} for row in prompts]
        params = [
            SamplingParams(seed=i, flat_logprobs=True, detokenize=False, **common) for i in range(len(inputs))
        ]
        began = time.perf_counter()
        outputs = llm.generate(inputs, params, use_tqdm=False)
        took = time.perf_counter() - began
        return took, sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate
