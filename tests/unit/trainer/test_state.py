"""What a run's bytes hold: everything, bit for bit, and nothing that an operation left half done."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.contracts.training import AdamParams, LoraSpec, SgdParams
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.method import ADAMW, Method
from tensafe_gpu.trainer.state import RunState
from tests.support.training_data import random_request, warm_run

HYPER = AdamParams(learning_rate=1e-2, weight_decay=0.01)


def trained(engine, *, seed=3, steps=2, pending=True):
    state = warm_run(engine, seed=seed)
    for step in range(steps):
        engine.forward_backward(state, random_request((6, 9, 2), seed=seed + step))
        engine.optim_step(state, HYPER)
    if pending:
        engine.forward_backward(state, random_request((5,), seed=99))
    return state


@pytest.mark.parametrize(("steps", "pending"), [(0, False), (0, True), (2, False), (2, True)])
def test_dump_and_load_are_bit_exact(engine, steps, pending):
    state = trained(engine, steps=steps, pending=pending)
    back = RunState.load(state.dump(), engine.base)
    for name in ("params", "exp_avg", "exp_avg_sq", "grad_sum"):
        assert torch.equal(getattr(back, name), getattr(state, name)), name
    assert (back.step, back.pending_data, back.spec) == (state.step, state.pending_data, state.spec)
    assert back.dump() == state.dump()


def header_of(data: bytes) -> dict:
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tensafe"])


def with_header(data: bytes, header: dict) -> bytes:
    return save_tensors(load_tensors(data), metadata={"tensafe": json.dumps(header, sort_keys=True)})


def test_a_state_of_format_1_is_read_as_one_of_adamw(engine):
    """What releases before the method was stored have left in data directories."""
    state = trained(engine)
    header = header_of(state.dump())
    old = {name: header[name] for name in ("spec", "layout", "step", "pending_data")} | {"format": 1}
    back = RunState.load(with_header(state.dump(), old), engine.base)
    assert (back.method, back.dump()) == (ADAMW, state.dump())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"method": {"rule": "lion"}},
        {"method": {"rule": "sgd", "momentum": 1}},
        {"method": None},
    ],
)
def test_a_state_of_another_release_is_refused(engine, change):
    data = trained(engine).dump()
    with pytest.raises(IntegrityError):
        RunState.load(with_header(data, header_of(data) | change), engine.base)


def test_a_run_of_sgd_keeps_no_moments_and_goes_on_bit_for_bit(engine):
    straight = engine.create(LoraSpec(rank=4, seed=3), Method(rule="sgd"))
    for seed in range(2):
        engine.forward_backward(straight, random_request((6, 9), seed=seed))
        engine.optim_step(straight, SgdParams(learning_rate=0.1))
    engine.forward_backward(straight, random_request((5,), seed=9))
    resumed = RunState.load(straight.dump(), engine.base)
    assert sorted(load_tensors(straight.dump())) == ["grad_sum", "params"]
    assert (resumed.method, resumed.step) == (Method(rule="sgd"), 2)
    for state in (straight, resumed):
        engine.optim_step(state, SgdParams(learning_rate=0.1))
    assert resumed.dump() == straight.dump()


def test_resuming_equals_going_on_bit_for_bit(engine):
    straight = trained(engine, steps=2, pending=True)
    resumed = RunState.load(straight.dump(), engine.base)
    for state in (straight, resumed):
        engine.forward_backward(state, random_request((4, 11), seed=5))
        engine.optim_step(state, HYPER)
    assert resumed.dump() == straight.dump()


def test_the_same_calls_give_the_same_bytes(base):
    assert trained(Engine(base)).dump() == trained(Engine(base)).dump()


def test_runs_that_take_turns_do_not_mix(engine):
    alone = {seed: trained(engine, seed=seed).dump() for seed in (3, 4)}
    states = {seed: warm_run(engine, seed=seed) for seed in (3, 4)}
    for step in range(2):
        for seed, state in states.items():
            engine.forward_backward(state, random_request((6, 9, 2), seed=seed + step))
        for state in states.values():
            engine.optim_step(state, HYPER)
    for seed, state in states.items():
        engine.forward_backward(state, random_request((5,), seed=99))
        assert state.dump() == alone[seed]


def test_runs_of_different_shape_share_the_base_model(engine):
    small, large = warm_run(engine, rank=2, train_mlp=False), warm_run(engine, rank=8)
    request = random_request((6, 3), forward_only=True)
    first = engine.forward_backward(small, request).logprobs
    engine.forward_backward(large, random_request((6,)))
    for a, b in zip(first, engine.forward_backward(small, request).logprobs, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_forward_only_leaves_every_byte(engine, clip_norm):
    state = trained(engine)
    before = state.dump()
    forward = engine.forward_backward(
        state, random_request(units=range(5), forward_only=True), clip_norm=clip_norm
    )
    assert state.dump() == before
    both = engine.forward_backward(state, random_request(units=range(5)), clip_norm=clip_norm)
    for a, b in zip(forward.logprobs, both.logprobs, strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_a_request_that_fails_leaves_every_byte(engine):
    state = trained(engine)
    before = state.dump()
    overflow = random_request((6, 8), loss_fn="importance_sampling")
    overflow.data[1].inputs["logprobs"][:] = -1e4
    overflow.data[1].inputs["advantages"][:] = 1.0
    with pytest.raises(InvalidRequest, match="not finite") as caught:
        engine.forward_backward(state, overflow)
    assert caught.value.field == "data[1]"
    huge = random_request((200,))
    huge.data[0].inputs["weights"][:] = 3e37  # each token's loss is finite; the gradient overflows
    with pytest.raises(InvalidRequest, match="gradient is not finite"):
        engine.forward_backward(state, huge)
    assert state.dump() == before


def test_weights_start_a_fresh_optimizer(engine):
    state = trained(engine)
    for data in (state.dump_weights(), state.dump()):
        back = RunState.load_weights(data, engine.base)
        assert torch.equal(back.params, state.params)
        assert (back.step, back.pending_data) == (0, 0)
        assert not any(t.any() for t in (back.exp_avg, back.exp_avg_sq, back.grad_sum))
    assert len(state.dump_weights()) < len(state.dump()) / 3


def test_weights_of_another_shape_are_refused(engine, base_of):
    data = trained(Engine(base_of("qwen2", tied=False))).dump()
    assert RunState.load(data, base_of("llama")).step == 2  # same shapes under the same names
    wrong = data.replace(b'\\"rank\\": 4', b'\\"rank\\": 8')
    assert wrong != data
    with pytest.raises(InvalidRequest, match="another shape"):
        RunState.load(wrong, engine.base)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 400, -1])
def test_damaged_bytes_are_refused(engine, keep):
    data = trained(engine, steps=1).dump()
    with pytest.raises(IntegrityError):
        RunState.load(data[:keep], engine.base)


def test_other_bytes_are_refused(engine):
    from safetensors.torch import save

    state = trained(engine, steps=1)
    other = save({"params": state.params}, metadata={"format": "pt"})
    for data in (b"\x80\x04not a state", b"\xff" * 64, other):
        with pytest.raises(IntegrityError):
            RunState.load(data, engine.base)
