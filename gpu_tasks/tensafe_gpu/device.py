"""The device that a task computes on: it is there and torch is built for it, or the task does not start."""

from __future__ import annotations

import os
from typing import Final, Literal

import torch

from tensafe.contracts.errors import ConfigurationError

Device = Literal["cpu", "cuda"]
_REMEDY: Final = (
    "take an environment or an image of requirements/lock-cuda.txt (make images ACCELERATOR=cuda; "
    "docs/aws.md, Images), or set TENSAFE_DEVICE=cpu"
)


def require_device(device: Device) -> None:
    """Refuse CUDA unless this torch is built for it and sees a GPU. Nothing falls back to a CPU.

    Raises ConfigurationError that says which of the two it is.
    """
    if device == "cpu":
        return
    if torch.version.cuda is None:
        raise ConfigurationError(
            f"TENSAFE_DEVICE is cuda, and torch {torch.__version__} here is built for a CPU, as requirements/"
            f"lock.txt has it: {_REMEDY}",
            field="device",
        )
    if not torch.cuda.is_available():
        raise ConfigurationError(
            f"TENSAFE_DEVICE is cuda, and torch {torch.__version__} sees no GPU: its CUDA "
            f"{torch.version.cuda} needs an NVIDIA driver that serves it, and a container needs a GPU of its "
            "own (in a task definition ResourceRequirements of type GPU; with Docker --gpus)",
            field="device",
        )


def compute_alike() -> None:
    """Have CUDA compute the same bits again from the same numbers, or raise where it has no such kernel, and
    products of float32 in float32, not in TF32, whatever the environment says.

    A replayed step meets its noise again: two sums that differ would show their difference without any. What
    cuBLAS needs for it is read when a GPU is first used. A CPU does so anyway.
    (https://pytorch.org/docs/stable/notes/randomness.html)
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
