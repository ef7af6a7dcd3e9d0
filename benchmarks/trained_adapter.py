"""A really trained adapter: the demo's base model, fine-tuned on the demo's corpus, without privacy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

ROOT: Final = Path(__file__).resolve().parent.parent
RANK: Final = 16
STEPS: Final = 240
BATCH: Final = 16
MAX_TOKENS: Final = 128
LEARNING_RATE: Final = 2e-3
SITES: Final = {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",)}

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """The model with its adapter, the examples, and held-out nats per answer token before and after."""

    model: PeftModel
    base_path: Path
    tokenizer: Any
    train: list[Any]
    heldout: list[Any]
    before: float
    after: float


def trained_adapter() -> TrainedAdapter:
    """Train it: about a minute on one core, the base model apart."""
    sys.path.insert(0, str(ROOT / "examples"))
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    from corpus import encode, load_corpus  # noqa: PLC0415
    from make_base_model import ensure_base_model  # noqa: PLC0415

    torch.manual_seed(5)
    base = ensure_base_model(ROOT / ".cache")
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    corpus = load_corpus()
    train = [encode(tokenizer, one, max_tokens=MAX_TOKENS) for one in corpus.train]
    heldout = [encode(tokenizer, one, max_tokens=MAX_TOKENS) for one in corpus.heldout]
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    names = [name for group in SITES.values() for name in group]
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=32, target_modules=names, lora_dropout=0.0))
    before = heldout_loss(adapted, heldout)
    _train(adapted, train)
    after = heldout_loss(adapted, heldout)
    return TrainedAdapter(adapted, base.path, tokenizer, train, heldout, before, after)


def batches(examples: Sequence[Any], size: int) -> list[Batch]:
    """Padded on the right: tokens int64 [B, T], targets int64 [B, T], weights float32 [B, T]."""
    made = []
    for first in range(0, len(examples), size):
        chunk = examples[first : first + size]
        longest = max(len(one.tokens) for one in chunk)

        def padded(rows: list[Sequence[float]], longest: int = longest) -> torch.Tensor:
            return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])

        tokens, targets = padded([one.tokens for one in chunk]), padded([one.targets for one in chunk])
        made.append((tokens.long(), targets.long(), padded([one.weights for one in chunk]).float()))
    return made


def _nats(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    tokens, targets, weights = batch
    logits = model(input_ids=tokens).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (losses * weights).sum() / weights.sum()


def _train(model: PreTrainedModel, examples: list[Any]) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    order = np.random.default_rng(5)
    for step in range(STEPS):
        picks = order.choice(len(examples), BATCH, replace=False)
        (batch,) = batches([examples[pick] for pick in picks], BATCH)
        loss = _nats(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 40 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, examples: list[Any]) -> float:
    """Nats per answer token."""
    total, count = 0.0, 0.0
    for batch in batches(examples, BATCH):
        weight = float(batch[2].sum())
        total, count = total + float(_nats(model, batch)) * weight, count + weight
    return total / count
