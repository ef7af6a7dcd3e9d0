"""On a GPU: the trainer beside itself on a CPU, and the sampler beside transformers on a CPU.

    .venv/bin/python -m pytest -m gpu        # in an environment of requirements/lock-cuda.txt (README.md)

Nobody has run these yet. The tolerances are what float32 and bfloat16 leave, not what was measured.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: these tests open no socket

from collections.abc import Iterator
from typing import Final

import pytest
import torch

from tensafe_gpu.device import Device, compute_alike

DEVICE: Final[Device] = "cuda"


@pytest.fixture(scope="package")
def _alike() -> Iterator[None]:
    """As the trainer's process begins."""
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    compute_alike()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.set_float32_matmul_precision(before[1])
