"""Runs that train B alone: A does not move, and clipping, noise and moments know nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensafe.contracts.errors import IntegrityError
from tensafe.contracts.training import AdamParams, ForwardBackward, SgdParams
from tensafe_gpu.trainer.accumulate import ROUNDING_MARGIN
from tensafe_gpu.trainer.engine import Engine, accumulated_sum
from tensafe_gpu.trainer.method import Method
from tensafe_gpu.trainer.peft_format import export_peft
from tensafe_gpu.trainer.state import RunState
from tests.support.checked_step import is_b
from tests.support.peft_reference import (
    flat_gradient,
    load_reference,
    reference_logprobs,
    reference_losses,
)
from tests.support.training_data import random_request, warm_run

FROZEN = Method(freeze_a=True)
HYPER = {"adamw": AdamParams(learning_rate=1e-2, weight_decay=0.5), "sgd": SgdParams(learning_rate=1e-2)}
LENGTHS = (7, 3, 12, 1, 9)


def steps(engine, state, count=3, *, first=0):
    """Private steps whose release adds a fixed vector of noise of the length that it is given."""
    for seed in range(first, first + count):
        engine.forward_backward(state, random_request(LENGTHS, units=range(5), seed=seed), clip_norm=5.0)
        noise = np.random.default_rng(seed).normal(size=state.layout.trained_numel)
        engine.optim_step(state, HYPER[state.method.rule], release=lambda total: (total + noise) / 4)  # noqa: B023
    return state


def matrices(state, which):
    return [pair[which].clone() for pair in state.layout.pairs(state.params)]


def sum_of(engine, request, clip_norm, method=FROZEN):
    state = warm_run(engine, method=method)
    metrics = engine.forward_backward(state, request, clip_norm=clip_norm).metrics
    return accumulated_sum(state).astype(np.float64), metrics


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@pytest.mark.parametrize("unembed", [True, False])
def test_a_keeps_every_bit_and_b_is_trained(engine, rule, unembed):
    state = warm_run(engine, method=Method(rule, freeze_a=True), train_unembed=unembed)
    before = matrices(state, 0), matrices(state, 1)
    steps(engine, state)
    assert all(torch.equal(a, b) for a, b in zip(matrices(state, 0), before[0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(matrices(state, 1), before[1], strict=True))


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_b_moves_as_it_would_if_a_had_no_gradient(engine, rule):
    """The same released vector for B, on a run that trains all and gets zeros for A."""
    hyper = HYPER[rule].model_copy(update={"weight_decay": 0.0})
    frozen = warm_run(engine, method=Method(rule, freeze_a=True))
    whole = warm_run(engine, method=Method(rule))
    chosen = is_b(whole.layout)
    for seed in range(3):
        released = np.random.default_rng(seed).normal(size=frozen.layout.trained_numel)
        full = np.zeros(whole.layout.numel)
        full[chosen] = released
        engine.optim_step(frozen, hyper, release=lambda _: released)  # noqa: B023
        engine.optim_step(whole, hyper, release=lambda _: full)  # noqa: B023
    assert torch.equal(frozen.params, whole.params)


def test_vectors_of_gradients_hold_b_alone(engine):
    state = warm_run(engine, method=FROZEN)
    size = sum(b.numel() for _, b in state.layout.pairs(state.params))
    seen = []
    engine.forward_backward(state, random_request(LENGTHS, units=range(5)), clip_norm=1.0)
    engine.optim_step(
        state, AdamParams(), release=lambda total: seen.append(total.size) or np.zeros(total.size)
    )
    assert seen == [size]
    assert {v.numel() for v in (state.grad_sum, state.exp_avg, state.exp_avg_sq)} == {size}
    assert size < state.params.numel()


@pytest.mark.parametrize("microbatch_tokens", [4096, 20, 1])
@pytest.mark.parametrize("units", [(1, 2, 3, 4, 5), (5, 5, 1, 5, 1)], ids=["each", "mixed"])
def test_the_clipped_sum_is_that_of_bs_gradients_in_peft(base, llama_reference, units, microbatch_tokens):
    request = random_request(LENGTHS, units=units)
    layout = warm_run(Engine(base)).layout
    chosen, found = is_b(layout), {}
    for datum, loss in zip(request.data, reference_losses(llama_reference, request), strict=True):
        llama_reference.zero_grad()
        loss.backward()
        gradient = flat_gradient(llama_reference, layout).double().numpy()[chosen]
        found[datum.unit_id] = found.get(datum.unit_id, 0.0) + gradient
    norms = {unit: np.linalg.norm(gradient) for unit, gradient in found.items()}
    clip_norm = float(np.median([*norms.values()]))
    bound = clip_norm * (1 - ROUNDING_MARGIN)
    expected = sum(g * min(1.0, bound / norms[unit]) for unit, g in found.items())
    ours, metrics = sum_of(Engine(base, microbatch_tokens=microbatch_tokens), request, clip_norm)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
    assert metrics["non_dp/clipped_units:sum"] == sum(norm > bound for norm in norms.values())


def test_the_norm_that_is_clipped_counts_b_alone(engine):
    """A bound between the norm of B's gradient and that of both: only the run that trains A is clipped."""
    request = random_request((9,), units=(1,))
    gradient, _ = sum_of(engine, request, 1e6, Method())
    layout = warm_run(engine).layout
    of_b, of_both = np.linalg.norm(gradient[is_b(layout)]), np.linalg.norm(gradient)
    clip_norm = float((of_b + of_both) / 2)
    assert of_b < 0.98 * clip_norm < clip_norm < of_both
    kept, metrics = sum_of(engine, request, clip_norm)
    assert np.allclose(kept, gradient[is_b(layout)], rtol=1e-5, atol=1e-7)
    assert metrics["non_dp/clipped_units:sum"] == 0
    assert sum_of(engine, request, clip_norm, Method())[1]["non_dp/clipped_units:sum"] == 1


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_one_unit_changes_the_sum_by_at_most_the_clip_norm(base, data):
    """Add/remove adjacency with noise off, over the coordinates that are released: those of B."""
    engine = Engine(base, microbatch_tokens=data.draw(st.sampled_from([8, 24, 4096])))
    clip_norm = data.draw(st.sampled_from([1e-3, 1.0, 50.0]))
    count = data.draw(st.integers(2, 5))
    units = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=count, max_size=count))
    request = random_request(lengths, units=units, seed=data.draw(st.integers(0, 99)))
    request.data[0].inputs["weights"][:] *= np.float32(data.draw(st.sampled_from([1.0, 1e6, 1e37])))
    rest = tuple(d for d in request.data if d.unit_id != units[0])
    full, _ = sum_of(engine, request, clip_norm)
    without = np.zeros_like(full)
    if rest:
        without, _ = sum_of(engine, ForwardBackward(rest, "cross_entropy", {}, False), clip_norm)
    assert np.isfinite(full).all()
    assert np.linalg.norm(full - without) <= clip_norm


def test_peft_gives_the_same_logprobs_after_steps(base_of, model_path, tmp_path):
    engine = Engine(base_of("qwen3"))
    state = steps(engine, warm_run(engine, method=FROZEN))
    reference = load_reference(model_path("qwen3"), export_peft(state, "qwen3"), tmp_path)
    request = random_request((20, 9), forward_only=True)
    for datum, ours in zip(request.data, engine.forward_backward(state, request).logprobs, strict=True):
        assert np.abs(ours - reference_logprobs(reference, datum).detach().numpy()).max() <= 1e-4


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@pytest.mark.parametrize("pending", [False, True])
def test_resuming_equals_going_on_bit_for_bit(engine, rule, pending):
    straight = steps(engine, warm_run(engine, method=Method(rule, freeze_a=True)))
    if pending:
        engine.forward_backward(straight, random_request((4,), units=(9,), seed=8), clip_norm=5.0)
    resumed = RunState.load(straight.dump(), engine.base)
    assert resumed.dump() == straight.dump()
    assert resumed.method == straight.method
    for state in (straight, resumed):
        steps(engine, state, 2, first=5)
    assert resumed.dump() == straight.dump()


def test_weights_pass_between_runs_with_a_frozen_and_not(engine):
    """The parameters of a checkpoint are all of them, whatever was trained."""
    frozen = steps(engine, warm_run(engine, method=FROZEN))
    for data in (frozen.dump(), frozen.dump_weights()):
        assert torch.equal(RunState.load_weights(data, engine.base).params, frozen.params)
    whole = steps(engine, warm_run(engine))
    began = RunState.load_weights(whole.dump(), engine.base, FROZEN)
    assert (began.method, began.grad_sum.numel()) == (FROZEN, frozen.grad_sum.numel())
    steps(engine, began)
    for a, b in zip(matrices(began, 0), matrices(whole, 0), strict=True):
        assert torch.equal(a, b)


def test_moments_of_another_length_are_damage(engine):
    data = steps(engine, warm_run(engine, method=FROZEN)).dump()
    wrong = data.replace(b'\\"freeze_a\\": true', b'\\"freeze_a\\":false')
    assert wrong != data
    with pytest.raises(IntegrityError, match="exp_avg"):
        RunState.load(wrong, engine.base)


def test_a_bfloat16_base_keeps_a_too(model_path):
    from tensafe_gpu.trainer.base_model import BaseModel

    engine = Engine(BaseModel.load(model_path("qwen2"), name="q", dtype="bfloat16"))
    state = warm_run(engine, method=FROZEN)
    before = matrices(state, 0), [pair[1].clone() for pair in state.pairs]
    steps(engine, state, 1)
    assert all(torch.equal(a, b) for a, b in zip(matrices(state, 0), before[0], strict=True))
    assert not any(torch.equal(pair[1], b) for pair, b in zip(state.pairs, before[1], strict=True))
