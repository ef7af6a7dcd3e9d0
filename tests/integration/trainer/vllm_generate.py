"""Generate with vLLM under exported adapters; run as a process of its own, since vLLM takes it over.

Arguments: a JSON file {model, prompts, adapters: {name: folder}}. Prints one JSON line: for each adapter a
list of {tokens, logprobs} in the order of the prompts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    job = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(
        model=job["model"],
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=8,
        max_loras=2,
        max_model_len=64,
        max_num_seqs=4,
        seed=0,
    )
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=1, ignore_eos=True)
    out = {}
    for number, (name, folder) in enumerate(job["adapters"].items(), start=1):
        done = llm.generate(
            [{"prompt_token_ids": ids} for ids in job["prompts"]],
            params,
            lora_request=LoRARequest(name, number, folder),
            use_tqdm=False,
        )
        out[name] = [
            {
                "tokens": list(o.outputs[0].token_ids),
                "logprobs": [
                    step[token].logprob
                    for step, token in zip(o.outputs[0].logprobs, o.outputs[0].token_ids, strict=True)
                ],
            }
            for o in done
        ]
    sys.stdout.write("RESULT " + json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
