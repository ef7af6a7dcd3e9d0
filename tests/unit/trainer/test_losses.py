"""Every loss and its closed-form slope against autograd on the definition, where branches are all hit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tensafe.contracts.data_checks import resolve_config
from tensafe_gpu.trainer.losses import loss_and_slope, loss_metrics
from tests.support.peft_reference import reference_loss
from tests.support.training_data import SAMPLED_LOSSES


def random_inputs(n: int = 400) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(n, generator=generator)
    advantages[::5] = 0.0
    return {
        "weights": torch.randn(n, generator=generator),
        "logprobs": -2 + torch.randn(n, generator=generator),
        "advantages": advantages,
    }


@pytest.mark.parametrize("loss_fn", ["cross_entropy", *SAMPLED_LOSSES])
def test_value_and_slope_equal_autograd(loss_fn):
    inputs = random_inputs()
    lp = (-2 + torch.randn(400, generator=torch.Generator().manual_seed(1))).requires_grad_()
    expected = reference_loss(loss_fn, lp, inputs, {})
    expected.backward()
    columns = {name: value[:, None] for name, value in inputs.items()}
    value, slope = loss_and_slope(loss_fn, lp.detach()[:, None], columns, resolve_config(loss_fn, {}))
    assert value.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(slope[:, 0], lp.grad, rtol=1e-5, atol=1e-6)


def test_ppo_takes_the_smaller_branch_on_both_sides():
    advantages = torch.tensor([[1.0], [1.0], [-1.0], [-1.0], [1.0]])
    logprobs = torch.log(torch.tensor([[2.0], [0.5], [2.0], [0.5], [1.0]]))
    inputs = {"advantages": advantages, "logprobs": torch.zeros(5, 1)}
    value, slope = loss_and_slope("ppo", logprobs, inputs, resolve_config("ppo", {}))
    assert value[:, 0].tolist() == pytest.approx([-1.2, -0.5, 2.0, 0.8, -1.0])
    assert slope[:, 0].tolist() == pytest.approx([0.0, -0.5, 2.0, 0.0, -1.0])


def test_metrics_count_what_left_the_bounds():
    logprobs = np.log(np.array([2.0, 1.0, 0.5, 9.0], np.float32))
    inputs = {"logprobs": np.zeros(4, np.float32), "advantages": np.array([1, 1, -1, 0], np.float32)}
    metrics = loss_metrics("ppo", logprobs, inputs, resolve_config("ppo", {}))
    assert metrics["tokens:sum"] == 4
    assert metrics["clipped_tokens:sum"] == 2
    assert metrics["ratio:max"] == pytest.approx(2.0)
    assert metrics["kl_sample:sum"] == pytest.approx(0.0, abs=1e-6)


def test_metric_names_end_in_a_reduction_that_the_sdk_knows():
    from tinker.lib.chunked_fwdbwd_helpers import REDUCE_MAP

    zeros = np.zeros(3, np.float32)
    for loss_fn in ("cross_entropy", *SAMPLED_LOSSES):
        inputs = {"weights": zeros, "logprobs": zeros, "advantages": zeros}
        for name in loss_metrics(loss_fn, zeros, inputs, resolve_config(loss_fn, {})):
            assert name.count(":") == 1
            assert name.split(":")[1] in REDUCE_MAP
