"""Training a small Qwen3-architecture model and its tokenizer from scratch; used by make_base_model.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from prose import Prose

if TYPE_CHECKING:
    from make_base_model import Recipe

END: Final = "<|endoftext|>"
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def train_tokenizer(prose: Prose, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training documents: every text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(prose.train, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        model_max_length=recipe.max_context_tokens,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, documents: tuple[str, ...]) -> list[int]:
    """All documents in one row of tokens, each ended by the end-of-text token."""
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return [token for document in encoded for token in (*document, tokenizer.eos_token_id)]


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_context_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def train(model: Qwen3ForCausalLM, tokens: Tensor, recipe: Recipe, console: Console) -> None:
    """One pass in a fixed random order; cosine decay after a linear warm-up, gradients clipped to norm 1."""
    rows = len(tokens) // recipe.sequence_tokens - 1
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(recipe.seed))
    optimizers = _optimizers(model, recipe)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("base model", total=recipe.steps)
        for step in range(recipe.steps):
            picks = [
                int(order[(step * recipe.batch_sequences + n) % rows]) for n in range(recipe.batch_sequences)
            ]
            starts = [pick * recipe.sequence_tokens for pick in picks]
            batch = torch.stack([tokens[start : start + recipe.sequence_tokens + 1] for start in starts])
            loss = _loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, peak in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = peak * _schedule(step, recipe)
                optimizer.step()
                optimizer.zero_grad()
            progress.update(task, advance=1, description=f"base model, loss {loss.item():.2f}")


def _optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each optimizer with its peak learning rate."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, recipe.matrix_learning_rate), (adamw, recipe.learning_rate)]


def _schedule(step: int, recipe: Recipe) -> float:
    """Fraction of the peak learning rate: linear warm-up, then a cosine down to 3 %."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def _loss(model: Qwen3ForCausalLM, batch: Tensor) -> Tensor:
    """Mean next-token cross-entropy of int64 [rows, tokens + 1]."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def heldout_loss(model: Qwen3ForCausalLM, tokens: Tensor, recipe: Recipe) -> float:
    """Mean cross-entropy per token over the held-out documents, in windows of the training length."""
    model.eval()
    windows = (len(tokens) - 1) // recipe.sequence_tokens
    starts = [n * recipe.sequence_tokens for n in range(windows)]
    batch = torch.stack([tokens[start : start + recipe.sequence_tokens + 1] for start in starts])
    with torch.no_grad():
        losses = [_loss(model, part).item() * len(part) for part in batch.split(32)]
    return float(sum(losses) / windows)
