"""What PEFT writes is served as PEFT computes it, or refused by the name of the setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tensafe.contracts.errors import InvalidRequest, TensafeError, Unsupported
from tensafe_gpu.adapter_holder.in_clear import peft_of
from tensafe_gpu.adapter_holder.peft_sites import read_peft
from tensafe_gpu.helora.adapter import Naming, serve
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tensafe_gpu.sampler.adapters import BaseShapes, check_adapter
from tests.support.helora import peft_files

D, RANK = 24, 4
LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj")
BASE = BaseShapes({f"model.layers.0.self_attn.{leaf}": (D, D) for leaf in LEAVES})
FILES = peft_files(D, RANK)
READERS: dict[str, Callable[[Mapping[str, bytes]], object]] = {
    "private": read_peft,
    "plain": lambda files: check_adapter(files, BASE, 64),
}
reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)

WITHOUT_EFFECT: dict[str, object] = {
    "task_type": "CAUSAL_LM",
    "auto_mapping": {"base_model_class": "A", "parent_library": "b"},
    "peft_version": "0.99.0",
    "base_model_name_or_path": "acme/base",
    "revision": "main",
    "inference_mode": True,
    "target_modules": list(LEAVES),
    "exclude_modules": ["lm_head"],
    "lora_dropout": 0.1,
    "layers_to_transform": [0],
    "layers_pattern": ["layers"],
    "megatron_core": "another.core",
    "qalora_group_size": 32,
    "runtime_config": {"ephemeral_gpu_offload": True},
}
HANDLED: dict[str, object] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 13, "use_rslora": True}
REFUSED: dict[str, object] = {
    "fan_in_fan_out": True,
    "bias": "lora_only",
    "modules_to_save": ["lm_head"],
    "init_lora_weights": "pissa",
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"q_proj": 8},
    "megatron_config": {"a": 1},
    "trainable_token_indices": [1],
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {},
    "lora_ga_config": {},
    "use_dora": True,
    "velora_config": {},
    "alora_invocation_tokens": [1, 2],
    "use_qalora": True,
    "monteclora_config": {},
    "layer_replication": [[0, 1]],
    "lora_bias": True,
    "target_parameters": ["experts.gate_up_proj"],
    "use_bdlora": {},
    "arrow_config": {},
    "kasa_config": {},
    "ensure_weight_tying": True,
}


def written(**settings: Any) -> dict[str, Any]:
    """The configuration that PEFT itself writes."""
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=list(LEAVES), **settings).to_dict()
    return {name: list(value) if isinstance(value, set) else value for name, value in config.items()}


def configured(config: Mapping[str, Any]) -> dict[str, bytes]:
    return {**FILES, CONFIG_FILE: json.dumps(config).encode()}


def test_every_setting_that_peft_knows_has_its_verdict() -> None:
    """A new one of PEFT's: look at what it does to the two matrices, and give it one."""
    verdicts = WITHOUT_EFFECT | HANDLED | REFUSED
    assert {field.name for field in fields(LoraConfig)} <= set(verdicts)
    assert len(verdicts) == len(WITHOUT_EFFECT) + len(HANDLED) + len(REFUSED)


@reader
@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_formula_is_refused_by_name(
    read: Callable[[Mapping[str, bytes]], object], name: str
) -> None:
    with pytest.raises(Unsupported, match=f"{name}.*train with") as refused:
        read(configured(written() | {name: REFUSED[name]}))
    assert str(refused.value.field).endswith(CONFIG_FILE)


@reader
@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_does_not_change_it_is_taken(read: Callable[[Mapping[str, bytes]], object], name: str) -> None:
    assert read(configured(written() | {name: WITHOUT_EFFECT[name]}))


@reader
@pytest.mark.parametrize(
    "value",
    ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "of tomorrow", ["gaussian"]],
)
def test_an_initialisation_that_changes_the_base_model_is_refused_with_what_to_do(
    read: Callable[[Mapping[str, bytes]], object], value: object
) -> None:
    with pytest.raises(Unsupported, match=r"init_lora_weights=.*path_initial_model_for_weight_conversion"):
        read(configured(written() | {"init_lora_weights": value}))


@reader
@pytest.mark.parametrize("value", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_an_initialisation_that_does_not_is_taken(
    read: Callable[[Mapping[str, bytes]], object], value: object
) -> None:
    assert read(configured(written() | {"init_lora_weights": value}))


@reader
def test_a_setting_that_nobody_knows_is_taken_when_it_is_off_alone(
    read: Callable[[Mapping[str, bytes]], object],
) -> None:
    for off in (None, False, {}, []):
        assert read(configured(written() | {"a_setting_of_tomorrow": off}))
    for on in (True, 1, "x", {"a": 1}, [0]):
        with pytest.raises(Unsupported, match=r"a_setting_of_tomorrow=.* not known here.*remove it"):
            read(configured(written() | {"a_setting_of_tomorrow": on}))


@reader
@pytest.mark.parametrize("rank", [1, 2 * RANK, RANK / 1.0, True, "4", None])
def test_a_rank_that_is_not_that_of_the_matrices_is_refused(
    read: Callable[[Mapping[str, bytes]], object], rank: object
) -> None:
    """alpha / r scales the delta: r=1 over rank 4 would be served with 4 times the right one."""
    with pytest.raises(TensafeError) as refused:
        read(configured(written() | {"r": rank}))
    assert isinstance(refused.value, InvalidRequest)


def test_what_is_kept_of_a_published_adapter_in_the_clear_is_taken_by_both() -> None:
    adapter = serve(read_peft(FILES), Naming("a", 1, 1, "base", 1000), bytes(32))
    for read in READERS.values():
        assert read(peft_of(adapter))


@reader
@pytest.mark.parametrize(
    "alpha", [True, "8", None, 0, -1, float("nan"), float("inf"), 1e7, 10**400], ids=lambda one: f"{one!r:.9}"
)
def test_an_alpha_that_is_no_positive_number_is_refused(
    read: Callable[[Mapping[str, bytes]], object], alpha: object
) -> None:
    with pytest.raises(InvalidRequest, match="lora_alpha") as refused:
        read(configured(written() | {"lora_alpha": alpha}))
    assert len(refused.value.message) < 200


@reader
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff"], ids=lambda one: f"{one!r:.5}"
)
def test_a_configuration_that_is_none_is_refused(
    read: Callable[[Mapping[str, bytes]], object], content: bytes
) -> None:
    with pytest.raises(InvalidRequest, match=f"{CONFIG_FILE} is not"):
        read(FILES | {CONFIG_FILE: content})


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for leaf in LEAVES:
            setattr(self, leaf, torch.nn.Linear(D, D, bias=False))


class Tiny(torch.nn.Module):
    """Modules under the names that a decoder's have."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.ModuleDict({"self_attn": Attention()})
        self.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"lora_alpha": 5, "lora_dropout": 0.5},
        {"r": 3, "use_rslora": True, "init_lora_weights": "gaussian"},
        {"exclude_modules": ["k_proj"]},
    ],
)
def test_what_peft_saves_is_served_with_the_delta_that_peft_computes(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = LoraConfig(**({"r": RANK, "lora_alpha": 8, "target_modules": list(LEAVES)} | settings))
    model = get_peft_model(Tiny(), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(tmp_path))
    files = {name: (tmp_path / name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE)}
    assert check_adapter(files, BASE, 64)
    modules = [module for site in read_peft(files) for module in site.modules]
    assert len(modules) == len(LEAVES) - len(settings.get("exclude_modules", ()))
    for module in modules:
        theirs = model.base_model.model.get_submodule(module.name).get_delta_weight("default")
        ours = module.scaling * module.b @ module.a
        assert np.allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-4)
