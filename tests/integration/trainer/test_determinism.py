"""Replaying the same operations in another process gives the same bytes, from the start or a snapshot."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

PROGRAM = """
import hashlib, sys
import torch
from tensafe.contracts.training import AdamParams
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.state import RunState
from tests.support.training_data import random_request, warm_run

torch.set_num_threads(2)
model, snapshot, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
clutter = [torch.empty(n) for n in range(1, 40 * (first + 1), 7)]  # another heap in each process
engine = Engine(BaseModel.load(model), microbatch_tokens=64)
state = warm_run(engine, rank=8)
if first:
    state = RunState.load(open(snapshot, "rb").read(), engine.base)
for step in range(first, last):
    request = random_request((33, 7, 48, 21, 1, 18), units=range(6), seed=step)
    engine.forward_backward(state, request, clip_norm=2.0 if step % 2 else None)
    engine.optim_step(state, AdamParams(learning_rate=1e-2))
data = state.dump()
if last == 2:
    open(snapshot, "wb").write(data)
print("DIGEST", hashlib.sha256(data).hexdigest())
"""


def digest(*arguments: str) -> str:
    root = Path(__file__).parents[3]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return done.stdout.split("DIGEST ")[-1].strip()


def test_processes_agree_bit_for_bit(tmp_path):
    model, snapshot = tiny_model(tmp_path / "model", "qwen3"), str(tmp_path / "snapshot")
    whole = digest(model, snapshot, "0", "3")
    assert digest(model, snapshot, "0", "2") == hashlib.sha256(Path(snapshot).read_bytes()).hexdigest()
    assert digest(model, snapshot, "2", "3") == whole
