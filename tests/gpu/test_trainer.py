"""The trainer on a GPU computes what it computes on a CPU, and the same bits when it computes them again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tensafe.contracts.training import AdamParams, ForwardBackward
from tensafe.operations.records import OpState
from tensafe_gpu.trainer import private_steps
from tensafe_gpu.trainer.accumulate import _add_product, _batched_product
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine, accumulated_sum
from tensafe_gpu.trainer.state import RunState
from tests.gpu.conftest import DEVICE
from tests.project_files import ROOT
from tests.support.tiny_models import Family, tiny_model
from tests.support.training_data import random_request, warm_run
from tests.support.training_log import forward_backward, optim_step, private, smallest_model
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.usefixtures("_alike")]

LENGTHS = (7, 3, 12, 1, 9, 30, 4)


def gradient(
    engine: Engine, request: ForwardBackward, clip_norm: float | None = None
) -> npt.NDArray[np.float64]:
    state = warm_run(engine)
    engine.forward_backward(state, request, clip_norm=clip_norm)
    return accumulated_sum(state).astype(np.float64)


def apart(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Norm of the difference in relation to b's."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("loss_fn", ["cross_entropy", "ppo"])
@pytest.mark.parametrize("microbatch_tokens", [4096, 20])
def test_logprobs_and_gradients_are_the_cpu_s(
    tmp_path: Path, family: Family, loss_fn: str, microbatch_tokens: int
) -> None:
    path = tiny_model(tmp_path, family)
    request = random_request(LENGTHS, loss_fn=loss_fn)
    results, gradients = [], []
    for device in ("cpu", DEVICE):
        engine = Engine(BaseModel.load(path, device=device), microbatch_tokens=microbatch_tokens)
        state = warm_run(engine)
        assert state.params.device.type == device
        results.append(engine.forward_backward(state, request))
        gradients.append(accumulated_sum(state).astype(np.float64))
    for on_cpu, here in zip(results[0].logprobs, results[1].logprobs, strict=True):
        assert here.dtype == np.float32
        np.testing.assert_allclose(here, on_cpu, atol=1e-4)
    assert results[1].loss_sum == pytest.approx(results[0].loss_sum, rel=1e-4, abs=1e-3)
    assert apart(gradients[1], gradients[0]) < 1e-4


def test_a_private_step_is_the_cpu_s(tmp_path: Path) -> None:
    """Clipped unit by unit, noised on the CPU, applied on the GPU."""
    path = tiny_model(tmp_path, "qwen3")
    request = random_request(LENGTHS, units=(1, 1, 2, 3, 4, 5, 5))
    parameters, counts = [], []
    for device in ("cpu", DEVICE):
        engine = Engine(BaseModel.load(path, device=device))
        state = warm_run(engine)
        counts.append(engine.forward_backward(state, request, clip_norm=1.0).metrics)
        noise = np.random.default_rng(7).normal(size=state.layout.trained_numel)
        step = AdamParams(learning_rate=1e-2)
        engine.optim_step(state, step, release=lambda total, noise=noise: (total + noise) / 4)
        parameters.append(state.params.cpu().numpy().astype(np.float64))
    assert counts[1]["non_dp/clipped_units:sum"] == counts[0]["non_dp/clipped_units:sum"] > 0
    assert counts[1]["non_dp/units:sum"] == 5
    assert apart(parameters[1], parameters[0]) < 1e-4


def test_a_private_run_is_charged_and_replayed_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole worker: one goes through, one dies before any snapshot and another repeats its steps."""
    monkeypatch.setattr(private_steps, "os", SimpleNamespace(urandom=lambda count: b"\x05" * count))
    base = BaseModel.load(smallest_model(tmp_path), name=BASE, device=DEVICE)
    states = []
    for dies in (False, True):
        rig = Rig(base)
        rig.begin(optimizer=private())
        rig.do(1, forward_backward(units=(1, 2, 3)))
        assert rig.do(2, optim_step()).state is OpState.COMPLETED
        assert rig.result(2)["metrics"]["dp/epsilon"] > 0
        if dies:
            rig.restart()
        assert rig.do(3, forward_backward(units=(4, 5))).state is OpState.COMPLETED
        states.append(rig.final())
    assert states[0] == states[1]
    assert states[0][1] == {4, 5}


PROGRAM = """
import hashlib, sys
from tensafe.contracts.training import AdamParams
from tensafe_gpu.device import compute_alike
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine
from tests.support.training_data import random_request, warm_run

compute_alike()
engine = Engine(BaseModel.load(sys.argv[1], device=sys.argv[2], dtype=sys.argv[3]), microbatch_tokens=64)
state = warm_run(engine, rank=8)
for step in range(3):
    request = random_request((33, 7, 48, 21, 1, 18), units=range(6), seed=step)
    engine.forward_backward(state, request, clip_norm=2.0 if step % 2 else None)
    engine.optim_step(state, AdamParams(learning_rate=1e-2))
print("DIGEST", hashlib.sha256(state.dump()).hexdigest())
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_agree_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    """So that a step that is replayed meets its noise with the same sum (docs/privacy.md)."""
    path = tiny_model(tmp_path, "qwen3")
    digests = set()
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, path, DEVICE, dtype],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.split("DIGEST ")[-1].strip())
    assert len(digests) == 1
    assert len(digests.pop()) == len(hashlib.sha256().hexdigest())


def test_a_bfloat16_base_gives_float32_gradients_close_to_those_of_float32(tmp_path: Path) -> None:
    path = tiny_model(tmp_path, "qwen3", initializer_range=0.05)
    request = random_request(LENGTHS, units=range(len(LENGTHS)))
    exact = Engine(BaseModel.load(path))
    rounded = Engine(BaseModel.load(path, device=DEVICE, dtype="bfloat16"))
    assert rounded.base.dtype == torch.bfloat16
    for clip_norm in (None, 0.5):
        state = warm_run(rounded)
        result = rounded.forward_backward(state, request, clip_norm=clip_norm)
        assert state.grad_sum.dtype == torch.float32
        assert all(one.dtype == np.float32 and np.isfinite(one).all() for one in result.logprobs)
        assert apart(accumulated_sum(state).astype(np.float64), gradient(exact, request, clip_norm)) < 0.1


def test_products_of_bfloat16_come_out_in_float32() -> None:
    """By `out_dtype`, which torch has on CUDA alone: nothing of a sum is rounded to eight bits."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(3, 500, 8, generator=generator).bfloat16().to(DEVICE)
    right = torch.randn(3, 500, 16, generator=generator).bfloat16().to(DEVICE)
    expected = torch.bmm(left.double().mT, right.double())
    found = _batched_product(left, right)
    total = torch.zeros(8, 16, device=DEVICE)
    _add_product(total, left[0], right[0])
    for product, wanted in ((found, expected), (total, expected[0])):
        assert product.dtype == torch.float32
        torch.testing.assert_close(product.double(), wanted, rtol=1e-4, atol=1e-3)
        assert not torch.equal(product, product.bfloat16().float())


def test_a_state_goes_on_where_it_was_not_made(tmp_path: Path) -> None:
    path = tiny_model(tmp_path, "llama")
    here, on_cpu = Engine(BaseModel.load(path, device=DEVICE)), Engine(BaseModel.load(path))
    state = warm_run(here)
    here.forward_backward(state, random_request())
    here.optim_step(state, AdamParams(learning_rate=1e-2))
    moved = RunState.load(state.dump(), on_cpu.base)
    assert moved.params.device.type == "cpu"
    assert moved.dump() == state.dump() == RunState.load(moved.dump(), here.base).dump()
