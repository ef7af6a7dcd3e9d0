"""A small adapter that was really trained, on noisy walks over a few tokens, in a few seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TOKENS = 24
"""The walks visit this many tokens of the vocabulary."""
LENGTH = 24
NOISE = 0.2
"""How often a step goes anywhere instead of where it leads."""


def walks(count: int, seed: int) -> torch.Tensor:
    """int64 [count, LENGTH]: every token has one that follows it, most of the time."""
    fixed = torch.Generator().manual_seed(1)
    names = torch.randperm(400, generator=fixed)[:TOKENS] + 50
    follows = torch.randperm(TOKENS, generator=fixed)
    draw = torch.Generator().manual_seed(seed)
    states = [torch.randint(TOKENS, (count,), generator=draw)]
    for _ in range(LENGTH - 1):
        anywhere = torch.randint(TOKENS, (count,), generator=draw)
        strays = torch.rand(count, generator=draw) < NOISE
        states.append(torch.where(strays, anywhere, follows[states[-1]]))
    return names[torch.stack(states, dim=1)]


def nats(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean loss per token of int64 [count, length]."""
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:])


def train_adapter(
    model_path: str, folder: Path, *, modules: tuple[str, ...], rank: int = 4, steps: int = 80
) -> torch.nn.Module:
    """Train and save an adapter in PEFT's layout; the model with it, for its held-out loss."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=32, target_modules=list(modules), task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        adapted = get_peft_model(model, config)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    for step in range(steps):
        nats(adapted, walks(16, seed=100 + step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval().save_pretrained(folder, save_embedding_layers=False)
    return adapted
