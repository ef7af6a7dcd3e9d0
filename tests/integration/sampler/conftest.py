"""An engine on a tiny model, and transformers + PEFT as the reference."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tensafe_gpu.sampler import launch
from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.environment import configure_environment
from tests.support.tiny_models import tiny_model

T = TypeVar("T")

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
STEP_TOKENS = 64
"""In one pass: longer prompts are read in chunks."""
MODEL_SHAPE = {"hidden": 128, "layers": 2, "vocab": 512, "max_context": 256}  # vLLM on CPU: head_dim >= 32


@pytest.fixture(scope="package", autouse=True)
def _vllm_environment() -> Iterator[None]:
    before = dict(os.environ)
    configure_environment(threads=1)
    torch.set_num_threads(1)
    yield
    os.environ.clear()
    os.environ.update(before)


class Harness:
    """An engine and the event loop that it lives in."""

    def __init__(self, model_path: str, *, start_s: float = 120, **settings: object) -> None:
        self.loop = asyncio.new_event_loop()
        self.model_path = model_path
        started = {"dtype": "float32", "max_context_tokens": 256, **settings}
        self.engine: SamplingEngine = self.run(SamplingEngine.start(model_path, **started), start_s)

    def run(self, work: Awaitable[T], timeout_s: float = 120) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, timeout_s))

    def together(self, *work: Awaitable[T]) -> list[T | BaseException]:
        async def gather() -> list[T | BaseException]:
            return await asyncio.gather(*work, return_exceptions=True)

        return self.run(gather())

    def close(self) -> None:
        self.run(self.engine.close())
        self.loop.close()


class Reference:
    """The same weights in transformers and PEFT."""

    def __init__(self, model_path: str) -> None:
        self.model_path = model_path
        self._models: dict[str, torch.nn.Module] = {}

    def model(self, folder: Path | None) -> torch.nn.Module:
        key = str(folder)
        if key not in self._models:
            model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
            if folder is not None:
                model = PeftModel.from_pretrained(model, folder)
            self._models[key] = model.eval()
        return self._models[key]

    def greedy(self, prompt: tuple[int, ...], folder: Path | None, tokens: int) -> list[int]:
        with torch.no_grad():
            ids = self.model(folder).generate(
                input_ids=torch.tensor([prompt]),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=1,
            )
        return ids[0, len(prompt) :].tolist()

    def logprobs(self, tokens: list[int], folder: Path | None) -> torch.Tensor:
        """float32 [T, vocab]: row t predicts token t+1."""
        with torch.no_grad():
            return self.model(folder)(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)


AdapterFactory = Callable[..., tuple[Adapter, Path]]


def adapter_factory(model_path: str, folders: pytest.TempPathFactory) -> AdapterFactory:
    """Makes random PEFT adapters, saved by PEFT: (what the engine gets, its folder for the reference)."""

    def make(
        name: str, *, version: str = "1", seed: int = 0, rank: int = 4, modules: tuple[str, ...] = LINEAR
    ) -> tuple[Adapter, Path]:
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=32, target_modules=list(modules), task_type="CAUSAL_LM")
        peft_model = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in peft_model.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
        folder = folders.mktemp("adapter")
        peft_model.save_pretrained(folder, save_embedding_layers=False)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return Adapter(name, version, files), folder

    return make


@pytest.fixture(scope="package")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model"), "qwen3", **MODEL_SHAPE)


@pytest.fixture(scope="package")
def reference(model_path: str) -> Reference:
    return Reference(model_path)


@pytest.fixture(scope="package")
def make_adapter(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> AdapterFactory:
    return adapter_factory(model_path, tmp_path_factory)


@pytest.fixture(scope="package")
def harness(model_path: str) -> Iterator[Harness]:
    """One engine for all tests that leave it alive."""
    with mock.patch.object(launch, "_BATCHED_TOKENS", STEP_TOKENS):
        harness = Harness(
            model_path,
            max_loras=2,
            max_lora_rank=8,
            max_resident_adapters=3,
            max_sequences=32,
            key_holder="tests.support.private_evaluator:connect",
        )
    yield harness
    harness.close()
