"""Only adapters whose every value would be applied as PEFT applies it get past the check."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe_gpu.sampler.adapters import Adapter, BaseShapes, check_adapter

BASE = BaseShapes({"model.layers.0.self_attn.q_proj": (8, 12), "lm_head": (8, 100)})
CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 32, "bias": "none", "target_modules": ["q_proj", "lm_head"],
    "lora_dropout": 0.0, "inference_mode": True, "task_type": "CAUSAL_LM", "megatron_core": "megatron.core",
    "init_lora_weights": True, "use_dora": False, "modules_to_save": None, "rank_pattern": {},
    "new_setting": None,
}  # fmt: skip
Q, HEAD = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.lm_head"


def tensors() -> dict[str, np.ndarray]:
    return {
        f"{Q}.lora_A.weight": np.ones((4, 8), np.float32),
        f"{Q}.lora_B.weight": np.ones((12, 4), np.float32),
        f"{HEAD}.lora_A.weight": np.ones((4, 8), np.float16),
        f"{HEAD}.lora_B.weight": np.ones((100, 4), np.float16),
    }


def files(config: dict[str, Any] | None = None, weights: dict[str, Any] | None = None) -> dict[str, bytes]:
    changed = {k: v for k, v in (tensors() | (weights or {})).items() if v is not None}
    return {
        "adapter_config.json": json.dumps(CONFIG | (config or {})).encode(),
        "adapter_model.safetensors": save(changed),
        "README.md": b"about",
    }


def test_a_plain_adapter_passes_with_its_two_files() -> None:
    checked = check_adapter(files(), BASE, max_rank=4)
    assert set(checked) == {"adapter_config.json", "adapter_model.safetensors"}
    assert set(load(checked["adapter_model.safetensors"])) == set(tensors())


@pytest.mark.parametrize("config", [
    {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 8}},
    {"alpha_pattern": {"q_proj": 8}}, {"fan_in_fan_out": True}, {"lora_bias": True},
    {"init_lora_weights": "pissa"}, {"trainable_token_indices": [1]}, {"layer_replication": [[0, 1]]},
    {"peft_type": "LOHA"}, {"a_setting_of_tomorrow": True},
])  # fmt: skip
def test_other_kinds_of_lora_are_unsupported(config: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as refused:
        check_adapter(files(config), BASE, max_rank=4)
    assert refused.value.field == "adapter.adapter_config.json"


@pytest.mark.parametrize(
    "config",
    [{"r": 8}, {"r": 0}, {"r": True}, {"r": "4"}, {"lora_alpha": None}, {"lora_alpha": float("nan")}],
)
def test_rank_and_alpha(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        check_adapter(files(config), BASE, max_rank=4)


@pytest.mark.parametrize("weights", [
    {f"{Q}.lora_A.weight": np.ones((4, 7), np.float32)},
    {f"{Q}.lora_A.weight": np.ones((8, 4), np.float32)},
    {f"{Q}.lora_B.weight": np.ones((12, 3), np.float32)},
    {f"{Q}.lora_B.weight": None},
    {f"{Q}.lora_A.weight": np.full((4, 8), np.nan, np.float32)},
    {f"{Q}.lora_A.weight": np.ones((4, 8), np.int32)},
    {f"{Q.replace('0', '1')}.lora_A.weight": np.ones((4, 8), np.float32)},
    {f"{Q}.base_layer.weight": np.ones((12, 8), np.float32)},
    {"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 100), np.float32)},
    dict.fromkeys(tensors()),
])  # fmt: skip
def test_tensors_that_do_not_fit_exactly_are_refused(weights: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_adapter(files(weights=weights), BASE, max_rank=4)
    assert refused.value.field == "adapter.adapter_model.safetensors"


@pytest.mark.parametrize("broken", [
    {"adapter_config.json": b"{"}, {"adapter_config.json": b"[]"}, {"adapter_config.json": b"\xff"},
    {"adapter_model.safetensors": b""}, {"adapter_model.safetensors": b"\xff" * 100},
])  # fmt: skip
def test_unreadable_files_are_refused(broken: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest):
        check_adapter(files() | broken, BASE, max_rank=4)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files_are_refused(name: str) -> None:
    left = {key: value for key, value in files().items() if key != name}
    with pytest.raises(InvalidRequest, match=name):
        check_adapter({**left, "adapter_model.bin": b"pickle"}, BASE, max_rank=4)


def test_an_adapter_shows_no_weights() -> None:
    adapter = Adapter("run", "7", {"adapter_model.safetensors": b"secret"})
    assert adapter.identity == "run@7"
    assert "secret" not in repr(adapter)
