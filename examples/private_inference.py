"""Sample from an adapter whose weights are with somebody else: `python examples/private_inference.py`.

It trains a LoRA adapter for a few steps (without privacy; `make demo` does it with), asks it some questions,
moves it to an adapter holder with `tensafe adapters publish --private`, and asks again. Now vLLM computes
with encrypted help from the adapter holder, or not at all: the policy is HE_REQUIRED. Shown are the answers
before and after, whether every token is the one that the adapter's integers choose, times, and that
`tensafe verify` accepts the attestation of each answer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import tinker
from rich.console import Console
from tinker import types

from corpus import encode, encode_prompt, load_corpus
from local_service import LocalService, end_on_signals, model_name
from make_base_model import NAME, ensure_base_model
from private_finetune import PROMPTS, datum
from private_serving import publish_and_sample

STEPS: Final = 12


def _train(client: tinker.ServiceClient, name: str) -> tuple[str, Any]:
    training = client.create_lora_training_client(name, rank=8, seed=1, train_unembed=False).result()
    tokenizer = training.get_tokenizer()
    examples = [encode(tokenizer, one, max_tokens=128) for one in load_corpus().train]
    examples = [one for one in examples if one.answer_tokens]
    for step in range(STEPS):
        batch = examples[step * 16 :][:16]
        training.forward_backward([datum(one, private=False) for one in batch], "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=2e-3)).result()
    return training.save_weights_for_sampler("private").result().path, tokenizer


def main() -> int:
    """Run it; 0 if every encrypted answer was the quantised adapter's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="hub id or local path of a Llama, Qwen2 or Qwen3 model")
    model = parser.parse_args().model
    console = Console(emoji=False)  # ":train:" is a part of names
    end_on_signals()
    if model:
        name, path = model_name(model), model
    else:
        name, path = NAME, str(ensure_base_model(console=console).path)
    with (
        tempfile.TemporaryDirectory(prefix="tensafe-example-") as folder,
        LocalService(Path(folder) / "data", name, path, console) as service,
    ):
        client = tinker.ServiceClient(base_url=service.url, api_key=service.api_key)
        console.print(f"training an adapter of rank 8 for {STEPS} steps")
        weights, tokenizer = _train(client, name)
        prompts = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
        found = publish_and_sample(service, client, weights, prompts, path, Path(folder) / "holder", console)
        console.print("greedy answers, from the weights here and from the adapter holder:")
        for prompt, answer in zip(PROMPTS, found["answers"], strict=True):
            console.print(f"[b]{prompt}[/b]")
            for kind in ("plain", "private"):
                console.print(f"  {kind}: {tokenizer.decode(answer[kind])!r}", markup=False, soft_wrap=True)
        console.print(found["extraction"], markup=False)
        client.close("success").result()
    return 0 if all(answer["exact"] for answer in found["answers"]) else 1


if __name__ == "__main__":
    sys.exit(main())
