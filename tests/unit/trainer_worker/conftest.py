"""A real trainer over a tiny model and stores in memory or SQLite, one step at a time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: these tests open no socket

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tensafe_gpu.trainer import private_steps
from tensafe_gpu.trainer.base_model import BaseModel
from tests.support.training_log import smallest_model
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    torch.set_num_threads(1)
    return BaseModel.load(smallest_model(tmp_path_factory.mktemp("model")), name=BASE)


@pytest.fixture(scope="session", autouse=True)
def _same_noise() -> Iterator[None]:
    """Every run draws its noise from one secret, so that two runs of the same log can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_steps, "os", SimpleNamespace(urandom=lambda count: b"\x05" * count))
        yield


@pytest.fixture
def rig(base: BaseModel) -> Rig:
    """Over memory."""
    return Rig(base)


@pytest.fixture
def durable_rig(base: BaseModel, tmp_path: Path) -> Rig:
    """Over SQLite."""
    return Rig(base, tmp_path)


@pytest.fixture
def new_rig(base: BaseModel) -> Callable[..., Rig]:
    """Makes rigs over memory, each with stores of its own."""
    return lambda **settings: Rig(base, **settings)
