"""Adapters out to PEFT and back in, and what is refused on the way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.training import LORA_ALPHA
from tensafe_gpu.adapter_holder.peft_sites import read_peft
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.peft_format import export_peft, import_peft
from tests.support.peft_reference import load_reference, reference_logprobs
from tests.support.training_data import random_request, warm_run


def changed(files: dict[str, bytes], **settings) -> dict[str, bytes]:
    return {**files, CONFIG_FILE: json.dumps({**json.loads(files[CONFIG_FILE]), **settings}).encode()}


@pytest.mark.parametrize("unembed", [True, False])
def test_peft_gives_the_same_logprobs(base_of, model_path, tmp_path, unembed):
    engine = Engine(base_of("qwen3"))
    state = warm_run(engine, train_unembed=unembed)
    reference = load_reference(model_path("qwen3"), export_peft(state, "qwen3"), tmp_path)
    request = random_request((20, 9), forward_only=True)
    for datum, ours in zip(request.data, engine.forward_backward(state, request).logprobs, strict=True):
        theirs = reference_logprobs(reference, datum).detach().numpy()
        assert np.abs(ours - theirs).max() <= 1e-4


def test_what_is_exported_comes_back(engine):
    state = warm_run(engine, train_mlp=False)
    files = export_peft(state, "base")
    back = import_peft(files, engine.base, seed=state.spec.seed)
    assert torch.equal(back.params, state.params)
    assert back.spec == state.spec
    assert back.step == 0
    assert export_peft(back, "base") == files


def test_what_is_exported_is_served_privately_with_its_own_delta(engine):
    state = warm_run(engine, train_unembed=False)
    files = export_peft(state, "base")
    served = {module.name: module for site in read_peft(files) for module in site.modules}
    pairs = zip(state.layout.sites, state.layout.pairs(state.params.cpu()), strict=True)
    wanted = {site.name: LORA_ALPHA / state.spec.rank * b @ a for site, (a, b) in pairs}
    assert set(served) == set(wanted)
    for name, one in served.items():
        assert np.allclose(one.scaling * one.b @ one.a, wanted[name].numpy(), rtol=1e-4, atol=1e-6)


def test_an_adapter_that_peft_wrote_is_read_with_its_own_alpha(engine, model_path, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_path("llama")), config).eval()
    model.save_pretrained(str(tmp_path))
    files = {name: (tmp_path / name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE)}
    state = import_peft(files, engine.base)
    assert (state.spec.rank, state.spec.train_attn, state.spec.train_mlp) == (3, True, False)
    request = random_request((12,), forward_only=True)
    ours = engine.forward_backward(state, request).logprobs[0]
    assert np.abs(ours - reference_logprobs(model, request.data[0]).detach().numpy()).max() <= 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "plain LoRA"),
        ({"target_modules": ["q_proj", "v_proj"]}, "k_proj, o_proj"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"target_modules": "all-linear"}, "list"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(engine, settings, message):
    files = export_peft(warm_run(engine), "base")
    with pytest.raises(Unsupported, match=message):
        import_peft(changed(files, **settings), engine.base)


@pytest.mark.parametrize(
    "settings", [{"r": 5}, {"r": 0}, {"r": "4"}, {"lora_alpha": -1}, {"lora_alpha": None}]
)
def test_a_configuration_that_does_not_fit_is_refused(engine, settings):
    files = export_peft(warm_run(engine), "base")
    with pytest.raises(InvalidRequest):
        import_peft(changed(files, **settings), engine.base)


def test_weights_that_would_not_apply_are_refused(engine):
    files = export_peft(warm_run(engine), "base")
    with pytest.raises(Unsupported, match="do not apply"):
        import_peft(changed(files, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]), engine.base)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
@pytest.mark.parametrize("data", [None, b"", b"\xff" * 40], ids=["absent", "empty", "noise"])
def test_missing_or_damaged_files_are_refused(engine, name, data):
    files = export_peft(warm_run(engine), "base")
    files = {k: v for k, v in files.items() if k != name} | ({} if data is None else {name: data})
    with pytest.raises(InvalidRequest):
        import_peft(files, engine.base)
