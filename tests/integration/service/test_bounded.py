"""Bounded participation with correlated noise, through the official SDK and a real service."""

from __future__ import annotations

import json

import pytest
import tinker
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tensafe.privacy.accountant import epsilon
from tensafe.privacy.bisr import coefficient_hash, sensitivity
from tests.support.sdk_data import supervised
from tests.support.service import MODEL_NAME, Service

TOKENS = [5, 9, 301, 77, 45, 210]
CONFIG = {
    "type": "tensafe_dp_adamw",
    "clip_norm": 1.0,
    "target_epsilon": 6.0,
    "delta": 1e-5,
    "batch_size": 2,
    "max_steps": 6,
    "max_participations": 3,
    "min_separation": 2,
    "noise": "bisr",
    "bisr_bandwidth": 3,
    "domain": "records",
}


def test_a_run_with_correlated_noise_meets_its_target_and_holds_units_apart(
    client: tinker.ServiceClient, tenant: str, service: Service
) -> None:
    """Two epochs of two batches, then a unit that returns too early."""
    config = OptimizerConfigBase(**CONFIG)
    run = client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=config).result()
    metrics = []
    for step in range(4):
        units = [2 * (step % 2), 2 * (step % 2) + 1]
        run.forward_backward([supervised(TOKENS, unit=unit) for unit in units], "cross_entropy").result()
        metrics.append(run.optim_step(types.AdamParams(learning_rate=1e-3)).result().metrics)
    whole = sensitivity(3, steps=6, participations=3, min_separation=2)
    sigma = metrics[0]["dp/noise_multiplier"]
    assert [one["dp/epsilon"] for one in metrics] == [epsilon({"run": (sigma / whole, 1)}, 1e-5)] * 4
    assert 5.999 < metrics[0]["dp/epsilon"] <= 6.0
    assert [one["dp/participations"] for one in metrics] == [1, 1, 2, 2]
    with pytest.raises(tinker.RequestFailedError, match=r"position 0, may return after 1 more step"):
        run.forward_backward([supervised(TOKENS, unit=2)], "cross_entropy").result()
    where = ("--tenant", tenant, "--json")
    (only,) = json.loads(service.tensafe("privacy", "show", "records", *where).stdout)["runs"]
    assert (only["min_separation"], only["coefficient_hash"]) == (2, coefficient_hash(3))
    assert only["mode"] == "bounded_participation_bisr_gaussian"


def test_a_mode_that_does_not_exist_is_refused_by_name(client: tinker.ServiceClient) -> None:
    config = OptimizerConfigBase(**{**CONFIG, "mode": "poisson"})
    with pytest.raises(tinker.APIStatusError, match="Input should be 'bounded', 'dealt' or 'attested'"):
        client.create_lora_training_client(MODEL_NAME, rank=4, optimizer=config).result()
