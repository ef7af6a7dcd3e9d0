"""One tiny base model per family for all tests of the trainer."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: these tests open no socket

import pytest
import torch

from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.peft_format import export_peft
from tests.support.peft_reference import load_reference
from tests.support.tiny_models import tiny_model
from tests.support.training_data import warm_run


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """Path of the tiny model of a family, made once."""
    made: dict[tuple[str, bool], str] = {}

    def path(family: str = "llama", *, tied: bool = False) -> str:
        if (family, tied) not in made:
            made[family, tied] = tiny_model(tmp_path_factory.mktemp(family), family, tied=tied)
        return made[family, tied]

    return path


@pytest.fixture(scope="session")
def base_of(model_path):
    """The loaded base model of a family; runs are bound to it and released, so tests can share it."""
    made: dict[tuple[str, bool], BaseModel] = {}

    def base(family: str = "llama", *, tied: bool = False) -> BaseModel:
        if (family, tied) not in made:
            made[family, tied] = BaseModel.load(model_path(family, tied=tied), name=family)
        return made[family, tied]

    return base


@pytest.fixture(scope="session")
def base(base_of):
    return base_of("llama")


@pytest.fixture
def engine(base):
    return Engine(base)


@pytest.fixture(scope="session")
def _llama_reference(base, model_path, tmp_path_factory):
    files = export_peft(warm_run(Engine(base)), "llama")
    return load_reference(model_path("llama"), files, tmp_path_factory.mktemp("adapter"), is_trainable=True)


@pytest.fixture
def llama_reference(_llama_reference):
    """The Llama model in PEFT with the adapter of `warm_run`, gradients cleared."""
    _llama_reference.zero_grad()
    return _llama_reference
