"""Loading base models: three families, two dtypes, and refusals in place of guesses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tensafe.contracts.errors import ConfigurationError, Unsupported
from tensafe.contracts.training import AdamParams, LoraSpec
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.state import RunState
from tests.support.training_data import random_request, warm_run


def copy_of(path: str, folder, **settings) -> str:
    """The model with other settings in its config.json."""
    shutil.copytree(path, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_info_tells_what_requests_are_checked_against(base_of, model_path, family):
    info = base_of(family).info
    assert (info.name, info.path) == (family, model_path(family))
    assert (info.vocab_size, info.max_context_tokens) == (512, 256)
    assert info.arch.lower().startswith(family)


def test_sites_come_in_the_documented_order(base):
    names = [site.name for site in base.layout(LoraSpec(rank=1, seed=0)).sites]
    attention = [f"self_attn.{p}_proj" for p in "qkvo"]
    mlp = [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    assert names == [f"model.layers.{i}.{leaf}" for i in (0, 1) for leaf in attention + mlp] + ["lm_head"]


def test_an_unbound_model_is_the_base_model(base, model_path):
    from transformers import AutoModelForCausalLM

    token_ids = torch.arange(10)[None]
    plain = AutoModelForCausalLM.from_pretrained(model_path("llama")).model(token_ids).last_hidden_state
    assert torch.allclose(base.hidden(token_ids, sink=None), plain, atol=1e-6)


def test_an_error_releases_the_run(base, engine):
    state = warm_run(engine)
    with pytest.raises(RuntimeError, match="inside"), base.bound(state):
        raise RuntimeError("inside")
    assert all(layer.slot.pair is None for layer in base._layers.values())


def test_bfloat16_base_keeps_the_adapter_in_float32(model_path):
    base = BaseModel.load(model_path("llama"), dtype="bfloat16")
    engine, exact = Engine(base), Engine(BaseModel.load(model_path("llama")))
    assert base.dtype == torch.bfloat16
    for clip_norm in (None, 5.0):
        state, reference = warm_run(engine), warm_run(exact)
        request = random_request((9, 14, 5), units=range(3))
        low = engine.forward_backward(state, request, clip_norm=clip_norm)
        high = exact.forward_backward(reference, request, clip_norm=clip_norm)
        for a, b in zip(low.logprobs, high.logprobs, strict=True):
            assert a.dtype == np.float32
            assert np.abs(a - b).mean() < 0.2
        for name in ("params", "exp_avg", "exp_avg_sq", "grad_sum"):
            assert getattr(state, name).dtype == torch.float32
        alike = torch.cosine_similarity(state.grad_sum, reference.grad_sum, dim=0)
        assert float(alike) > 0.95
    before = state.params.clone()
    engine.optim_step(state, AdamParams(learning_rate=1e-5))
    moved = (state.params - before).abs()
    assert 0 < float(moved.max()) < 2e-5  # far below the resolution of bfloat16
    assert RunState.load(state.dump(), base).dump() == state.dump()


def test_a_step_reaches_the_bfloat16_copy_that_the_forward_pass_reads(model_path):
    engine = Engine(BaseModel.load(model_path("llama"), dtype="bfloat16"))
    state, request = warm_run(engine), random_request((12,), forward_only=True)
    before = engine.forward_backward(state, request).logprobs[0]
    engine.forward_backward(state, random_request((12,)))
    engine.optim_step(state, AdamParams(learning_rate=0.1))
    after = engine.forward_backward(state, request).logprobs[0]
    assert np.abs(after - before).max() > 0.1
    resumed = RunState.load(state.dump(), engine.base)
    assert np.array_equal(engine.forward_backward(resumed, request).logprobs[0], after)


@pytest.mark.parametrize("model_type", ["mistral", "gpt2", "qwen3_moe"])
def test_other_families_are_refused_by_name(model_path, tmp_path, model_type):
    path = copy_of(model_path("llama"), tmp_path, model_type=model_type)
    with pytest.raises(Unsupported, match=model_type):
        BaseModel.load(path)


def test_quantised_models_are_refused(model_path, tmp_path):
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(Unsupported, match="quantised"):
        BaseModel.load(copy_of(model_path("llama"), tmp_path, **settings))


def test_missing_weights_are_refused_and_not_made_up(model_path, tmp_path):
    path = copy_of(model_path("llama"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="up_proj"):
        BaseModel.load(path)


def test_a_folder_without_model_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="configuration"):
        BaseModel.load(str(tmp_path))


@pytest.mark.parametrize("rope_type", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_padding_are_refused(model_path, tmp_path, rope_type):
    """One long example in a batch moved the loss of the others."""
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
    with pytest.raises(Unsupported, match=rope_type):
        BaseModel.load(copy_of(model_path("llama"), tmp_path, rope_parameters=rope))
