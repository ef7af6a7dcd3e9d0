"""The loop that one would write without a service: transformers, PEFT, torch.optim."""

from __future__ import annotations

import time

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks.batches import BatchShape
from benchmarks.peer import Handler

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def bare_loop(model_path: str, shape: BatchShape, rank: int, threads: int, device: str) -> Handler:
    """Called with a batch's number, it trains on it and returns the seconds that this took.

    Forward and backward run over the batch at once, unless it then ran out of memory; summed cross
    entropy, AdamW over the adapter, no dropout: what the service computes.
    """
    torch.set_num_threads(threads)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation="sdpa")
    config = LoraConfig(r=rank, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS)
    model = get_peft_model(base, config, autocast_adapter_dtype=True).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)

    def step(index: int) -> float:
        rows = torch.from_numpy(shape.batch(index)).to(device)
        began = time.perf_counter()
        logits = model(input_ids=rows[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step
