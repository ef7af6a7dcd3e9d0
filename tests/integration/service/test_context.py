"""A model that claims a long context, on a machine that cannot hold one: it starts, and says its limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker
from tinker import types

from tests.support.service import MODEL_NAME, Service
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.one_machine("the memory of one machine's vLLM decides")

CLAIMED = 40_960
LIMIT = 31_744  # a GiB holds 32,768 tokens of this model, less what vLLM keeps, in whole thousands
PARAMS = types.SamplingParams(max_tokens=2, temperature=0.0, stop=[])


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """32 KiB of keys and values a token: its whole context would need 1.25 GiB."""
    folder = tmp_path_factory.mktemp("context")
    model = tiny_model(
        folder / "model", "qwen3", hidden=256, heads=8, kv_heads=8, layers=16, max_context=CLAIMED
    )
    running = Service(folder, Path(model), environment={"VLLM_CPU_KVCACHE_SPACE": "1"})
    running.init()
    running.start()
    yield running
    running.stop()


def test_the_limit_is_told_and_is_the_same_everywhere(
    small_cache: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told,) = [
        line for line in (small_cache.folder / "up.err").read_text().splitlines() if "context limited" in line
    ]
    assert f"limited to {LIMIT} of {CLAIMED} tokens" in told
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    client = tinker.ServiceClient(base_url=small_cache.url, api_key=small_cache.create_key())
    (model,) = client.get_server_capabilities().supported_models
    assert model.max_context_length == LIMIT

    training = client.create_lora_training_client(MODEL_NAME, rank=4).result()
    with pytest.raises(tinker.RequestFailedError, match=f"send at most {LIMIT}"):
        training.forward([_datum(LIMIT + 1)], "cross_entropy").result()
    sampler = client.create_sampling_client(base_model=MODEL_NAME).result()
    with pytest.raises(tinker.UnprocessableEntityError, match=f"at most {LIMIT - 1} leave room"):
        sampler.sample(types.ModelInput.from_ints([5] * LIMIT), 1, PARAMS).result()
    answer = sampler.sample(types.ModelInput.from_ints([5] * 300), 1, PARAMS).result()
    assert len(answer.sequences[0].tokens) == 2
    client.close("success").result()


def _datum(tokens: int) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints([5] * tokens),
        loss_fn_inputs={"target_tokens": np.full(tokens, 6), "weights": np.ones(tokens, np.float32)},
    )
