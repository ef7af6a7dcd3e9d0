"""One context limit for API, trainer and sampler: what the KV cache holds; never lowered silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError, InvalidRequest
from tensafe.contracts.training import ModelInfo
from tensafe.local import kv_cache
from tensafe.local.kv_cache import (
    GIB,
    ContextWish,
    bytes_per_token,
    fit_context,
    free_memory_bytes,
    share_of_memory,
    with_contexts,
)
from tensafe.local.models import ModelSource
from tensafe.local.settings import LocalSettings
from tests.support.model_folders import model_folder

QWEN3 = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
"""The sizes of Qwen3-0.6B; its context is 40,960 tokens."""
TOKEN_BYTES = 229_376
MODEL = ModelInfo(name="q", path="p", arch="a", vocab_size=8, max_context_tokens=40_960)


def fit(share_gib: float, **wish: float | None) -> tuple[int, float, str | None]:
    model, note = fit_context(
        MODEL, ContextWish(**wish), bytes_per_token=TOKEN_BYTES, share_bytes=share_gib * GIB
    )
    assert model.kv_cache_bytes is not None
    assert model.max_context_tokens * TOKEN_BYTES <= model.kv_cache_bytes
    return model.max_context_tokens, round(model.kv_cache_bytes / GIB, 2), note


def test_the_size_of_a_token() -> None:
    assert bytes_per_token("q", QWEN3, "float32") == TOKEN_BYTES
    assert bytes_per_token("q", QWEN3, "bfloat16") == TOKEN_BYTES // 2
    llama = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert bytes_per_token("l", llama, "float32") == 2 * 2 * 64 * 4
    for wrong in ({}, {**QWEN3, "num_hidden_layers": 0}, {**QWEN3, "num_attention_heads": None}):
        with pytest.raises(ConfigurationError, match="lacks usable num_hidden_layers"):
            bytes_per_token("q", wrong, "float32")


def test_the_whole_context_where_there_is_room() -> None:
    assert fit(20) == (40_960, 8.78, None)


def test_a_limit_that_is_lowered_is_told_with_both_flags() -> None:
    tokens, gib, note = fit(4)
    assert (tokens, gib) == (18_432, 4)
    assert note is not None
    assert "limited to 18432 of 40960 tokens" in note
    assert "--max-context and --kv-cache-gib" in note
    assert "\n" not in note


def test_too_little_memory_is_refused_with_both_flags() -> None:
    with pytest.raises(ConfigurationError, match="lower --max-context or raise --kv-cache-gib"):
        fit(-3)


def test_the_operator_s_sizes_are_kept() -> None:
    assert fit(20, max_context_tokens=2048) == (2048, 1, None)
    assert fit(-3, max_context_tokens=512) == (512, 0.25, None)
    assert fit(0, kv_cache_gib=9) == (40_960, 9, None)
    tokens, gib, note = fit(20, kv_cache_gib=2)
    assert (tokens, gib) == (9216, 2)
    assert note is not None
    assert fit(0, max_context_tokens=4096, kv_cache_gib=2) == (4096, 2, None)


@pytest.mark.parametrize("wish", [{"kv_cache_gib": 8.0}, {}])
def test_a_context_that_was_asked_for_is_never_lowered(wish: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"need 8\.78 GiB of KV cache and there are 8\.00"):
        fit(8, max_context_tokens=40_960, **wish)


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than q was made for: 40960"):
        fit(20, max_context_tokens=40_961)


def test_a_small_model_keeps_a_cache_for_many_requests() -> None:
    model, note = fit_context(
        MODEL.model_copy(update={"max_context_tokens": 512}),
        ContextWish(),
        bytes_per_token=1024,
        share_bytes=5 * GIB,
    )
    assert (model.max_context_tokens, model.kv_cache_bytes, note) == (512, GIB, None)


def test_weights_count_twice_and_models_share_what_is_left() -> None:
    assert share_of_memory(2 * GIB, 1, 16 * GIB) == 4.5 * GIB
    assert share_of_memory(2 * GIB, 2, 16 * GIB) == 1.5 * GIB


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    machine = free_memory_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_memory_bytes(tmp_path) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) == pytest.approx(machine, rel=0.5)


def test_the_models_of_a_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "m", max_position_embeddings=40_960, **QWEN3)
    info = ModelSource("acme/q", str(folder)).resolve()
    notes: list[str] = []
    monkeypatch.setattr(kv_cache, "free_memory_bytes", lambda: 7 * GIB)
    settings = LocalSettings(data_dir=tmp_path)
    (fitted,) = with_contexts([info], ContextWish(), settings, notes.append)
    assert fitted.max_context_tokens == 9216  # half of the 4 GiB that the processes leave
    assert [note.split(":")[0] for note in notes] == ["acme/q"]
    assert json.loads(fitted.model_dump_json())["kv_cache_bytes"] == pytest.approx(2 * GIB, rel=0.01)
    on_cuda = settings.model_copy(update={"device": "cuda"})
    (left_to_vllm,) = with_contexts([info], ContextWish(max_context_tokens=99), on_cuda, notes.append)
    assert (left_to_vllm.max_context_tokens, left_to_vllm.kv_cache_bytes) == (99, None)
