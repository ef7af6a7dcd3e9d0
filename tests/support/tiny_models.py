"""Small random-weight Llama, Qwen2 and Qwen3 models with a byte-level BPE tokenizer, made without network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Family = Literal["llama", "qwen2", "qwen3"]
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
_CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "private adapters are trained step by step",
    "What is 4 + 5? 9 User: hello world Assistant: the answer is 12",
)
_CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny_model(
    folder: str | Path,
    family: Family = "llama",
    *,
    vocab: int = 512,
    hidden: int = 64,
    layers: int = 2,
    intermediate: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    max_context: int = 256,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    initializer_range: float = 0.15,
) -> str:
    """Write a random model and its tokenizer (at least 300 tokens) to `folder`; returns its path.

    `initializer_range` 0.15 makes the model's distribution far from uniform, so that mistakes show.
    """
    config_class, model_class = _CLASSES[family]
    extra = {} if family == "qwen2" else {"head_dim": hidden // heads}
    config = config_class(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_context,
        initializer_range=initializer_range,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        **extra,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():  # biases (Qwen2) start at zero, norms at one: make them count
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                assert parameter.isfinite().all(), name
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer(vocab).save_pretrained(folder)
    return str(folder)


def byte_tokenizer(vocab: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab` tokens; special ids: 0 end of text, 1 padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL_TOKENS[0], pad_token=SPECIAL_TOKENS[1]
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast
