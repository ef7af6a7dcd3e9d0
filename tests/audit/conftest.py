"""The tiny model of the audits; noise secrets and deal seeds that are the same in every run of the suite."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: these tests open no socket

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tensafe.privacy import deals
from tensafe.privacy.dealing import DEAL_SEED_BYTES
from tensafe_gpu.trainer import private_steps
from tensafe_gpu.trainer.base_model import BaseModel
from tests.support.training_log import smallest_model
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _deterministic_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another secret for every run, as in service, and the same ones in every execution of a test."""
    numbers = itertools.count()

    def urandom(count: int) -> bytes:
        return hashlib.shake_256(b"audit %d" % next(numbers)).digest(count)

    monkeypatch.setattr(private_steps, "os", SimpleNamespace(urandom=urandom))
    monkeypatch.setattr(deals, "new_deal_seed", lambda: urandom(DEAL_SEED_BYTES))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel.load(smallest_model(tmp_path_factory.mktemp("model")), name=BASE)


@pytest.fixture
def new_rig(base: BaseModel) -> Callable[..., Rig]:
    """Makes real trainer workers over stores in memory, each with stores of its own."""

    def rig(folder: Path | None = None, **settings: int) -> Rig:
        return Rig(base, folder, **settings)

    return rig
