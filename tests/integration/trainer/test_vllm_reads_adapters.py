"""vLLM loads an exported adapter and samples from the distribution that the trainer computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.training import Datum, ForwardBackward
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.peft_format import export_peft
from tests.support.tiny_models import tiny_model
from tests.support.training_data import warm_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PROMPTS = [[5, 9, 200, 31], [7] * 9, [300, 12]]


def generate(job: Path) -> dict[str, list[dict[str, list[float]]]]:
    """vLLM's tokens and logprobs per adapter."""
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    script = Path(__file__).with_name("vllm_generate.py")
    done = subprocess.run(
        [sys.executable, str(script), str(job)],
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("llama", False)])
def test_sampled_logprobs_are_the_trainers(tmp_path, family, tied):
    path = tiny_model(tmp_path / "model", family, tied=tied, hidden=128)
    engine = Engine(BaseModel.load(path))
    runs = {
        "with_head": warm_run(engine, rank=4),
        "without_head": warm_run(engine, rank=8, train_unembed=False),
    }
    folders = {}
    for name, state in runs.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, data in export_peft(state, path).items():
            (folder / file).write_bytes(data)
        folders[name] = str(folder)
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"model": path, "prompts": PROMPTS, "adapters": folders}))

    for name, sequences in generate(job).items():
        for prompt, sequence in zip(PROMPTS, sequences, strict=True):
            whole = np.array(prompt + sequence["tokens"])
            datum = Datum(whole[:-1].astype(np.int32), {"target_tokens": whole[1:].astype(np.int64)})
            request = ForwardBackward((datum,), "cross_entropy", {}, True)
            ours = engine.forward_backward(runs[name], request).logprobs[0][len(prompt) - 1 :]
            assert np.abs(ours - np.array(sequence["logprobs"])).max() <= 1e-3, name
