"""vllm.LLM as its own users start it: vLLM's defaults, the same model, number format, context and cores."""

from __future__ import annotations

import os
import time

import numpy.typing as npt

from benchmarks.peer import Handler

_KV_CACHE_GIB = "1"  # as the service's own for a model of this size; vLLM has to be told on CPU


def vllm_loop(
    model_path: str, context_tokens: int, threads: int, new_tokens: int, adapter: str | None = None
) -> Handler:
    """Called with prompts (token ids [prompts, length]), it returns seconds and the number of new tokens.

    LoRA is on only with `adapter`, a PEFT folder that every request then uses. Nothing is asked for
    that the service's own requests could do without: no text, no logprobs.
    """
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": _KV_CACHE_GIB,
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the sides take turns on the same cores
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - reads the environment when it is imported
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    lora = None if adapter is None else LoRARequest("adapter", 1, adapter)
    llm = LLM(
        model_path,
        dtype="float32",
        max_model_len=context_tokens,
        enable_lora=lora is not None,
        **({"max_lora_rank": 64} if lora else {}),
    )

    def generate(prompts: npt.NDArray[npt.Any]) -> tuple[float, int]:
        inputs = [{"prompt_token_ids": row.tolist()} for row in prompts]
        # The seed of each prompt follows from its number, as the API's clients do it here.
        params = [
            SamplingParams(seed=i, temperature=1.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
            for i in range(len(inputs))
        ]
        began = time.perf_counter()
        outputs = llm.generate(inputs, params, use_tqdm=False, lora_request=lora)
        took = time.perf_counter() - began
        return took, sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate
