"""The engine against transformers + PEFT, which share none of its code beyond the base model's layers."""

from __future__ import annotations

import json

import pytest
import torch

from tensafe_gpu.trainer import head
from tensafe_gpu.trainer.engine import Engine, accumulated_sum
from tensafe_gpu.trainer.peft_format import export_peft
from tests.support.peft_reference import (
    flat_gradient,
    load_reference,
    reference_logprobs,
    reference_losses,
)
from tests.support.training_data import SAMPLED_LOSSES, random_request, warm_run

FAMILIES = [("llama", False), ("qwen2", False), ("qwen3", False), ("qwen3", True)]


def assert_gradient_equals(state, reference):
    theirs = flat_gradient(reference, state.layout)
    ours = torch.from_numpy(accumulated_sum(state))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_nll_and_gradient_equal_peft(base_of, model_path, tmp_path, family, tied):
    engine = Engine(base_of(family, tied=tied))
    state = warm_run(engine)
    reference = load_reference(
        model_path(family, tied=tied), export_peft(state, family), tmp_path, is_trainable=True
    )
    request = random_request()
    result = engine.forward_backward(state, request)
    losses = reference_losses(reference, request)
    for datum, logprobs, loss in zip(request.data, result.logprobs, losses, strict=True):
        assert -(logprobs * datum.inputs["weights"]).sum() == pytest.approx(loss.item(), abs=1e-4)
    assert result.loss_sum == result.metrics["loss:sum"] == pytest.approx(sum(losses).item(), abs=1e-4)
    sum(losses).backward()
    assert_gradient_equals(state, reference)


@pytest.mark.parametrize(
    ("loss_fn", "config"),
    [(name, {}) for name in SAMPLED_LOSSES]
    + [
        ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 3.0}),
        ("cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
        ("dro", {"beta": 0.5}),
    ],
)
def test_each_sampled_loss_equals_its_definition(engine, llama_reference, loss_fn, config):
    state = warm_run(engine)
    reference = llama_reference
    request = random_request((5, 14, 9), loss_fn=loss_fn, config=config)
    result = engine.forward_backward(state, request)
    losses = reference_losses(reference, request)
    assert result.loss_sum == pytest.approx(sum(losses).item(), rel=1e-5, abs=1e-4)
    sum(losses).backward()
    assert_gradient_equals(state, reference)


def test_several_targets_per_token_equal_their_definition(engine, llama_reference):
    state = warm_run(engine)
    reference = llama_reference
    wide, narrow = random_request((6, 3), targets=4), random_request((8, 2), seed=1)
    request = random_request((1,))
    request = type(request)(wide.data + narrow.data, "cross_entropy", {}, False)
    result = engine.forward_backward(state, request)
    for datum, logprobs in zip(request.data, result.logprobs, strict=True):
        assert logprobs.shape == datum.inputs["target_tokens"].shape
        expected = reference_logprobs(reference, datum).detach()
        assert torch.allclose(torch.from_numpy(logprobs), expected, atol=1e-4)
    sum(reference_losses(reference, request)).backward()
    assert_gradient_equals(state, reference)


@pytest.mark.parametrize("chunk_rows", [128, 5])
def test_tokens_without_weight_are_skipped_without_a_trace(engine, llama_reference, monkeypatch, chunk_rows):
    monkeypatch.setattr(head, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(head, "MIN_CHUNK_ROWS", chunk_rows)
    request = random_request((9, 14, 6, 3))
    for datum in request.data[:2]:
        datum.inputs["weights"][: len(datum.tokens) // 2 + 1] = 0.0
    request.data[2].inputs["weights"][:] = 0.0
    state = warm_run(engine)
    result = engine.forward_backward(state, request)
    losses = reference_losses(llama_reference, request)
    assert result.loss_sum == pytest.approx(sum(losses).item(), abs=1e-4)
    sum(losses).backward()
    assert_gradient_equals(state, llama_reference)
    private = warm_run(engine)
    units = random_request((9, 14, 6, 3), units=range(4)).data
    data = tuple(
        type(d)(d.tokens, masked.inputs, d.unit_id) for d, masked in zip(units, request.data, strict=True)
    )
    engine.forward_backward(private, type(request)(data, "cross_entropy", {}, False), clip_norm=1e6)
    assert_gradient_equals(private, llama_reference)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_batch_without_any_weight_adds_nothing(engine, clip_norm):
    request = random_request((9, 4), units=range(2))
    for datum in request.data:
        datum.inputs["weights"][:] = 0.0
    state = warm_run(engine)
    assert engine.forward_backward(state, request, clip_norm=clip_norm).loss_sum == 0
    assert not accumulated_sum(state).any()


@pytest.mark.parametrize("group", ["train_attn", "train_mlp", "train_unembed"])
def test_each_group_of_projections_trains_alone(base_of, model_path, tmp_path, group):
    engine = Engine(base_of("qwen3"))
    trained = {name: name == group for name in ("train_attn", "train_mlp", "train_unembed")}
    state = warm_run(engine, **trained)
    files = export_peft(state, "qwen3")
    reference = load_reference(model_path("qwen3"), files, tmp_path, is_trainable=True)
    request = random_request((6, 11))
    engine.forward_backward(state, request)
    sum(reference_losses(reference, request)).backward()
    assert sum("lora_" in name for name, _ in reference.named_parameters()) == 2 * len(state.layout.sites)
    assert_gradient_equals(state, reference)


def test_absent_weights_of_cross_entropy_are_ones(engine):
    request = random_request((4, 6))
    for datum in request.data:
        datum.inputs["weights"][:] = 1.0
    bare = random_request((4, 6))
    for datum in bare.data:
        del datum.inputs["weights"]
    first, second = warm_run(engine), warm_run(engine)
    assert engine.forward_backward(first, request).metrics == engine.forward_backward(second, bare).metrics
    assert first.dump() == second.dump()


def test_a_starts_as_peft_starts_it_and_b_at_zero(engine):
    state = engine.create(warm_run(engine).spec)
    for a, b in state.layout.pairs(state.params):
        bound = a.shape[1] ** -0.5  # Kaiming uniform with a = sqrt 5 over fan_in
        assert float(a.abs().max()) <= bound
        assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.15)
        assert not b.any()


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(engine):
    spec = warm_run(engine).spec
    assert torch.equal(engine.create(spec).params, engine.create(spec).params)
    other = engine.create(spec.model_copy(update={"seed": spec.seed + 1}))
    assert not torch.equal(engine.create(spec).params, other.params)


def test_adapter_config_has_the_engines_scale(engine):
    state = warm_run(engine)
    config = json.loads(export_peft(state, "base")["adapter_config.json"])
    assert config["lora_alpha"] / config["r"] == state.layout.scale
    assert set(config["target_modules"]) >= {"q_proj", "down_proj", "lm_head"}
