"""The official tinker SDK 0.38.0, unmodified, against a real service: training, saving, sampling."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import peft
import pytest
import tinker
import torch
import transformers
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase, OptimParamsBase

from tests.support.sdk_data import rollout, supervised
from tests.support.service import MODEL_NAME

TOKENS = [5, 9, 301, 77, 45, 210, 33, 8, 120, 64, 199, 18]


def train(client: tinker.TrainingClient, steps: int = 2, *, unit: int | None = None) -> list[float]:
    losses = []
    for _ in range(steps):
        forward = client.forward_backward([supervised(TOKENS, unit=unit)], "cross_entropy")
        step = client.optim_step(types.AdamParams(learning_rate=3e-3))
        losses.append(forward.result().metrics["loss:sum"])
        step.result()
    return losses


def export(client: tinker.TrainingClient, rest: tinker.RestClient, name: str, folder: Path) -> Path:
    """The run's PEFT export, downloaded through its signed URLs."""
    path = client.save_weights_external(name).result().path
    for file, url in rest.get_external_weights_urls(path).result().urls.items():
        (folder / file).write_bytes(httpx.get(url).raise_for_status().content)
    return folder


def peft_logprobs(model_path: Path, adapter: Path, tokens: list[int]) -> np.ndarray:
    """Logprobs of tokens[1:], by transformers and PEFT alone, float32 [T - 1]."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0]
    logprobs = torch.log_softmax(logits.float(), -1)
    return logprobs.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()


def test_training_lowers_the_loss_and_get_info_tells_what_was_asked(
    training_client: tinker.TrainingClient,
) -> None:
    info = training_client.get_info()
    assert (info.model_name, info.lora_rank, info.optimizer_config.type) == (MODEL_NAME, 8, "adamw")
    losses = train(training_client, 4)
    assert losses[-1] < 0.8 * losses[0]


def test_the_exported_adapter_gives_the_trainers_logprobs_under_peft(
    client: tinker.ServiceClient,
    training_client: tinker.TrainingClient,
    model_path: Path,
    tmp_path: Path,
) -> None:
    train(training_client, 3)
    forward = training_client.forward([supervised(TOKENS)], "cross_entropy").result()
    ours = forward.loss_fn_outputs[0]["logprobs"].to_numpy()
    adapter = export(training_client, client.create_rest_client(), "exported", tmp_path)
    assert np.abs(ours - peft_logprobs(model_path, adapter, TOKENS)).max() <= 1e-4


def test_an_encrypted_export_opens_for_its_recipient_alone(
    client: tinker.ServiceClient, training_client: tinker.TrainingClient, tmp_path: Path
) -> None:
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    path = (
        training_client.save_weights_external("sealed", age_encryption_recipients=[str(identity.to_public())])
        .result()
        .path
    )
    urls = client.create_rest_client().get_external_weights_urls(path).result().urls
    names = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "privacy_statement.json",
        "privacy_statement.txt",
    ]
    assert sorted(urls) == [f"{name}.age" for name in names]
    sealed = httpx.get(urls["adapter_config.json.age"]).raise_for_status().content
    assert b"peft_type" in pyrage.decrypt(sealed, [identity])
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(sealed, [pyrage.x25519.Identity.generate()])


def test_logprobs_of_sampled_tokens_are_the_trainers(training_client: tinker.TrainingClient) -> None:
    train(training_client, 2)
    sampler = training_client.save_weights_and_get_sampling_client().result()
    prompt = TOKENS[:4]
    params = types.SamplingParams(max_tokens=16, temperature=1.0, seed=7, stop=[])
    answer = sampler.sample(types.ModelInput.from_ints(prompt), 2, params).result()
    for sequence in answer.sequences:
        tokens = [*prompt, *sequence.tokens]
        forward = training_client.forward([supervised(tokens)], "cross_entropy").result()
        logprobs = forward.loss_fn_outputs[0]["logprobs"].to_numpy()[len(prompt) - 1 :]
        assert np.abs(logprobs - np.array(sequence.logprobs)).max() <= 1e-3


def test_concurrent_prompt_logprobs_with_an_adapter(training_client: tinker.TrainingClient) -> None:
    train(training_client, 2)
    sampler = training_client.save_weights_and_get_sampling_client().result()
    prompts = [TOKENS[: 4 + i] for i in range(6)]
    pending = [sampler.compute_logprobs(types.ModelInput.from_ints(prompt)) for prompt in prompts]
    for prompt, future in zip(prompts, pending, strict=True):
        found = future.result()
        forward = training_client.forward([supervised(prompt)], "cross_entropy").result()
        expected = forward.loss_fn_outputs[0]["logprobs"].to_numpy()
        assert found[0] is None
        assert np.abs(expected - np.array(found[1:])).max() <= 1e-3


def test_the_same_seed_gives_the_same_samples_and_n_samples_differ(
    training_client: tinker.TrainingClient,
) -> None:
    sampler = training_client.save_weights_and_get_sampling_client().result()
    prompt = types.ModelInput.from_ints(TOKENS[:3])
    params = types.SamplingParams(max_tokens=12, seed=11, stop=[])
    first, second = (sampler.sample(prompt, 3, params).result() for _ in range(2))
    assert [s.tokens for s in first.sequences] == [s.tokens for s in second.sequences]
    assert len({tuple(s.tokens) for s in first.sequences}) == 3


def test_resume_goes_on_exactly(client: tinker.ServiceClient, training_client: tinker.TrainingClient) -> None:
    train(training_client, 2)
    path = training_client.save_state("half").result().path
    straight = train(training_client, 3)
    resumed = client.create_training_client_from_state_with_optimizer(path).result()
    assert train(resumed, 3) == straight
    fresh = client.create_training_client_from_state(path).result()
    assert train(fresh, 1)[0] == straight[0]


def test_every_loss_runs_and_a_custom_one_too(training_client: tinker.TrainingClient) -> None:
    size = len(TOKENS) - 1
    datum = rollout(TOKENS, [-1.0] * size, [0.5] * size)
    for loss in ("importance_sampling", "ppo", "cispo", "dro"):
        assert np.isfinite(training_client.forward_backward([datum], loss).result().metrics["loss:sum"])

    def squares(data: object, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        total = sum(((row**2).sum() for row in logprobs), torch.zeros(()))
        return total, {"squares": float(total)}

    done = training_client.forward_backward_custom([supervised(TOKENS)] * 2, squares).result()
    assert done.metrics["squares"] > 0


def test_many_chunks_keep_their_order(training_client: tinker.TrainingClient) -> None:
    data = [supervised([*TOKENS, 5 + i % 200]) for i in range(1500)]  # more than one chunk of 1024
    done = training_client.forward_backward(data, "cross_entropy")
    step = training_client.optim_step(types.AdamParams(learning_rate=1e-3))
    result = done.result(timeout=120)
    step.result(timeout=60)
    assert len(result.loss_fn_outputs) == 1500


@pytest.mark.parametrize("bad", [3, 1030])
def test_a_bad_example_in_any_chunk_fails_its_batch_and_training_goes_on(
    training_client: tinker.TrainingClient, bad: int
) -> None:
    data = [supervised(TOKENS)] * 1040  # two chunks: 1024 and the rest
    data[bad] = supervised([5, 10**6, 9])
    failed = training_client.forward_backward(data, "cross_entropy")
    with pytest.raises(tinker.RequestFailedError, match=rf"data\[{bad % 1024}\]\.model_input.*vocabulary"):
        failed.result(timeout=120)
    again = training_client.forward_backward([supervised(TOKENS)], "cross_entropy")
    step = training_client.optim_step(types.AdamParams(learning_rate=1e-3))
    assert len(again.result(timeout=60).loss_fn_outputs) == 1
    step.result(timeout=60)


def test_a_private_run_reports_epsilon_and_stops_at_its_budget(
    client: tinker.ServiceClient, tenant: str
) -> None:
    config = OptimizerConfigBase(
        type="tensafe_dp_adamw",
        clip_norm=1.0,
        noise_multiplier=1.0,
        delta=1e-5,
        batch_size=4,
        max_participations=3,
        max_epsilon=8.0,
        domain="records",
    )
    private = client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=config).result()
    spent = []
    for _ in range(2):
        private.forward_backward([supervised(TOKENS, unit=i) for i in range(4)], "cross_entropy").result()
        step = private.optim_step(OptimParamsBase(type="tensafe_dp_adamw", learning_rate=1e-3)).result()
        spent.append(step.metrics["dp/epsilon"])
        assert step.metrics["dp/delta"] == 1e-5
    assert spent == pytest.approx([4.3772, 6.5730], abs=1e-3)  # one and two Gaussian mechanisms, sigma 1
    private.forward_backward([supervised(TOKENS, unit=i) for i in range(4)], "cross_entropy").result()
    with pytest.raises(tinker.RequestFailedError, match="privacy_budget_exceeded"):
        private.optim_step(types.AdamParams(learning_rate=1e-3)).result()


def test_a_private_run_without_unit_ids_is_refused(client: tinker.ServiceClient) -> None:
    config = OptimizerConfigBase(
        type="tensafe_dp_adamw", clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, batch_size=1, domain="d"
    )
    private = client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=config).result()
    with pytest.raises(tinker.RequestFailedError, match="dp_unit_id"):
        private.forward_backward([supervised(TOKENS)], "cross_entropy").result()


def test_a_weak_noise_multiplier_is_refused_unless_accepted(client: tinker.ServiceClient) -> None:
    weak = {
        "type": "tensafe_dp_adamw",
        "clip_norm": 1.0,
        "noise_multiplier": 0.05,
        "delta": 1e-5,
        "batch_size": 1,
        "domain": "weak",
    }
    with pytest.raises(tinker.RequestFailedError, match="allow_weak_privacy"):
        client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=OptimizerConfigBase(**weak)).result()
    accepted = OptimizerConfigBase(**weak, allow_weak_privacy=True)
    assert (
        client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=accepted).get_info().lora_rank == 4
    )
