"""A task computes on the device that it was told, or does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu.device import require_device

AS_BUILT = torch.version.cuda


def test_cuda_is_refused_by_a_torch_for_cpus_which_has_the_cpu_and_the_lock_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    require_device("cpu")
    with pytest.raises(
        ConfigurationError, match=r"built for a CPU.*lock-cuda\.txt.*ACCELERATOR=cuda"
    ) as raised:
        require_device("cuda")
    assert raised.value.field == "device"


def test_cuda_is_refused_where_no_gpu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"sees no GPU: its CUDA 13\.0 needs an NVIDIA driver"):
        require_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_device("cuda")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["trainer", "sampler"])
@pytest.mark.skipif(AS_BUILT is not None, reason="this torch is built for CUDA")
def test_a_task_told_cuda_ends_with_that_sentence_before_it_opens_anything(task: str, tmp_path: Path) -> None:
    variables = {"TENSAFE_DATA_DIR": str(tmp_path / "absent"), "TENSAFE_DEVICE": "cuda"}
    done = subprocess.run(
        [sys.executable, "-m", f"tensafe_gpu.{task}", "--model", "tiny"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("TENSAFE_DEVICE is cuda, and torch")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "absent").exists()


def test_torch_compiles_no_kernel_of_its_own_while_a_task_runs() -> None:
    script = (
        "import tensafe_gpu.device; from torch._native.common_utils import check_native_jit_disabled as off;"
        "print(off())"
    )
    clean = {name: value for name, value in os.environ.items() if name != "TORCH_DISABLE_NATIVE_JIT"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def test_a_trainer_on_cuda_computes_alike_or_not_at_all() -> None:
    script = (
        "import os, torch; from tensafe_gpu.device import compute_alike; compute_alike();"
        "print(torch.are_deterministic_algorithms_enabled(), "
        "torch.is_deterministic_algorithms_warn_only_enabled(), torch.get_float32_matmul_precision(), "
        "os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    )
    reduced = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=reduced, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "highest", ":4096:8"]
