"""The optimizer steps against torch.optim on separate tensors, and their private form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tensafe.contracts.errors import IntegrityError
from tensafe.contracts.training import AdamParams, LoraSpec, SgdParams
from tensafe_gpu.trainer.engine import accumulated_sum
from tensafe_gpu.trainer.method import Method
from tests.support.training_data import random_request, warm_run

STEPS = [
    AdamParams(learning_rate=1e-2),
    AdamParams(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=0.5),
    AdamParams(learning_rate=3e-3, beta1=0.8, beta2=0.99, eps=1e-8, weight_decay=0.01),
    AdamParams(learning_rate=1e-3, grad_clip_norm=1e9),
]


def reference_optimizer(state) -> tuple[list[torch.nn.Parameter], torch.optim.AdamW]:
    tensors = [t for pair in state.layout.pairs(state.params) for t in pair]
    parameters = [torch.nn.Parameter(t.clone()) for t in tensors]
    return parameters, torch.optim.AdamW(parameters, foreach=False)


def test_steps_equal_torch_adamw_bit_for_bit_and_clipping_closely(engine):
    state = warm_run(engine)
    parameters, optimizer = reference_optimizer(state)
    for seed, hyper in enumerate(STEPS):
        engine.forward_backward(state, random_request((6, 9), seed=seed))
        gradient = torch.from_numpy(accumulated_sum(state))
        norm = float(gradient.double().norm())
        for parameter, piece in zip(
            parameters, [t for pair in state.layout.pairs(gradient) for t in pair], strict=True
        ):
            parameter.grad = piece.clone()
        if hyper.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, hyper.grad_clip_norm)
        optimizer.param_groups[0].update(
            lr=hyper.learning_rate,
            betas=(hyper.beta1, hyper.beta2),
            eps=hyper.eps,
            weight_decay=hyper.weight_decay,
        )
        optimizer.step()
        metrics = engine.optim_step(state, hyper)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-9)
        expected = torch.cat([p.detach().flatten() for p in parameters])
        if seed == 0:
            assert torch.equal(state.params, expected)
        assert torch.allclose(state.params, expected, rtol=1e-5, atol=1e-7)
        assert not accumulated_sum(state).any()
        assert (state.step, state.pending_data) == (seed + 1, 0)


def test_sgd_equals_torch_sgd_bit_for_bit_and_decays_beside_the_gradient(engine):
    state = engine.create(LoraSpec(rank=4, seed=3), Method(rule="sgd"))
    for seed in range(2):
        engine.forward_backward(state, random_request((6, 9), seed=seed))
        parameter = torch.nn.Parameter(state.params.clone())
        parameter.grad = torch.from_numpy(accumulated_sum(state))
        torch.optim.SGD([parameter], lr=3e-3, foreach=False).step()
        engine.optim_step(state, SgdParams(learning_rate=3e-3))
        assert torch.equal(state.params, parameter.detach())
    before = state.params.double()
    engine.forward_backward(state, random_request((6, 9), seed=5))
    gradient = torch.from_numpy(accumulated_sum(state)).double()
    metrics = engine.optim_step(state, SgdParams(learning_rate=3e-3, weight_decay=50))
    expected = before - 3e-3 * 50 * before - 3e-3 * gradient
    assert torch.allclose(state.params.double(), expected, rtol=1e-6, atol=1e-6)
    assert metrics == {"grad_norm": pytest.approx(float(gradient.norm())), "step": 3.0}
    assert (state.pending_data, state.exp_avg.numel(), state.exp_avg_sq.numel()) == (0, 0, 0)


@pytest.mark.parametrize(("rule", "hyper"), [("sgd", AdamParams()), ("adamw", SgdParams(learning_rate=1))])
def test_parameters_of_another_method_change_nothing(engine, rule, hyper):
    state = engine.create(LoraSpec(rank=4, seed=3), Method(rule=rule))
    engine.forward_backward(state, random_request((6, 9)))
    before = state.dump()
    with pytest.raises(IntegrityError, match=rule):
        engine.optim_step(state, hyper)
    assert state.dump() == before


def test_the_released_mean_and_nothing_else_moves_the_parameters(engine):
    request = random_request((6, 9), units=(1, 2))
    state, expected = warm_run(engine), warm_run(engine)
    engine.forward_backward(state, request, clip_norm=1.0)
    drawn = np.random.default_rng(1).normal(size=state.layout.numel)
    seen = accumulated_sum(state)
    expected.grad_sum = torch.from_numpy(((seen + drawn) / 8).astype(np.float32))
    hyper = AdamParams(learning_rate=1e-2)
    engine.optim_step(expected, hyper)
    engine.optim_step(state, hyper, release=lambda total: (total.astype(np.float64) + drawn) / 8)
    assert torch.equal(state.params, expected.params)


def test_a_private_step_without_data_still_applies_noise(engine):
    state = warm_run(engine)
    before = state.params.clone()
    engine.optim_step(state, AdamParams(), release=lambda total: np.ones(total.size))
    assert not torch.equal(state.params, before)


@pytest.mark.parametrize("released", [np.zeros(3), np.full(10**6, np.nan), None])
def test_a_release_that_fails_leaves_the_state_unchanged(engine, released):
    state = warm_run(engine)
    engine.forward_backward(state, random_request((6,)))
    before = state.dump()
    with pytest.raises((ValueError, AttributeError)):
        engine.optim_step(
            state, AdamParams(), release=lambda total: None if released is None else released[: total.size]
        )
    assert state.dump() == before
