"""How long a context a base model is served with: the sampler's KV cache must hold one, and must fit.

Decided once, before anything starts, so that the API, the trainer and the sampler mean the same limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from tensafe.contracts.errors import ConfigurationError, InvalidRequest
from tensafe.contracts.training import ModelInfo
from tensafe.local.models import read_config, text_part
from tensafe.local.settings import LocalSettings

GIB: Final = 2**30
DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
LOWEST_CONTEXT_TOKENS: Final = 2048
"""A model is not started with less than this (or its own context) unless the operator asks for it."""
_STEP_TOKENS: Final = 1024
"""A limit that is chosen here is a multiple of it."""
_SPARE_TOKENS: Final = 128
"""vLLM counts whole blocks (32 tokens) and keeps one for itself."""
_USUAL_BYTES: Final = GIB
"""KV cache of a model whose context needs less: room for many requests at once."""
_SMALLEST_BYTES: Final = GIB // 4
_PROCESSES_BYTES: Final = 3 * GIB
"""What a trainer and a sampler take beside weights and KV cache (docs/vllm.md)."""
_SHARE: Final = 0.5
"""Part of the memory left over that KV caches may take; training and prompts need the rest."""


@dataclass(frozen=True, slots=True)
class ContextWish:
    """What the operator said: --max-context, and --kv-cache-gib or VLLM_CPU_KVCACHE_SPACE."""

    max_context_tokens: int | None = None
    kv_cache_gib: float | None = None


def with_contexts(
    models: Sequence[ModelInfo], wish: ContextWish, settings: LocalSettings, note: Callable[[str], None]
) -> list[ModelInfo]:
    """The models with the context that each is served with; a limit that was lowered unasked is noted.

    Raises InvalidRequest or ConfigurationError as `fit_context`.
    """
    if settings.device == "cuda" and wish.kv_cache_gib is None:  # vLLM measures the card's free memory
        return [model.model_copy(update={"max_context_tokens": _asked(model, wish)}) for model in models]
    pairs = [(model, text_part(read_config(model.name, Path(model.path)))) for model in models]
    weights = sum(weights_bytes(Path(model.path), config, settings.dtype) for model, config in pairs)
    share = share_of_memory(weights, len(models), free_memory_bytes())
    fitted = []
    for model, config in pairs:
        size = bytes_per_token(model.name, config, settings.dtype)
        info, lowered = fit_context(model, wish, bytes_per_token=size, share_bytes=share)
        if lowered:
            note(lowered)
        fitted.append(info)
    return fitted


def fit_context(
    model: ModelInfo, wish: ContextWish, *, bytes_per_token: int, share_bytes: float
) -> tuple[ModelInfo, str | None]:
    """The model with its context limit and KV cache, and a sentence if the limit was lowered unasked.

    `share_bytes` is what this model's KV cache may take if the operator does not say. Raises
    InvalidRequest (a wish beyond the model) or ConfigurationError (one that does not fit) naming both flags.
    """
    tokens = _asked(model, wish)
    if wish.kv_cache_gib is not None:
        cache_bytes = int(wish.kv_cache_gib * GIB)
    else:
        wanted = max(_USUAL_BYTES, (tokens + _SPARE_TOKENS) * bytes_per_token)
        cache_bytes = int(min(wanted, max(share_bytes, _SMALLEST_BYTES)))
    room = cache_bytes // bytes_per_token - _SPARE_TOKENS
    fitted = model.model_copy(update={"max_context_tokens": tokens, "kv_cache_bytes": cache_bytes})
    if room >= tokens:
        return fitted, None
    needs = f"{(tokens + _SPARE_TOKENS) * bytes_per_token / GIB:.2f} GiB of KV cache"
    if wish.max_context_tokens is not None or room < min(tokens, LOWEST_CONTEXT_TOKENS):
        raise ConfigurationError(
            f"{model.name}: {tokens} tokens of context need {needs} and there are {cache_bytes / GIB:.2f}; "
            "lower --max-context or raise --kv-cache-gib",
            field="max_context",
        )
    lowered = room - room % _STEP_TOKENS
    note = (
        f"{model.name}: context limited to {lowered} of {tokens} tokens: the KV cache has "
        f"{cache_bytes / GIB:.2f} GiB and all would need {needs}; --max-context and --kv-cache-gib set them"
    )
    return fitted.model_copy(update={"max_context_tokens": lowered}), note


def _asked(model: ModelInfo, wish: ContextWish) -> int:
    tokens = wish.max_context_tokens
    if tokens is not None and tokens > model.max_context_tokens:
        raise InvalidRequest(
            f"--max-context {tokens} is more than {model.name} was made for: {model.max_context_tokens}",
            field="max_context",
        )
    return tokens or model.max_context_tokens


def share_of_memory(weights_bytes: int, models: int, free_bytes: int) -> float:
    """Bytes that each model's KV cache may take; negative when the weights alone are too much.

    `weights_bytes` are those of all models once; a trainer and a sampler each hold them.
    """
    return _SHARE * (free_bytes - 2 * weights_bytes - models * _PROCESSES_BYTES) / models


def bytes_per_token(name: str, config: Mapping[str, Any], dtype: str) -> int:
    """Keys and values of one token in all layers. Raises ConfigurationError if config.json lacks a size."""
    try:
        heads = int(config["num_attention_heads"])
        head_dim = config.get("head_dim") or int(config["hidden_size"]) // heads
        kv_heads = config.get("num_key_value_heads") or heads
        size = 2 * int(config["num_hidden_layers"]) * int(kv_heads) * int(head_dim) * DTYPE_BYTES[dtype]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        size = 0
    if size < 1:
        raise ConfigurationError(
            f"{name}: config.json lacks usable num_hidden_layers, num_attention_heads or hidden_size",
            field="model",
        )
    return size


def weights_bytes(folder: Path, config: Mapping[str, Any], dtype: str) -> int:
    """What the weights take once loaded as `dtype`, from the sizes of their files."""
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return on_disk * DTYPE_BYTES[dtype] // DTYPE_BYTES.get(stored, 4)


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can be taken: the machine's, or what the container's limit leaves if that is less."""
    free: int = psutil.virtual_memory().available
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            left = int((cgroup / limit).read_text()) - int((cgroup / usage).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
        free = min(free, left)
    return free
